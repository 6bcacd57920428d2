// sumexp/cuda.hpp: a call on one of the devices, with errors as a Status.
#include <sumexp/cuda.hpp>

#include <cstdio>

#include "launch.hpp"

namespace sumexp::cuda {
namespace {

Status failure(cudaError_t error, int device = -1) {
  char where[24] = "";
  if (device >= 0) std::snprintf(where, sizeof where, " on device %d", device);
  Status status;
  status.code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device_error;
  std::snprintf(status.message, sizeof status.message, "CUDA error %d (%s)%s: %s%s%s", int(error), arch::error_name(error),
                where, arch::error_text(error), error == cudaErrorNoKernelImageForDevice ? "; this build has code for " : "",
                error == cudaErrorNoKernelImageForDevice ? architectures() : "");
  return status;
}

// Makes a device the current one, for as long as this lives.
class Current {
 public:
  explicit Current(int device) {
    error_ = arch::get_device(before_);
    if (error_ != cudaSuccess || before_ == device) return;
    error_ = arch::set_device(device);
    changed_ = error_ == cudaSuccess;
  }
  ~Current() {
    if (changed_) arch::set_device(before_);
  }
  Current(const Current&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace

Status run(const Call& call, Target& target) noexcept {
  const Current device(target.device);
  if (device.error() != cudaSuccess) return failure(device.error(), target.device);
  Plan plan;
  Status status = make_plan(call, plan);
  if (!status.ok()) return status;
  if (plan.workspace > target.workspace_bytes) {
    status.code = Code::needs_workspace;
    std::snprintf(status.message, sizeof status.message, "workspace has %zu bytes, accepted: at least %zu",
                  target.workspace_bytes, plan.workspace);
    target.workspace_bytes = plan.workspace;
    return status;
  }
  if (plan.workspace && reinterpret_cast<std::uintptr_t>(target.workspace) % 16) {
    status.code = Code::invalid_argument;
    std::snprintf(status.message, sizeof status.message, "workspace is at %p, accepted: a multiple of 16", target.workspace);
    return status;
  }
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
