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
// may capture a call. For the time of a call its device is the current one; going back to the one before gives that one a
// context, if it had none (cudaSetDevice, from CUDA 12 on).
#pragma once

#include "information.hpp"
#include "linear.hpp"
#include "log_domain.hpp"
#include "losses.hpp"
#include "ragged.hpp"
#include "sampling.hpp"
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

// As the CPU's (ragged.hpp), but lengths are device memory, which is not looked at first: one below 0 counts as 0, one beyond
// the axis as the whole axis.
SUMEXP_API Status masked(const MaskedCall& call, Target& target) noexcept;
// As the CPU's (ragged.hpp), but offsets are device memory, which is not looked at first: beyond the elements they are cut to
// what there is, and with ones that fall the results of the segments around are any. Nothing beside the arrays is touched.
SUMEXP_API Status segments(const SegmentsCall& call, Target& target) noexcept;

// The functions of losses.hpp. Targets are on the device: one out of range is no error, but makes the loss and the gradient of
// its row NaN. The denominator of a mean is made on the device too, and the results of the other two are written there.
SUMEXP_API Status cross_entropy(const CrossEntropyCall& call, Target& target) noexcept;
SUMEXP_API Status cross_entropy_denominator(const CrossEntropyCall& call, double* denominator, Target& target) noexcept;
SUMEXP_API Status sum_rows(const void* values, DType dtype, std::int64_t rows, double* sum, Target& target) noexcept;

// The function of linear.hpp on device memory, but for the call itself; products are enqueued on the target's stream by the
// call's gemm. Nothing waits for the targets: tokens that are ignored have logits as well, of zeros in place of their x.
SUMEXP_API Status linear_cross_entropy(const LinearCrossEntropyCall& call, Target& target) noexcept;

// The functions of sampling.hpp on device memory, options and results included: nothing in them is looked at before the kernels
// run. So a row with NaN or +inf, with nothing to draw from, or with a temperature that is none is no error: it gives -1 for
// every draw, as do draws without replacement for which no class is left (counts: -1 for every class; log-probabilities NaN,
// of a whole row 0 kept and the cut (NaN, -1)). Rows in pieces that sampling.hpp refuses for their temperature give -1 as well.
SUMEXP_API Status sample(const SampleCall& call, Target& target) noexcept;
SUMEXP_API Status sample_counts(const SampleCall& call, std::int64_t* counts, const std::int64_t* strides,
                                Target& target) noexcept;
SUMEXP_API Status sample_piece(const SampleCall& call, std::int64_t chunk, std::int64_t chunks, void* states,
                               std::int16_t* classes, Target& target) noexcept;
SUMEXP_API Status finish_pieces(const SampleCall& call, std::int64_t chunks, const void* states, const std::int16_t* classes,
                                Target& target) noexcept;
SUMEXP_API Status gumbel_noise(PerRow<std::uint64_t> seed, PerRow<std::int64_t> stream, std::int64_t rows, std::int64_t n,
                               double* out, Target& target) noexcept;

// Those of log_domain.hpp, without workspace.
SUMEXP_API Status elementwise(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out,
                              Target& target) noexcept;
SUMEXP_API Status logmeanexp(const WeightedRows& rows, View count, View value, View sign, Target& target) noexcept;
SUMEXP_API Status weighted_logsumexp_vjp(const WeightedRows& rows, View g, View dx, View db, Target& target) noexcept;
SUMEXP_API Status weighted_logsumexp_jvp(const WeightedRows& rows, View t, View tb, View out, Target& target) noexcept;

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
