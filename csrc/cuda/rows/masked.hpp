// Masked rows on a GPU, as host and kernels see them.
#pragma once

#include "../../include/sumexp/ragged.hpp"
#include "../../ops/masked.hpp"
#include "../launch.hpp"
#include "row_views.hpp"

#ifndef SUMEXP_NS
#error "csrc/cuda is compiled with SUMEXP_NS, a namespace of its own (see numerics/platform.hpp)"
#endif

namespace sumexp::SUMEXP_NS {

enum MaskedView {
  kMaskedX = 0,
  kMaskedG,
  kMaskedWhere,
  kMaskedLengths,
  kMaskedBias,
  kMaskedSink,
  kMaskedResult,
  kMaskedDBias,
  kMaskedDSink,
  kMaskedViews
};

struct MaskedJob {
  cuda::RowViews<kMaskedViews> views;
  MaskedLimits limits;
  MaskedScale scale;
  double absent;   // the result where an element is left out
  double nothing;  // and along a row of nothing
};
// What is summed for each number of a gradient.
using MaskedGroups = RowGroups<cuda::kBatchDims>;

template <class S>
struct MaskedRows {
  static std::size_t workspace(const MaskedCall& call, const MaskedJob& job);
  static cudaError_t run(const MaskedCall& call, const MaskedJob& job, void* workspace, cudaStream_t stream);
  // Gradients of sinks, one a row, that nothing is added to.
  static cudaError_t clear_sinks(const MaskedJob& job, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
