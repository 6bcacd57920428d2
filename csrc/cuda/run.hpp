// One operation on one storage type, as launch.cu calls it; defined in run.cuh, instantiated in instance.cu.
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

}  // namespace sumexp::SUMEXP_NS
