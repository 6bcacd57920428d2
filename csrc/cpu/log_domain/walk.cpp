#include "walk.hpp"

#include <algorithm>

namespace sumexp::cpu {

void Walk::add(std::int64_t n, const std::int64_t* strides) {
  size *= n;
  if (n == 1) return;
  extent[ndim] = n;
  for (int k = 0; k < operands; ++k) stride[k][ndim] = strides[k];
  ++ndim;
}

void Walk::arrange() {
  const int last = operands - 1;
  const auto size_of = [&](int d) { return stride[last][d] < 0 ? -stride[last][d] : stride[last][d]; };
  for (int i = 1; i < ndim; ++i)  // few of them, mostly in order
    for (int d = i; d > 0 && size_of(d - 1) < size_of(d); --d) {
      std::swap(extent[d - 1], extent[d]);
      for (int k = 0; k < operands; ++k) std::swap(stride[k][d - 1], stride[k][d]);
    }
  int kept = 0;
  for (int d = 1; d < ndim; ++d) {
    bool alike = true;
    for (int k = 0; k < operands; ++k) alike = alike && stride[k][kept] == stride[k][d] * extent[d];
    if (alike) {
      extent[kept] *= extent[d];
    } else {
      extent[++kept] = extent[d];
    }
    for (int k = 0; k < operands; ++k) stride[k][kept] = stride[k][d];
  }
  if (ndim > 0) ndim = kept + 1;
}

std::int64_t Walk::offset(int k, std::int64_t place) const {
  std::int64_t bytes = 0;
  for (int d = ndim - 1; d >= 0; --d) {
    bytes += place % extent[d] * stride[k][d];
    place /= extent[d];
  }
  return bytes;
}

bool is_dtype(DType dtype) { return static_cast<unsigned>(dtype) < 4; }

Status check_shape(DType dtype, int ndim, const std::int64_t* shape) {
  if (!is_dtype(dtype))
    return fail(Code::invalid_argument, "dtype: got %d; accepted are 0 to 3 (f16, bf16, f32, f64)", static_cast<int>(dtype));
  if (ndim < 0 || ndim > kMaxDims) return fail(Code::invalid_argument, "ndim: got %d; accepted are 0 to %d", ndim, kMaxDims);
  if (ndim > 0 && !shape) return fail(Code::invalid_argument, "shape: got nullptr; accepted are %d sizes", ndim);
  long double size = 1;
  for (int d = 0; d < ndim; ++d) {
    if (shape[d] < 0)
      return fail(Code::invalid_argument, "shape[%d]: got %lld; accepted are sizes from 0", d, (long long)shape[d]);
    size *= static_cast<long double>(shape[d] ? shape[d] : 1);
  }
  if (size > 0x1p62L) return fail(Code::invalid_argument, "shape: got more than 2^62 elements; accepted are fewer");
  return Status{};
}

}  // namespace sumexp::cpu
