// The cuts of rows by the filters of sampling, as host and kernels see them.
#pragma once

#include "../../include/sumexp/sampling.hpp"
#include "../arch/arch.hpp"
#include "row_views.hpp"

namespace sumexp::cuda {

// Element j of a row is kept if and only if x_j > logit, or x_j == logit and j <= index; x after the temperature, in order
// llama_cpp before it. kept: how many; 0 where the row has NaN or +inf, or nothing above -inf.
struct RowCut {
  double logit;
  std::int64_t index, kept;
};

struct FilterRows {
  RowViews<2> views;  // logits; where, one byte an element, or absent
  PerRow<double> temperature, top_p, min_p;
  PerRow<std::int64_t> top_k;
  FilterOrder order;
};

inline constexpr std::int64_t kLongestFiltered = 0xffffffff;  // elements of a row: counts have 32 bits

// Enqueues what writes a cut for each row; all pointers are device memory. A row without filters keeps everything above -inf,
// {-inf, -1, how many}; one with a temperature of 0 the lowest index among the largest.
cudaError_t find_cuts(DType dtype, const FilterRows& rows, RowCut* cuts, cudaStream_t stream);

}  // namespace sumexp::cuda

namespace sumexp::SUMEXP_NS {

template <class S>
struct FindCuts {
  static cudaError_t run(const cuda::FilterRows& rows, cuda::RowCut* cuts, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
