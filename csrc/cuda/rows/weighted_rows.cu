// sumexp::cuda::logmeanexp and the derivatives of logsumexp with weights: checks, views, and the way to the kernel of the
// dtype.
#include "weighted_rows.hpp"

#include "../../cpu/log_domain/weighted_rows.hpp"
#include "../../numerics/formats.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

namespace {

Status run_weighted(Weighted what, const WeightedRows& rows, const View (&more)[3], const cpu::WeightedKind& kind,
                    Target& target) {
  Status status = cpu::check_weighted(rows, more, kind);
  if (!status.ok()) return status;
  const View given[kWeightedViews] = {rows.x, rows.b, more[0], more[1], more[2]};
  std::int64_t strides[kWeightedViews][kMaxDims];
  View views[kWeightedViews];
  for (int k = 0; k < kWeightedViews; ++k) {
    const bool along = k < 2 || kind.along[k - 2];
    for (int d = 0; d < rows.ndim; ++d) strides[k][d] = given[k].data && (along || d + 1 < rows.ndim) ? given[k].strides[d] : 0;
    views[k] = {given[k].data, strides[k]};
  }
  RowViews<kWeightedViews> to;
  status = lay_rows(rows.ndim, rows.shape, rows.ndim - 1, views, to);
  if (!status.ok() || to.rows == 0) return status;
  return on_device(target, 0, [&](void*, cudaStream_t stream) {
    switch (rows.dtype) {
      case DType::f16: return gpu::WeightedRowsOf<gpu::f16>::run(what, to, stream);
      case DType::bf16: return gpu::WeightedRowsOf<gpu::bf16>::run(what, to, stream);
      case DType::f32: return gpu::WeightedRowsOf<float>::run(what, to, stream);
      default: return gpu::WeightedRowsOf<double>::run(what, to, stream);
    }
  });
}

}  // namespace

Status logmeanexp(const WeightedRows& rows, View count, View value, View sign, Target& target) noexcept {
  return run_weighted(Weighted::mean, rows, {count, value, sign}, cpu::kMeanOfRows, target);
}
Status weighted_logsumexp_vjp(const WeightedRows& rows, View g, View dx, View db, Target& target) noexcept {
  return run_weighted(Weighted::vjp, rows, {g, dx, db}, cpu::kVjpOfRows, target);
}
Status weighted_logsumexp_jvp(const WeightedRows& rows, View t, View tb, View out, Target& target) noexcept {
  return run_weighted(Weighted::jvp, rows, {t, tb, out}, cpu::kJvpOfRows, target);
}

}  // namespace sumexp::cuda
