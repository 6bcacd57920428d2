// A call on one of the devices, with errors as a Status: what every function of sumexp/cuda.hpp goes through.
#pragma once

#include <sumexp/cuda.hpp>

#include <cstdint>
#include <cstdio>

#include "arch/arch.hpp"

namespace sumexp::cuda {

inline Status failure(cudaError_t error, int device = -1) {
  char where[24] = "";
  if (device >= 0) std::snprintf(where, sizeof where, " on device %d", device);
  Status status;
  status.code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device_error;
  const char *more = "", *what = "";
  if (error == cudaErrorNoKernelImageForDevice) more = "; this build has code for ", what = architectures();
  if (error == cudaErrorInvalidConfiguration) more = "; the rows of a call may take 2^31 - 1 blocks of threads";
  std::snprintf(status.message, sizeof status.message, "CUDA error %d (%s)%s: %s%s%s", int(error), arch::error_name(error),
                where, arch::error_text(error), more, what);
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

// Whether a target has the workspace of `wanted` bytes; of one that has less, the Status that says how much.
inline Status check_workspace(Target& target, std::size_t wanted) {
  Status status;
  if (wanted > target.workspace_bytes) {
    status.code = Code::needs_workspace;
    std::snprintf(status.message, sizeof status.message, "workspace has %zu bytes, accepted: at least %zu",
                  target.workspace_bytes, wanted);
    target.workspace_bytes = wanted;
  } else if (wanted && reinterpret_cast<std::uintptr_t>(target.workspace) % 16) {
    status.code = Code::invalid_argument;
    std::snprintf(status.message, sizeof status.message, "workspace is at %p, accepted: a multiple of 16", target.workspace);
  }
  return status;
}

// launch(workspace, stream) -> cudaError_t on the target's device, with a workspace of `wanted` bytes.
template <class Launch>
Status on_device(Target& target, std::size_t wanted, Launch launch) {
  const Current device(target.device);
  if (device.error() != cudaSuccess) return failure(device.error(), target.device);
  const Status status = check_workspace(target, wanted);
  if (!status.ok()) return status;
  const cudaError_t error = launch(target.workspace, static_cast<cudaStream_t>(target.stream));
  return error == cudaSuccess ? status : failure(error, target.device);
}

}  // namespace sumexp::cuda
