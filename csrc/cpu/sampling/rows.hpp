// The rows of a sampling call: how their chunks are read (numbers of T, with temperature, mask and cut), the tree over their
// chunks, and walks down it. numerics/README.md, "Sampling", has the definition.
#pragma once

#include <atomic>
#include <limits>

#include "../../include/sumexp/sampling.hpp"
#include "../../ops/sampling.hpp"
#include "../drivers/driver.hpp"
#include "../kernels/sampling.hpp"

namespace sumexp::cpu {

class SampleJob {
 public:
  enum Wanted { kDraws, kCounts, kProbabilities, kPieces };
  // The plan is of the logits, the mask and, where there is one, a full result.
  SampleJob(const SampleCall& call, const Plan& plan, Wanted wanted);
  SampleJob(const SampleCall& call, const Plan& plan, Wanted wanted, int isa);

  const SampleCall& call;
  const Plan& plan;
  const bool draws;  // else call.out is of no concern
  const SamplingKernels& tables;
  const SamplingKernels::Of& kernels;
  const Moves& moves;
  const int item, wide, chunk;  // bytes of a stored element and of T; elements of a chunk
  const std::int64_t chunks, nodes;
  const int levels;     // of the nodes
  const bool direct;    // T, contiguous, no mask: read where they lie, if nothing is to be done to them
  const bool filtered;  // some rows may have filters
  const bool alone;     // rows of one chunk and draw, of which nothing else is told
  const int leaves;     // of a row of one chunk
  const int together;   // rows that draw together; 0: one by one
  // A row's memory, and where in it are nodes, packed elements, marks of what was taken, counts, and states of raw logits.
  std::int64_t states_at, nodes_at, packed_at, taken_at, counts_at, raw_at, row_bytes;

  int count_of(std::int64_t c) const {
    const std::int64_t left = plan.n - c * chunk;
    return static_cast<int>(left < chunk ? left : chunk);
  }
};

// Why a row cannot be drawn from. The first row that fails is told: those before one that has failed go on.
class Failure {
 public:
  enum Kind { kNaN, kInfinite, kNothing, kTooFew, kOverflows, kKinds };
  void add(std::int64_t row, Kind kind) {
    const std::int64_t mine = row * kKinds + kind;
    std::int64_t first = first_.load();
    while (mine < first && !first_.compare_exchange_weak(first, mine)) {
    }
  }
  // Of how many rows, from the first on, none has failed; whether this one, or one before it, has.
  std::int64_t rows() const { return first_.load(std::memory_order_relaxed) / kKinds; }
  bool reached(std::int64_t row) const { return rows() <= row; }
  Status status(const SampleJob& job) const;

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_{kNone};
};

// Scratch of one thread, for blocks of up to `draws` draws.
struct SampleScratch {
  SampleScratch(const SampleJob& job, Workspace& workspace, std::int64_t draws);
  char *chunk, *other;      // T, a chunk each
  double* tree;             // inside a chunk
  std::int64_t* counts;     // of its nodes
  std::int32_t* order;      // draws of a block, by chunk
  std::int32_t* starts;     // of each chunk's draws in it
  void* filters = nullptr;  // of the filters, once they are wanted
  Workspace& workspace;
};

class SampleRow {
 public:
  SampleRow(const SampleJob& job, std::int64_t row, char* memory);
  std::int64_t index() const { return row_; }

  // One after the other, `reduce` over all chunks. After a failure no more.
  void prepare(SampleScratch& scratch, Failure& failure);
  void reduce(std::int64_t c0, std::int64_t c1, SampleScratch& scratch);
  void finish(SampleScratch& scratch, Failure& failure);
  // Draws [d0, d1). One block of all where each depends on those before.
  bool in_blocks() const { return job_.call.replacement; }
  void draw(std::int64_t d0, std::int64_t d1, SampleScratch& scratch, Failure& failure);
  void tell(SampleScratch& scratch);
  // The tree of a row of one chunk; false where more is to be known than what one draw takes there, or it is not finite.
  bool tree_alone(double* tree, SampleScratch& scratch);
  RowKey key() const { return {random_.seed, random_.stream}; }

  // Counts in place of draws: of the chunks, and then of the elements of some.
  void count_chunks();
  void count_elements(std::int64_t c0, std::int64_t c1, SampleScratch& scratch);

  // The product of the probabilities of the decisions on the way to each element, contiguous.
  void probabilities(double* to, SampleScratch& scratch);

  // In pieces: the states of the chunks of this piece and what each draw takes there; the draws from all states.
  void piece(char* states, std::int16_t* classes, SampleScratch& scratch, Failure& failure);
  void draw_pieces(const char* states, const std::int16_t* classes, Failure& failure);

 private:
  const void* raw_chunk(std::int64_t c, char* to) const;  // without temperature and cut
  const void* read(std::int64_t c, char* to) const;
  int tied_in(std::int64_t c) const {  // elements of chunk c up to the cut's
    const std::int64_t tied = cut_index_ + 1 - c * job_.chunk, count = job_.count_of(c);
    return static_cast<int>(tied < 0 ? 0 : tied < count ? tied : count);
  }
  double logit(std::int64_t j) const;  // as it is given
  double scaled(double x) const;
  void divide(int count, void* x) const;
  bool divide_apart(char* scratch);  // from now on, where that helps
  void merge_states(Failure& failure);
  std::int64_t walk_chunks(SUMEXP_NS::Walk& walk) const;
  bool draw_from_chunk(std::int64_t c, const std::int32_t* draws, std::int64_t count, std::int64_t d0, SampleScratch& scratch);
  void draw_apart(SampleScratch& scratch, Failure& failure);
  std::int64_t find_largest(SampleScratch& scratch, double* value, bool* nan) const;
  void take(std::int64_t j) { taken_[j / 64] |= std::uint64_t{1} << j % 64; }

  const SampleJob& job_;
  const std::int64_t row_;
  const char *base_, *mask_;  // of its logits and mask
  std::int64_t* out_;
  const SUMEXP_NS::RowRandom random_;
  double temperature_;
  bool greedy_, cut_ = false, divide_;
  bool alone_;                                  // one chunk, of which nothing but the terms is wanted
  bool apart_ = false;                          // quotients overflow: differences from the largest are divided
  double largest_logit_ = 0;                    // that one
  mutable std::atomic<bool> overflows_{false};  // a quotient does
  double cut_logit_;
  std::int64_t cut_index_ = -1, largest_ = -1;
  std::atomic<std::int64_t> kept_{0};
  char *states_, *raw_;
  char* copy_ = nullptr;          // T, room for all of the row, where there are filters
  const char* packed_ = nullptr;  // and what they have seen: there, or where the row lies
  SumNode* nodes_;
  std::uint64_t* taken_;
  std::int64_t* counts_;
  RowRoot root_ = {};
};

}  // namespace sumexp::cpu
