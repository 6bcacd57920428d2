// The vocabulary in which the definition is written, and its meaning for plain float and double.
//
// numerics/ and ops/ are templates over a value type V. V is float or double (a CUDA thread, the scalar
// parts of a driver) or a SIMD vector of them (csrc/cpu/simd/*.hpp). Beside + - * / and construction from
// its element, a V has these functions, each the same on every lane and every machine:
//
//   fma(a, b, c)          a*b + c, rounded once
//   at_least(floor, x)    x < floor ? floor : x; a NaN in x survives (as any NaN; -0 and +0 may stand for each other)
//   pow2_field(t)         bits(t) << (mantissa bits): the low bits of t become sign and exponent
//   equal(a, b)           a mask; false where either is NaN
//   at_or_above(a, b)     a mask, a >= b; false where either is NaN
//   clear(mask, v)        +0 where the mask is set, v elsewhere
//   any(mask)             is it set anywhere?
//   pick(mask, a, b)      a where the mask is set, b elsewhere
//
// and, for doubles only, exponent_split(z, k): z*2^-k in [sqrt(1/2), sqrt(2)) and the integer k.
#pragma once

#include <cmath>

#include "platform.hpp"

namespace sumexp::SUMEXP_NS {

// What a value type is made of: Lanes<V>::T, the element. SIMD types specialise through V::T.
template <class V>
struct Lanes {
  using T = typename V::T;
};
template <>
struct Lanes<float> {
  using T = float;
};
template <>
struct Lanes<double> {
  using T = double;
};
template <class V>
using ElementOf = typename Lanes<V>::T;

SUMEXP_FN float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
SUMEXP_FN double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

SUMEXP_FN float at_least(float floor, float x) {
#if defined(__CUDA_ARCH__)
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(floor));  // one instruction in place of two
  return x;
#else
  return x < floor ? floor : x;
#endif
}
SUMEXP_FN double at_least(double floor, double x) { return x < floor ? floor : x; }

SUMEXP_FN float pow2_field(float t) { return bit_cast<float>(bit_cast<std::uint32_t>(t) << 23); }
SUMEXP_FN double pow2_field(double t) { return bit_cast<double>(bit_cast<std::uint64_t>(t) << 52); }

SUMEXP_FN bool equal(float a, float b) { return a == b; }
SUMEXP_FN bool equal(double a, double b) { return a == b; }
SUMEXP_FN bool at_or_above(float a, float b) { return a >= b; }
SUMEXP_FN bool at_or_above(double a, double b) { return a >= b; }
SUMEXP_FN bool any(bool mask) { return mask; }
SUMEXP_FN float clear(bool mask, float v) { return mask ? 0.0f : v; }
SUMEXP_FN double clear(bool mask, double v) { return mask ? 0.0 : v; }
SUMEXP_FN float pick(bool mask, float a, float b) { return mask ? a : b; }
SUMEXP_FN double pick(bool mask, double a, double b) { return mask ? a : b; }

SUMEXP_FN double exponent_split(double z, double& k) {
  constexpr std::uint64_t one = 0x3ff0000000000000u, sqrt_half = 0x3fe6a09e667f3bcdu;
  const std::uint64_t i = bit_cast<std::uint64_t>(z) + (one - sqrt_half);
  k = static_cast<double>(static_cast<std::int64_t>(i >> 52) - 1023);
  return bit_cast<double>((i & 0x000fffffffffffffu) + sqrt_half);
}

// -- scalar helpers that vectors never need ------------------------------------------------------------

// 2^e as a T, for any e that T can represent, subnormal powers included; 0 below, +inf above.
template <class T>
SUMEXP_FN T pow2(std::int64_t e);
template <>
SUMEXP_FN float pow2<float>(std::int64_t e) {
  if (e < -126) return e < -149 ? 0.0f : bit_cast<float>(std::uint32_t(1) << (e + 149));
  return bit_cast<float>(static_cast<std::uint32_t>(e > 127 ? 255 : e + 127) << 23);
}
template <>
SUMEXP_FN double pow2<double>(std::int64_t e) {
  if (e < -1022) return e < -1074 ? 0.0 : bit_cast<double>(std::uint64_t(1) << (e + 1074));
  return bit_cast<double>(static_cast<std::uint64_t>(e > 1023 ? 2047 : e + 1023) << 52);
}

// The nearest integer, ties to even, for |x| < 2^51, by the magic addition that every machine shares.
SUMEXP_FN double nearest_integer(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + magic) - magic;
}

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float infinity = __builtin_inff();
  SUMEXP_FN static float nan() { return bit_cast<float>(0x7fc00000u); }  // the one NaN ever written
};
template <>
struct Limits<double> {
  static constexpr double infinity = __builtin_inf();
  SUMEXP_FN static double nan() { return bit_cast<double>(std::uint64_t(0x7ff8000000000000u)); }
};
template <class T>
SUMEXP_FN bool is_finite(T x) {
  return x - x == T(0);
}
// The one NaN, whatever arithmetic made it.
SUMEXP_FN float quiet(float x) { return x == x ? x : Limits<float>::nan(); }
SUMEXP_FN double quiet(double x) { return x == x ? x : Limits<double>::nan(); }

}  // namespace sumexp::SUMEXP_NS
