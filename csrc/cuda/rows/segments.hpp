// Segments on a GPU, as host and kernels see them: rows of many lengths one after the other, where only the device knows how
// long each is.
#pragma once

#include "../../include/sumexp/ragged.hpp"
#include "../launch.hpp"

#ifndef SUMEXP_NS
#error "csrc/cuda is compiled with SUMEXP_NS, a namespace of its own (see numerics/platform.hpp)"
#endif

namespace sumexp::cuda {

struct SegmentsJob {
  const std::int64_t* offsets;  // segments + 1, in device memory
  std::int64_t elements, features, segments;
  char* data[3];              // two inputs, and the result
  std::int64_t stride[3][2];  // in bytes: along the first dimension, and of features
  double empty;               // the result of a segment without elements, of ops with one value a row
  int together;               // segments that a warp looks at
};

}  // namespace sumexp::cuda

namespace sumexp::SUMEXP_NS {

template <class S>
struct SegmentRows {
  static std::size_t workspace(Op op, const cuda::SegmentsJob& job);
  static cudaError_t run(Op op, const cuda::SegmentsJob& job, void* workspace, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
