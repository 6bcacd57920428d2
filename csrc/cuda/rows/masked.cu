// sumexp::cuda::masked: its checks, its arrays as rows, and the way to the kernels of the dtype.
#include "masked.hpp"

#include <limits>

#include "../../cpu/ragged/masked_call.hpp"
#include "../../numerics/formats.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

Status masked(const MaskedCall& call, Target& target) noexcept {
  Status status = cpu::check_masked(call);
  if (!status.ok()) return status;
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  const View views[] = {call.x, call.g, call.where, call.lengths, call.bias, call.sink, call.out, call.dbias, call.dsink};
  gpu::MaskedJob job = {};
  status = lay_rows(call.ndim, call.shape, axis, views, job.views);
  if (!status.ok() || job.views.rows == 0) return status;
  if (job.views.n == 0 && call.op != Op::logsumexp && !call.g.data) return status;
  int last = call.ndim - 1;
  if (last == axis) --last;
  job.limits = {job.views.n, last < 0 ? 1 : call.shape[last], call.causal_offset, call.causal};
  job.scale = gpu::masked_scale(call.dtype, call.temperature, call.softcap);
  job.absent = gpu::masked_absent<double>(call.op);
  job.nothing = call.empty == Empty::nan ? std::numeric_limits<double>::quiet_NaN() : job.absent;
  const auto with = [&](auto rows) {
    using Rows = decltype(rows);
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
