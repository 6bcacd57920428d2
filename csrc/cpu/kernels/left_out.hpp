// Elements that a mask leaves out become a value that no result can tell from their absence. No branches: masks are hard to
// guess, and a wrong guess costs more than ten elements.
#pragma once

#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// Numbers that the compiler makes vectors of: a block of known size, with nothing that may be the same memory.
template <int kBlock, class T>
SUMEXP_FN std::int64_t leave_out_blocks(const unsigned char* __restrict mask, std::int64_t i, std::int64_t count, T value,
                                        T* __restrict x) {
  for (; i + kBlock <= count; i += kBlock)
    for (int j = 0; j < kBlock; ++j) x[i + j] = mask[i + j] ? x[i + j] : value;
  return i;
}
// Of `count` elements x, with their bytes of the mask `stride` apart.
template <class T>
void leave_out_masked(const char* at, std::int64_t stride, std::int64_t count, T value, T* x) {
  const auto* const mask = reinterpret_cast<const unsigned char*>(at);
  std::int64_t i = 0;
  if (stride == 1) {
    i = leave_out_blocks<64>(mask, i, count, value, x);
    i = leave_out_blocks<16>(mask, i, count, value, x);
  }
  for (; i < count; ++i) x[i] = mask[i * stride] ? x[i] : value;
}

}  // namespace sumexp::SUMEXP_NS
