// The drivers: each carries the kernels of any op over the rows of a plan, in one way. They are compiled once, for no
// instruction set, and reach vectors through the table of kernels/table.hpp only.
//
//   rows.cpp     any rows: one by one, or in panels of up to `width`
//   tiles.cpp    the shortest rows: transposed, one to a SIMD lane
//   columns.cpp  rows that lie side by side (the axis is not the last)
//   split.cpp    few, long rows: each shared out among the threads, by one of the others
#pragma once

#include <cstring>

#include "../kernels/table.hpp"
#include "../threads/workspace.hpp"

namespace sumexp::cpu {

// Bytes from one row in scratch to the next: whole lines, an odd number of them, so that rows do not meet in the same sets of
// the cache.
inline std::int64_t odd_lines(std::int64_t bytes) { return ((bytes + kLineBytes - 1) / kLineBytes | 1) * kLineBytes; }

// A plan, with the kernels that serve it and what they need to know of its numbers.
struct Job {
  const Plan& plan;
  const OpInfo& info;
  const Moves& moves;
  const Kernel& kernel;
  int item, wide;  // bytes of a stored element, and of T
  Order order;
  std::int64_t chunks;  // of a row; 0 of an empty one
  double factor;        // that the temperature gives a derivative
  bool divide;          // logits are divided by the temperature first
  bool own_terms;       // logits are read again when their terms are there: terms may not take their place
  bool overlaps;        // results of a row, if long, may be written while the next one is reduced

  Job(const Plan& plan, const Kernels& kernels);
  int count_of(std::int64_t c) const {
    const std::int64_t left = plan.n - c * order.chunk;
    return static_cast<int>(left < order.chunk ? left : order.chunk);
  }
};

// A row's state to a finished row. `first` is where input 0 of the row lies, untouched yet; `input` where its row input does.
void finish_row(const Job& job, int pass, const void* state, const char* first, const char* input, void* row);

// Rows of the block that begins at row r: at most `width`, of one stretch of the innermost batch dimension. Side by side,
// they end where a vector of the result (of one value a row: the input) is aligned, so that the next blocks begin there.
int block_rows(const Job& job, std::int64_t r, std::int64_t end, int width);

// Rows [begin, end), by the driver that serves them.
void run_rows(const Job& job, std::int64_t begin, std::int64_t end, Workspace& workspace);
// Every row over the threads; whether it has a part for each.
void split_rows(const Job& job, int threads);
bool can_split(const Job& job, int threads);

template <class T>
T* take(Workspace& workspace, std::int64_t count) {
  return static_cast<T*>(workspace.take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
}

// The tree over a row's chunks (MergeTree in numerics/geometry.hpp), of states that only their kernel knows.
struct StateTree {
  static constexpr int kLevels = 32;  // 2^32 chunks
  char* stack;                        // kLevels states
  std::uint64_t filled = 0;

  // Adds the state of an aligned block of 2^level chunks; what stood in `state` is lost.
  void push(const Kernel& kernel, void* state, int level = 0) {
    for (; filled >> level & 1; ++level) {
      kernel.merge(at(kernel, level), state, state);
      filled &= ~(std::uint64_t{1} << level);
    }
    std::memcpy(at(kernel, level), state, static_cast<std::size_t>(kernel.state_bytes));
    filled |= std::uint64_t{1} << level;
  }
  // `last`, which may be of an incomplete block, becomes the root over it and everything that was pushed.
  void finish(const Kernel& kernel, void* last) const {
    for (std::uint64_t left = filled; left; left &= left - 1) kernel.merge(at(kernel, __builtin_ctzll(left)), last, last);
  }

 private:
  char* at(const Kernel& kernel, int level) const { return stack + level * kernel.state_bytes; }
};
// A tree for each of `rows` rows.
inline StateTree* take_trees(Workspace& workspace, const Kernel& kernel, int rows) {
  auto* trees = take<StateTree>(workspace, rows);
  char* stacks = take<char>(workspace, rows * StateTree::kLevels * std::int64_t{kernel.state_bytes});
  for (int b = 0; b < rows; ++b) trees[b].stack = stacks + b * StateTree::kLevels * std::int64_t{kernel.state_bytes};
  return trees;
}

}  // namespace sumexp::cpu
