// sumexp::cuda::elementwise: the way to the kernels of the dtype.
#include "elementwise.hpp"

#include "../../numerics/formats.hpp"
#include "../on_device.hpp"

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

Status elementwise(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out,
                   Target& target) noexcept {
  cpu::ElementwiseArrays arrays = {};
  const Status status = cpu::lay_out(op, dtype, ndim, shape, in, out, arrays);
  if (!status.ok() || arrays.walk.size == 0) return status;
  return on_device(target, 0, [&](void*, cudaStream_t stream) {
    switch (dtype) {
      case DType::f16: return gpu::ElementwiseMap<gpu::f16>::run(op, arrays, stream);
      case DType::bf16: return gpu::ElementwiseMap<gpu::bf16>::run(op, arrays, stream);
      case DType::f32: return gpu::ElementwiseMap<float>::run(op, arrays, stream);
      default: return gpu::ElementwiseMap<double>::run(op, arrays, stream);
    }
  });
}

}  // namespace sumexp::cuda
