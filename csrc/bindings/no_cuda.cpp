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
Status cross_entropy(const CrossEntropyCall&, Target&) noexcept { return refusal(); }
Status cross_entropy_denominator(const CrossEntropyCall&, double*, Target&) noexcept { return refusal(); }
Status sum_rows(const void*, DType, std::int64_t, double*, Target&) noexcept { return refusal(); }
Status sample(const SampleCall&, Target&) noexcept { return refusal(); }
Status sample_counts(const SampleCall&, std::int64_t*, const std::int64_t*, Target&) noexcept { return refusal(); }
Status sample_piece(const SampleCall&, std::int64_t, std::int64_t, void*, std::int16_t*, Target&) noexcept { return refusal(); }
Status finish_pieces(const SampleCall&, std::int64_t, const void*, const std::int16_t*, Target&) noexcept { return refusal(); }
Status gumbel_noise(PerRow<std::uint64_t>, PerRow<std::int64_t>, std::int64_t, std::int64_t, double*, Target&) noexcept {
  return refusal();
}
Status masked(const MaskedCall&, Target&) noexcept { return refusal(); }
Status logmeanexp(const WeightedRows&, View, View, View, Target&) noexcept { return refusal(); }
Status weighted_logsumexp_vjp(const WeightedRows&, View, View, View, Target&) noexcept { return refusal(); }
Status weighted_logsumexp_jvp(const WeightedRows&, View, View, View, Target&) noexcept { return refusal(); }
Status segments(const SegmentsCall&, Target&) noexcept { return refusal(); }
Status elementwise(LogDomain, DType, int, const std::int64_t*, const View*, const View*, Target&) noexcept { return refusal(); }
Status synchronize(int, void*) noexcept { return refusal(); }
int device_count() noexcept { return 0; }
Status device_status() noexcept { return refusal(); }
int device_at(const void*) noexcept { return 0; }
const char* architectures() noexcept { return ""; }

}  // namespace sumexp::cuda
