// Running a call on the current CUDA device: what the bindings see of csrc/cuda.
//
//   Plan plan;
//   Status status = make_plan(call, plan);            // checks shapes; no device needed
//   ... allocate plan.workspace bytes on the stream ...
//   cudaError_t error = launch(plan, workspace, stream);
//
// Both return at once: nothing here allocates device memory, waits for the device or changes global state,
// so that a graph may capture a launch. Pointers in the call are device pointers.
#pragma once

#include <cstddef>

#include "../include/sumexp/sumexp.hpp"
#include "tuning.hpp"

namespace sumexp::cuda {

struct Plan {
  Op op;
  DType dtype;
  bool nothing;  // no element to write
  Job job;
  Row row;
  Choice choice;
  std::size_t workspace;  // bytes wanted, 256-byte aligned; often 0
  // Batch dimensions beyond kJobDims: one launch for each of their `repeats` combinations.
  int outer_dims;
  JobDim outer[kMaxDims];
  std::int64_t repeats;
};

// `path` forces a kernel where it can serve the call: for tests and benchmarks.
Status make_plan(const Call& call, Plan& plan, Path path = Path::choose) noexcept;
cudaError_t launch(const Plan& plan, void* workspace, cudaStream_t stream) noexcept;

}  // namespace sumexp::cuda
