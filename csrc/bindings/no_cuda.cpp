// sumexp/cuda.hpp in a module that is built without CUDA: no devices, and a clear refusal.
#include <sumexp/cuda.hpp>

#include <cstdio>

namespace sumexp::cuda {

namespace {
Status refusal() {
  Status status;
  status.code = Code::unsupported;
  std::snprintf(status.message, sizeof status.message, "this build of sumexp has no CUDA (SUMEXP_CUDA=ON builds it)");
  return status;
}
}  // namespace

Status run(const Call&, Target&) noexcept { return refusal(); }
Status log_prob_and_entropy(const LogitsRows&, const View&, const View&, const View&, const View&, Target&) noexcept {
  return refusal();
}
Status log_prob_and_entropy_vjp(const LogitsRows&, const View&, const View&, const View&, const View&, const View&,
                                Target&) noexcept {
  return refusal();
}
Status kl_div(const LogitsRows&, const View&, const View&, const View&, Target&) noexcept { return refusal(); }
Status kl_div_vjp(const LogitsRows&, const View&, const View&, const View&, const View&, const View&, Target&) noexcept {
  return refusal();
}
Status synchronize(int, void*) noexcept { return refusal(); }
int device_count() noexcept { return 0; }
Status device_status() noexcept { return refusal(); }
int device_at(const void*) noexcept { return 0; }
const char* architectures() noexcept { return ""; }

}  // namespace sumexp::cuda
