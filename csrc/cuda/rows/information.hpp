// log_prob, entropy and kl_div as launched: what the host gives to the kernels of information.cuh.
#pragma once

#include "../arch/arch.hpp"
#include "../formats.cuh"
#include "row_views.hpp"

namespace sumexp::cuda {

// Arrays with a value a row, or one for each of its indices, have the step from one of these to the next along the row.
struct InformationCall {
  enum { kLogits, kPicks, kOfPicks, kOfRow, kResult, kViews, kOther = kPicks, kExtra = kOfPicks };

  RowViews<kViews> views;  // as cpu/kernels/information.hpp has them
  std::int64_t picks;      // indices of a row
  double temperature;
  bool distances;  // the entropy is wanted, or has a gradient
  bool gradient;   // of log_prob: kOfPicks and kOfRow are gradients; else results
};

}  // namespace sumexp::cuda

namespace sumexp::SUMEXP_NS {

template <class S>
struct Information {
  static cudaError_t log_prob(const cuda::InformationCall& call, cudaStream_t stream);
  static cudaError_t kl_div(const cuda::InformationCall& call, cudaStream_t stream);
  static cudaError_t kl_div_vjp(const cuda::InformationCall& call, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
