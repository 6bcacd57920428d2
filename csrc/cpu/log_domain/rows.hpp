// Rows that are walked in pieces of kPiece elements, in double, whatever their strides.
#pragma once

#include <algorithm>

#include "../kernels/cumulative.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"
#include "walk.hpp"

namespace sumexp::cpu {

struct PieceRows {
  const CumulativeKernels* sums = &SUMEXP_IN_USE(cumulative_kernels_);
  const ElementwiseKernels* moves = &SUMEXP_IN_USE(elementwise_kernels_);
  Walk walk;  // over the rows
  char* data[Walk::kMost];
  std::int64_t step[Walk::kMost];  // bytes along a row
  std::int64_t n = 0, pieces = 0;
  int dtype = 0;

  void set_rows(std::int64_t elements, DType of) {
    n = elements, pieces = (n + kPiece - 1) / kPiece;
    dtype = static_cast<int>(of);
  }
  char* row(int k, std::int64_t r) const { return data[k] + walk.offset(k, r); }
  int count(std::int64_t piece) const { return static_cast<int>(std::min<std::int64_t>(kPiece, n - piece * kPiece)); }
  void load(int k, const char* row, std::int64_t piece, double* to) const {
    moves->load[dtype](row + piece * kPiece * step[k], step[k], count(piece), to);
  }
  void store(int k, char* row, std::int64_t piece, const double* from) const {
    moves->store[dtype](row + piece * kPiece * step[k], step[k], count(piece), from);
  }
};

struct Piece {
  alignas(64) double at[kPiece];
};

// Tasks of such rows (Rows: PieceRows and more), over threads: some `work` for each of the elements.
template <class Rows>
Status run_rows(Rows& rows, std::int64_t tasks, std::int64_t work, PartBody body) {
  const DefaultFloatingPoint mode;
  return with_scratch([&] { run_parts(tasks, threads_for(rows.walk.size * rows.n * work), body, &rows); });
}

}  // namespace sumexp::cpu
