// sumexp/cuda.hpp: log_prob, entropy, kl_div and their gradients.
#include "information.hpp"

#include <sumexp/cuda.hpp>

#include "../../cpu/information/check.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {
namespace {

namespace gpu = ::sumexp::SUMEXP_NS;
using cpu::kAbsent, cpu::kFull, cpu::kOneARow, cpu::kPicked;
using Call = InformationCall;
using Arguments = cpu::Argument[Call::kViews];
constexpr View kNothing;

struct Kernels {
  cudaError_t (*log_prob)(const Call&, cudaStream_t);
  cudaError_t (*kl_div)(const Call&, cudaStream_t);
  cudaError_t (*kl_div_vjp)(const Call&, cudaStream_t);
};
template <class S>
constexpr Kernels kernels_of() {
  return {gpu::Information<S>::log_prob, gpu::Information<S>::kl_div, gpu::Information<S>::kl_div_vjp};
}
constexpr Kernels kKernels[] = {kernels_of<gpu::f16>(), kernels_of<gpu::bf16>(), kernels_of<float>(), kernels_of<double>()};

Status prepare(const LogitsRows& rows, const Arguments& arguments, Call& call) {
  cpu::RowShape shape;
  const Status status = cpu::check_rows(rows, arguments, Call::kViews, shape);
  if (!status.ok()) return status;
  View views[Call::kViews] = {};
  for (int k = 0; k < Call::kViews; ++k)
    if (arguments[k].kind != kAbsent) views[k] = *arguments[k].view;
  call.picks = rows.picks, call.temperature = rows.temperature;
  return lay_rows(rows.ndim, rows.shape, shape.axis, views, call.views);
}

Status launch(const LogitsRows& rows, const Call& call, cudaError_t (*Kernels::*function)(const Call&, cudaStream_t),
              Target& target) {
  if (call.views.rows == 0) return Status{};
  const auto kernel = kKernels[static_cast<int>(rows.dtype)].*function;
  return on_device(target, 0, [&](void*, cudaStream_t stream) { return kernel(call, stream); });
}

}  // namespace

Status log_prob_and_entropy(const LogitsRows& rows, const View& logits, const View& index, const View& log_prob,
                            const View& entropy, Target& target) noexcept {
  const bool picked = cpu::is_given(index) || cpu::is_given(log_prob), wanted = cpu::is_given(entropy);
  const Arguments arguments = {{"logits", &logits, kFull},
                               {"index", &index, picked ? kPicked : kAbsent},
                               {"log_prob", &log_prob, picked ? kPicked : kAbsent},
                               {"entropy", &entropy, wanted ? kOneARow : kAbsent},
                               {"", &kNothing, kAbsent}};
  Call call = {};
  call.distances = wanted;
  const Status status = prepare(rows, arguments, call);
  return status.ok() ? launch(rows, call, &Kernels::log_prob, target) : status;
}

Status log_prob_and_entropy_vjp(const LogitsRows& rows, const View& g_log_prob, const View& g_entropy, const View& logits,
                                const View& index, const View& out, Target& target) noexcept {
  const bool picked = cpu::is_given(index) || cpu::is_given(g_log_prob), wanted = cpu::is_given(g_entropy);
  const Arguments arguments = {{"logits", &logits, kFull},
                               {"index", &index, picked ? kPicked : kAbsent},
                               {"g_log_prob", &g_log_prob, picked ? kPicked : kAbsent},
                               {"g_entropy", &g_entropy, wanted ? kOneARow : kAbsent},
                               {"out", &out, kFull}};
  Call call = {};
  call.distances = wanted, call.gradient = true;
  const Status status = prepare(rows, arguments, call);
  return status.ok() ? launch(rows, call, &Kernels::log_prob, target) : status;
}

Status kl_div(const LogitsRows& rows, const View& p_logits, const View& q_logits, const View& out, Target& target) noexcept {
  const Arguments arguments = {{"p_logits", &p_logits, kFull},
                               {"q_logits", &q_logits, kFull},
                               {"", &kNothing, kAbsent},
                               {"", &kNothing, kAbsent},
                               {"out", &out, kOneARow}};
  Call call = {};
  Status status = prepare(rows, arguments, call);
  if (status.ok()) status = cpu::check_no_temperature(rows, "kl_div");
  return status.ok() ? launch(rows, call, &Kernels::kl_div, target) : status;
}

Status kl_div_vjp(const LogitsRows& rows, const View& g, const View& p_logits, const View& q_logits, const View& out_p,
                  const View& out_q, Target& target) noexcept {
  const Arguments arguments = {{"p_logits", &p_logits, kFull},
                               {"q_logits", &q_logits, kFull},
                               {"out_q", &out_q, kFull},
                               {"g", &g, kOneARow},
                               {"out_p", &out_p, kFull}};
  Call call = {};
  Status status = prepare(rows, arguments, call);
  if (status.ok()) status = cpu::check_no_temperature(rows, "kl_div_vjp");
  return status.ok() ? launch(rows, call, &Kernels::kl_div_vjp, target) : status;
}

}  // namespace sumexp::cuda
