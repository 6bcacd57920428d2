// One op on one storage type, as launch.cu calls it; defined in run.cuh, instantiated as operations.cmake says.
#pragma once

#include "launch.hpp"

#ifndef SUMEXP_NS
#error "csrc/cuda is compiled with SUMEXP_NS, a namespace of its own (see numerics/platform.hpp)"
#endif

namespace sumexp::SUMEXP_NS {

template <class S, class Op>
struct Run {
  static void describe(cuda::Row& row);
  static std::size_t workspace(const cuda::Job& job);
  static bool can_cluster(const cuda::Job& job, const cuda::Choice& choice);
  static cudaError_t run(const cuda::Job& job, const cuda::Choice& choice, void* workspace, cudaStream_t stream);
};

// The merging of a streamed op's states, with the kernels of its Finish: on its own, since several ops and
// types share them.
template <class Finish>
struct Merge {
  static cudaError_t run(const cuda::Job& job, int pass, void* workspace, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
