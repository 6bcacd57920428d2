// Few, long rows: every row, or block of columns, is split over the threads, in aligned blocks of 2^kBlockLevel chunks. Each
// block is reduced, then mapped, by a driver of its own (RowDriver, ColumnDriver); the blocks' states merge as the chunks'
// would have, so that the tree of the geometry stays the same.
#pragma once

#include "rows.hpp"

namespace sumexp::SUMEXP_NS {

template <class V, class S, class Kernel>
void run_split(const Plan& plan, std::int64_t begin, std::int64_t end, int threads);

inline constexpr int kBlockLevel = 5;

template <class Body>
SUMEXP_FN void run_parts(std::int64_t tasks, int threads, Body& body) {
  cpu::run_parts(
      tasks, threads,
      [](void* context, std::int64_t i, Workspace& workspace) { (*static_cast<Body*>(context))(i, workspace); },
      &body);
}

template <class V, class S, class Kernel, class Driver>
class SplitDriver {
  using T = ElementOf<V>;
  using State = typename Kernel::State;
  using Row = typename Kernel::Row;

 public:
  SplitDriver(const Plan& plan, int threads) : plan_(plan), threads_(threads), width_(Driver::split_width(plan)) {
    chunks_ = chunk_count<T>(plan.n);
    blocks_ = (chunks_ + kBlock - 1) / kBlock;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; r += rows_) {
      rows_ = block_rows<V, S>(plan_, r, end, width_);
      if (rows_ > Driver::kMultiple) rows_ = rows_ / Driver::kMultiple * Driver::kMultiple;
      if (rows_ % Driver::kMultiple || !block(r)) run_split<V, S, Kernel>(plan_, r, r + rows_, threads_);
    }
  }

 private:
  static constexpr std::int64_t kBlock = std::int64_t(1) << kBlockLevel;
  std::int64_t last(std::int64_t i) const { return (i + 1) * kBlock < chunks_ ? (i + 1) * kBlock : chunks_; }

  bool block(std::int64_t r) {
    const std::size_t states = static_cast<std::size_t>(blocks_ * rows_) * sizeof(State);
    const std::size_t maxima = static_cast<std::size_t>(chunks_ * rows_) * sizeof(T);
    char* own = static_cast<char*>(own_.keep_bytes(states + maxima + static_cast<std::size_t>(blocks_)));
    states_ = reinterpret_cast<State*>(own);
    maxima_ = reinterpret_cast<T*>(own + states);
    taken_ = reinterpret_cast<bool*>(own + states + maxima);
    Row row[Driver::kWidestSplit];
    for (int b = 0; b < rows_; ++b) row[b] = Row{};
    if (!reduce<0>(r, row)) return false;
    if constexpr (Kernel::kPasses > 1) reduce<1>(r, row);
    if constexpr (Kernel::kRowOutput) {
      Driver(plan_, own_, maxima_).emit_rows(r, rows_, row);
    } else {
      auto part = [&](std::int64_t i, Workspace& workspace) {
        Driver(plan_, workspace, maxima_).map_part(r, rows_, i * kBlock, last(i), row);
      };
      run_parts(blocks_, threads_, part);
    }
    return true;
  }

  template <int pass>
  bool reduce(std::int64_t r, Row* row) {
    auto part = [&](std::int64_t i, Workspace& workspace) {
      Driver driver(plan_, workspace, maxima_);
      taken_[i] = driver.template reduce_part<pass>(r, rows_, i * kBlock, last(i), row, states_ + i * rows_);
    };
    run_parts(blocks_, threads_, part);
    for (std::int64_t i = 0; i < blocks_; ++i)
      if (!taken_[i]) return false;
    Params params;
    params.factor = temperature_factor<T>(plan_);
    for (int b = 0; b < rows_; ++b) {
      MergeTree<State> tree;
      for (std::int64_t i = 0; i < blocks_ - 1; ++i) tree.push(states_[i * rows_ + b], kBlockLevel);
      Kernel::finish(pass, tree.finish(states_[(blocks_ - 1) * rows_ + b]), row[b], params);
    }
    return true;
  }

  const Plan& plan_;
  int threads_, width_, rows_ = 1;
  Workspace& own_ = cpu::thread_workspace();
  std::int64_t chunks_, blocks_;
  State* states_ = nullptr;
  T* maxima_ = nullptr;
  bool* taken_ = nullptr;  // by each part
};

template <class V, class S, class Kernel>
void run_split(const Plan& plan, std::int64_t begin, std::int64_t end, int threads) {
  SplitDriver<V, S, Kernel, RowDriver<V, S, Kernel>>(plan, threads).run(begin, end);
}
template <class V, class S, class Kernel>
void run_split(const Plan& plan, int threads) {
  run_split<V, S, Kernel>(plan, 0, plan.rows, threads);
}

}  // namespace sumexp::SUMEXP_NS
