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

}  // namespace sumexp::cpu
