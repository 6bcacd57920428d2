// sumexp::cuda::masked: its checks, its arrays as rows, and the way to the kernels of the dtype.
#include "masked.hpp"

#include <limits>

#include "../../cpu/ragged/masked_call.hpp"
#include "../../numerics/formats.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

namespace {

// The numbers of a gradient as the sinks of a row each; of a sink's, none lie along the axis.
Status lay_numbers(const MaskedCall& call, const View& gradient, int without, gpu::MaskedJob& job) {
  std::int64_t shape[kMaxDims + 1], strides[kMaxDims + 1];
  for (int d = 0; d < call.ndim; ++d) {
    strides[d] = gradient.strides[d];
    shape[d] = strides[d] == 0 || d == without ? 1 : call.shape[d];
  }
  shape[call.ndim] = 1, strides[call.ndim] = 0;
  View views[gpu::kMaskedViews];
  views[gpu::kMaskedDSink] = {gradient.data, strides};
  return lay_rows(call.ndim + 1, shape, call.ndim, views, job.views);
}

// No row adds to the gradients of bias and sink.
template <class Rows>
Status clear_gradients(const MaskedCall& call, int axis, Target& target) {
  gpu::MaskedJob jobs[2] = {};
  int count = 0;
  for (const View* gradient : {&call.dbias, &call.dsink}) {
    if (!gradient->data) continue;
    const Status status = lay_numbers(call, *gradient, gradient == &call.dsink ? axis : -1, jobs[count++]);
    if (!status.ok()) return status;
  }
  return on_device(target, 0, [&](void*, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int k = 0; k < count && error == cudaSuccess; ++k) error = Rows::clear_sinks(jobs[k], stream);
    return error;
  });
}

}  // namespace

Status masked(const MaskedCall& call, Target& target) noexcept {
  Status status = cpu::check_masked(call);
  if (!status.ok()) return status;
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  const View views[] = {call.x, call.g, call.where, call.lengths, call.bias, call.sink, call.out, call.dbias, call.dsink};
  gpu::MaskedJob job = {};
  status = lay_rows(call.ndim, call.shape, axis, views, job.views);
  const bool back = cpu::is_vjp(call);
  if (!status.ok() || (job.views.rows == 0 && !back)) return status;
  if (job.views.n == 0 && call.op != Op::logsumexp && !back) return status;
  int last = call.ndim - 1;
  if (last == axis) --last;
  job.limits = {job.views.n, last < 0 ? 1 : call.shape[last], call.causal_offset, call.causal};
  job.scale = gpu::masked_scale(call.dtype, call.temperature, call.softcap);
  job.absent = gpu::masked_absent<double>(call.op);
  job.nothing = call.empty == Empty::nan ? std::numeric_limits<double>::quiet_NaN() : job.absent;
  const auto with = [&](auto rows) {
    using Rows = decltype(rows);
    if (job.views.rows == 0) return clear_gradients<Rows>(call, axis, target);
    return on_device(target, Rows::workspace(call, job),
                     [&](void* workspace, cudaStream_t stream) { return Rows::run(call, job, workspace, stream); });
  };
  switch (call.dtype) {
    case DType::f16: return with(gpu::MaskedRows<gpu::f16>{});
    case DType::bf16: return with(gpu::MaskedRows<gpu::bf16>{});
    case DType::f32: return with(gpu::MaskedRows<float>{});
    default: return with(gpu::MaskedRows<double>{});
  }
}

}  // namespace sumexp::cuda
