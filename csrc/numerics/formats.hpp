// The 16-bit storage formats and their conversions to and from float: exact up, one rounding to nearest
// even down, subnormals kept, NaN to the one quiet NaN. Integer arithmetic, so any machine agrees.
#pragma once

#include "platform.hpp"

namespace sumexp::SUMEXP_NS {

struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};

SUMEXP_FN float to_float(bf16 h) { return bit_cast<float>(static_cast<std::uint32_t>(h.bits) << 16); }

SUMEXP_FN float to_float(f16 h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | (magnitude << 13) | 0x7f800000u);
  // as a float this magnitude is 2^-112 too small; the product is exact, subnormals included
  const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(scaled));
}

SUMEXP_FN bf16 to_bf16(float x) {
  const std::uint32_t i = bit_cast<std::uint32_t>(x);
  if (x != x) return {0x7fc0};
  return {static_cast<std::uint16_t>((i + 0x7fffu + ((i >> 16) & 1u)) >> 16)};
}

SUMEXP_FN f16 to_f16(float x) {
  const std::uint32_t i = bit_cast<std::uint32_t>(x), a = i & 0x7fffffffu;
  const std::uint16_t sign = static_cast<std::uint16_t>((i >> 16) & 0x8000u);
  if (a > 0x7f800000u) return {0x7e00};
  if (a >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // >= 65520: infinity
  if (a < 0x38800000u) {  // below 2^-14: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
    const float y = bit_cast<float>(a) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (bit_cast<std::uint32_t>(y) - 0x3f000000u))};
  }
  const std::uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((r - 0x38000000u) >> 13))};
}

}  // namespace sumexp::SUMEXP_NS
