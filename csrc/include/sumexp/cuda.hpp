// sumexp on NVIDIA GPUs: the calls of sumexp.hpp on device memory, with the same bytes as on the CPU.
// Link sumexp::sumexp_cuda, which is there where the library was built with SUMEXP_CUDA.
//
//   sumexp::cuda::Target target;                       // device 0, its default stream, no workspace
//   sumexp::Status st = sumexp::cuda::run(call, target);
//   if (st.code == sumexp::Code::needs_workspace) {    // long rows, when there are few of them
//     cudaMallocAsync(&target.workspace, target.workspace_bytes, stream);
//     st = sumexp::cuda::run(call, target);
//   }
//
// Nothing here allocates device memory, waits for the device or leaves another device current, so that a graph
// may capture a call.
#pragma once

#include "log_domain.hpp"
#include "ragged.hpp"
#include "sumexp.hpp"

namespace sumexp::cuda {

struct Target {
  int device = 0;
  void* stream = nullptr;           // a cudaStream_t of that device
  void* workspace = nullptr;        // device memory, aligned to 256 bytes, in use until the stream is past the call
  std::size_t workspace_bytes = 0;  // where run wants more than this, it writes here how many
};

// Enqueues a call whose pointers are device memory (where too) on the target's stream.
SUMEXP_API Status run(const Call& call, Target& target) noexcept;
// Those of log_domain.hpp, without workspace.
SUMEXP_API Status elementwise(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out,
                              Target& target) noexcept;
SUMEXP_API Status logmeanexp(const WeightedRows& rows, View count, View value, View sign, Target& target) noexcept;
SUMEXP_API Status weighted_logsumexp_vjp(const WeightedRows& rows, View g, View dx, View db, Target& target) noexcept;
SUMEXP_API Status weighted_logsumexp_jvp(const WeightedRows& rows, View t, View tb, View out, Target& target) noexcept;
// As the CPU's (ragged.hpp), but offsets are device memory, which is not looked at first: beyond the elements they are cut to
// what there is, and with ones that fall the results of the segments around are any. Nothing beside the arrays is touched.
SUMEXP_API Status segments(const SegmentsCall& call, Target& target) noexcept;

SUMEXP_API Status synchronize(int device, void* stream) noexcept;
SUMEXP_API int device_count() noexcept;
SUMEXP_API Status device_status() noexcept;              // why there is no device: no driver, or an old one
SUMEXP_API int device_at(const void* address) noexcept;  // the device whose memory this is; 0 where unknown
// What this build has machine code for, such as "80, 90, 100".
SUMEXP_API const char* architectures() noexcept;

}  // namespace sumexp::cuda
