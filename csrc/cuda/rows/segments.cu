// sumexp::cuda::segments: its checks, its workspace, and the way to the kernels of the dtype.
#include "segments.hpp"

#include <limits>

#include "../../cpu/plan.hpp"
#include "../../cpu/ragged/segments.hpp"
#include "../../numerics/formats.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

Status segments(const SegmentsCall& call, Target& target) noexcept {
  const Status status = cpu::check_segments(call);
  if (!status.ok() || call.segments == 0 || call.features == 0) return status;
  const cpu::OpInfo& info = cpu::op_info(call.op);
  SegmentsJob job = {};
  job.offsets = call.offsets;
  job.elements = call.elements, job.features = call.features, job.segments = call.segments;
  const View* const views[] = {&call.in[0], &call.in[1], &call.out};
  for (int k = 0; k < 3; ++k) {
    if (k == 1 && info.inputs == 1 && info.row_input < 0) continue;
    job.data[k] = static_cast<char*>(views[k]->data);
    for (int d = 0; d < 2; ++d) job.stride[k][d] = views[k]->strides[d];
  }
  job.empty = call.op == Op::logsumexp ? -std::numeric_limits<double>::infinity() : 0.0;
  const std::int64_t share = call.segments * call.features / 8192;  // warps that a large GPU keeps busy
  job.together = int(share < 1 ? 1 : share < arch::lane_count ? share : arch::lane_count);
  const auto with = [&](auto kernels) {
    using Kernels = decltype(kernels);
    return on_device(target, Kernels::workspace(call.op, job),
                     [&](void* workspace, cudaStream_t stream) { return Kernels::run(call.op, job, workspace, stream); });
  };
  switch (call.dtype) {
    case DType::f16: return with(gpu::SegmentRows<gpu::f16>{});
    case DType::bf16: return with(gpu::SegmentRows<gpu::bf16>{});
    case DType::f32: return with(gpu::SegmentRows<float>{});
    default: return with(gpu::SegmentRows<double>{});
  }
}

}  // namespace sumexp::cuda
