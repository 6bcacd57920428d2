// sumexp/cuda.hpp: a call on one of the devices, with errors as a Status.
#include <sumexp/cuda.hpp>

#include "launch.hpp"
#include "on_device.hpp"

namespace sumexp::cuda {

Status run(const Call& call, Target& target) noexcept {
  const Current device(target.device);
  if (device.error() != cudaSuccess) return failure(device.error(), target.device);
  Plan plan;
  Status status = make_plan(call, plan);
  if (!status.ok()) return status;
  status = check_workspace(target, plan.workspace);
  if (!status.ok()) return status;
  const cudaError_t error = launch(plan, target.workspace, static_cast<cudaStream_t>(target.stream));
  return error == cudaSuccess ? status : failure(error, target.device);
}

Status synchronize(int device, void* stream) noexcept {
  const Current current(device);
  cudaError_t error = current.error();
  if (error == cudaSuccess) error = arch::synchronize(static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? Status{} : failure(error, device);
}

int device_count() noexcept {
  int count = 0;
  return arch::device_count(count) == cudaSuccess ? count : 0;
}
Status device_status() noexcept {
  int count = 0;
  const cudaError_t error = arch::device_count(count);
  return error == cudaSuccess ? Status{} : failure(error);
}
int device_at(const void* address) noexcept { return arch::device_at(address); }

const char* architectures() noexcept { return SUMEXP_CUDA_BUILT_FOR; }

}  // namespace sumexp::cuda
