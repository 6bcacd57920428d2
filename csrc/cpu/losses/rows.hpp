// Rows of a plan in order, and the order in which what belongs to them is added: a binary tree over the row's index, built like
// the tree over a row's chunks (numerics/geometry.hpp), in the wide type. Aligned blocks of 2^k rows are subtrees: any thread
// may sum them, and their sums are added by the same tree over the blocks.
#pragma once

#include "../../ops/losses.hpp"
#include "../plan.hpp"

namespace sumexp::cpu {

template <class W>
class RowTree {
 public:
  void push(W value) {
    int level = 0;
    for (; count_ >> level & 1; ++level) value = SUMEXP_NS::sum_or_infinity(stack_[level], value);
    stack_[level] = value;
    ++count_;
  }
  // Of everything that was pushed; 0 of nothing.
  W sum() const {
    W total = {};
    bool any = false;
    for (int level = 0; level < 64; ++level)
      if (count_ >> level & 1) total = any ? SUMEXP_NS::sum_or_infinity(stack_[level], total) : stack_[level], any = true;
    return total;
  }

 private:
  W stack_[64];
  std::uint64_t count_ = 0;
};

// How many rows from r on lie evenly apart, at most `most`.
inline std::int64_t even_rows(const Plan& plan, std::int64_t r, std::int64_t most) {
  const std::int64_t size = plan.inner().size, left = size - r % size;
  return left < most ? left : most;
}

// Calls body(r, offsets) for rows [begin, end).
template <class Body>
void each_row(const Plan& plan, std::int64_t begin, std::int64_t end, Body body) {
  const Dim& inner = plan.inner();
  for (std::int64_t r = begin; r < end;) {
    Offsets offsets = plan.row_offsets(r);
    const std::int64_t stop = r + even_rows(plan, r, end - r);
    for (;;) {
      body(r, offsets);
      if (++r == stop) break;
      for (int k = 0; k < kOperands; ++k) offsets.at[k] += inner.stride[k];
    }
  }
}

}  // namespace sumexp::cpu
