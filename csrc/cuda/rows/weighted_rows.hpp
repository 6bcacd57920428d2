// Sums with weights over rows on a GPU, as host and kernels see them.
#pragma once

#include "../arch/arch.hpp"
#include "row_views.hpp"

#ifndef SUMEXP_NS
#error "csrc/cuda is compiled with SUMEXP_NS, a namespace of its own (see numerics/platform.hpp)"
#endif

namespace sumexp::cuda {

enum class Weighted : int { mean, vjp, jvp };
// of the views: x, b, and as the functions of log_domain.hpp have them
inline constexpr int kWeightedViews = 5;

}  // namespace sumexp::cuda

namespace sumexp::SUMEXP_NS {

template <class S>
struct WeightedRowsOf {
  static cudaError_t run(cuda::Weighted what, const cuda::RowViews<cuda::kWeightedViews>& views, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
