// How the drivers of the log domain walk over strided arrays: the shape with dimensions merged that all operands walk alike.
#pragma once

#include <cstdint>

#include "../status.hpp"

namespace sumexp::cpu {

struct Walk {
  static constexpr int kMost = 6;  // operands
  int ndim = 0, operands = 0;
  std::int64_t size = 1;  // of all dimensions
  std::int64_t extent[kMaxDims], stride[kMost][kMaxDims];

  void add(std::int64_t n, const std::int64_t* strides);
  // Dimensions in the order of the last operand's strides, largest first; then those merged that can be.
  void arrange();
  // Bytes from the first element to the one with this place in the walk, for operand k.
  std::int64_t offset(int k, std::int64_t place) const;
};

}  // namespace sumexp::cpu
