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

#include "information.hpp"
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

// The functions of information.hpp. A row with an index that is of no class is NaN, in all of its results, and nothing beyond
// the row is read.
SUMEXP_API Status log_prob_and_entropy(const LogitsRows& rows, const View& logits, const View& index, const View& log_prob,
                                       const View& entropy, Target& target) noexcept;
SUMEXP_API Status log_prob_and_entropy_vjp(const LogitsRows& rows, const View& g_log_prob, const View& g_entropy,
                                           const View& logits, const View& index, const View& out, Target& target) noexcept;
SUMEXP_API Status kl_div(const LogitsRows& rows, const View& p_logits, const View& q_logits, const View& out,
                         Target& target) noexcept;
SUMEXP_API Status kl_div_vjp(const LogitsRows& rows, const View& g, const View& p_logits, const View& q_logits,
                             const View& out_p, const View& out_q, Target& target) noexcept;

SUMEXP_API Status synchronize(int device, void* stream) noexcept;
SUMEXP_API int device_count() noexcept;
SUMEXP_API Status device_status() noexcept;              // why there is no device: no driver, or an old one
SUMEXP_API int device_at(const void* address) noexcept;  // the device whose memory this is; 0 where unknown
// What this build has machine code for, such as "80, 90, 100".
SUMEXP_API const char* architectures() noexcept;

}  // namespace sumexp::cuda
