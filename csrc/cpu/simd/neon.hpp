// The vocabulary for AArch64 Advanced SIMD, as every ARMv8-A core has it. See csrc/README.md for what each
// word means. FMAX propagates NaN, which the vocabulary does not: maxima are compare and select. FPCR is
// left alone.
#pragma once

#include <arm_neon.h>

#include "../../numerics/formats.hpp"
#include "../../numerics/wide.hpp"

#define SUMEXP_REGISTERS 1  // a vector is a machine register

namespace sumexp::SUMEXP_NS {

struct F32 {
  using T = float;
  static constexpr int W = 4;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 2;
  static constexpr int kMaskBits = 16;  // of bits(mask), a lane
  using Mask = uint32x4_t;              // lanes of all ones or all zeros
  float32x4_t v;
  F32() = default;
  SUMEXP_FN F32(float32x4_t x) : v(x) {}
  SUMEXP_FN explicit F32(float x) : v(vdupq_n_f32(x)) {}

  static SUMEXP_FN F32 load(const float* p) { return vld1q_f32(p); }
  static SUMEXP_FN F32 load_part(const float* p, int n, float fill) {
    float part[W] = {fill, fill, fill, fill};
    for (int i = 0; i < n; ++i) memcpy(part + i, p + i, sizeof(T));
    return vld1q_f32(part);
  }
  static SUMEXP_FN void store(float* p, F32 x) { vst1q_f32(p, x.v); }
  static SUMEXP_FN void store_part(float* p, F32 x, int n) {
    float part[W];
    vst1q_f32(part, x.v);
    for (int i = 0; i < n; ++i) memcpy(p + i, part + i, sizeof(T));
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, F32 x) {
    store(p, x);
  }

  static SUMEXP_FN F32 load(const f16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static SUMEXP_FN F32 load(const bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static SUMEXP_FN void store(f16* p, F32 x) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x.v)));
  }
  static SUMEXP_FN void store(bf16* p, F32 x) {
    const uint32x4_t i = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(i, 16), vdupq_n_u32(1));
    const uint32x4_t r = vaddq_u32(i, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t h = vbslq_u32(vceqq_f32(x.v, x.v), r, vdupq_n_u32(0x7fc00000));
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(h, 16));
  }
};

struct F64 {
  using T = double;
  static constexpr int W = 2;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 2;
  static constexpr int kMaskBits = 32;  // of bits(mask), a lane
  using Mask = uint64x2_t;
  float64x2_t v;
  F64() = default;
  SUMEXP_FN F64(float64x2_t x) : v(x) {}
  SUMEXP_FN explicit F64(double x) : v(vdupq_n_f64(x)) {}

  static SUMEXP_FN F64 load(const double* p) { return vld1q_f64(p); }
  static SUMEXP_FN F64 load_part(const double* p, int n, double fill) {
    double part[W] = {fill, fill};
    for (int i = 0; i < n; ++i) memcpy(part + i, p + i, sizeof(T));
    return vld1q_f64(part);
  }
  static SUMEXP_FN void store(double* p, F64 x) { vst1q_f64(p, x.v); }
  static SUMEXP_FN void store_part(double* p, F64 x, int n) {
    double part[W];
    vst1q_f64(part, x.v);
    for (int i = 0; i < n; ++i) memcpy(p + i, part + i, sizeof(T));
  }
  static SUMEXP_FN void stream(double* p, F64 x) { vst1q_f64(p, x.v); }
};

SUMEXP_FN F32 operator+(F32 a, F32 b) { return vaddq_f32(a.v, b.v); }
SUMEXP_FN F32 operator-(F32 a, F32 b) { return vsubq_f32(a.v, b.v); }
SUMEXP_FN F32 operator*(F32 a, F32 b) { return vmulq_f32(a.v, b.v); }
SUMEXP_FN F32 operator/(F32 a, F32 b) { return vdivq_f32(a.v, b.v); }
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c.v, a.v, b.v); }
SUMEXP_FN F32 larger(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v); }
SUMEXP_FN F32 at_least(F32 floor, F32 x) { return vbslq_f32(vcltq_f32(x.v, floor.v), floor.v, x.v); }
SUMEXP_FN F32 pow2_field(F32 t) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t.v), 23)); }
SUMEXP_FN uint32x4_t equal(F32 a, F32 b) { return vceqq_f32(a.v, b.v); }
SUMEXP_FN uint32x4_t unordered(F32 a) { return vmvnq_u32(vceqq_f32(a.v, a.v)); }
SUMEXP_FN uint32x4_t at_or_above(F32 a, F32 b) { return vcgeq_f32(a.v, b.v); }
SUMEXP_FN F32 clear(uint32x4_t m, F32 x) { return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.v), m)); }
SUMEXP_FN F32 pick(uint32x4_t m, F32 a, F32 b) { return vbslq_f32(m, a.v, b.v); }
SUMEXP_FN F32 quiet(F32 x) { return vbslq_f32(vceqq_f32(x.v, x.v), x.v, vdupq_n_f32(Limits<float>::nan())); }
SUMEXP_FN int count(uint32x4_t m) { return static_cast<int>(vaddvq_u32(vshrq_n_u32(m, 31))); }
SUMEXP_FN bool any(uint32x4_t m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(uint32x4_t m) { return vget_lane_u64(vreinterpret_u64_u16(vmovn_u32(m)), 0); }
SUMEXP_FN float largest(F32 x) {
  const F32 m = larger(x, F32(vextq_f32(x.v, x.v, 2)));
  return vgetq_lane_f32(larger(m, F32(vextq_f32(m.v, m.v, 1))).v, 0);
}

SUMEXP_FN F64 operator+(F64 a, F64 b) { return vaddq_f64(a.v, b.v); }
SUMEXP_FN F64 operator-(F64 a, F64 b) { return vsubq_f64(a.v, b.v); }
SUMEXP_FN F64 operator*(F64 a, F64 b) { return vmulq_f64(a.v, b.v); }
SUMEXP_FN F64 operator/(F64 a, F64 b) { return vdivq_f64(a.v, b.v); }
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return vfmaq_f64(c.v, a.v, b.v); }
SUMEXP_FN F64 larger(F64 a, F64 b) { return vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v); }
SUMEXP_FN F64 at_least(F64 floor, F64 x) { return vbslq_f64(vcltq_f64(x.v, floor.v), floor.v, x.v); }
SUMEXP_FN F64 pow2_field(F64 t) { return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(t.v), 52)); }
SUMEXP_FN uint64x2_t equal(F64 a, F64 b) { return vceqq_f64(a.v, b.v); }
SUMEXP_FN uint64x2_t unordered(F64 a) { return vreinterpretq_u64_u32(vmvnq_u32(vreinterpretq_u32_u64(vceqq_f64(a.v, a.v)))); }
SUMEXP_FN uint64x2_t at_or_above(F64 a, F64 b) { return vcgeq_f64(a.v, b.v); }
SUMEXP_FN F64 clear(uint64x2_t m, F64 x) { return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(x.v), m)); }
SUMEXP_FN F64 pick(uint64x2_t m, F64 a, F64 b) { return vbslq_f64(m, a.v, b.v); }
SUMEXP_FN F64 quiet(F64 x) { return vbslq_f64(vceqq_f64(x.v, x.v), x.v, vdupq_n_f64(Limits<double>::nan())); }
SUMEXP_FN int count(uint64x2_t m) { return static_cast<int>(vaddvq_u64(vshrq_n_u64(m, 63))); }
SUMEXP_FN bool any(uint64x2_t m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(uint64x2_t m) { return vget_lane_u64(vreinterpret_u64_u32(vmovn_u64(m)), 0); }
SUMEXP_FN double largest(F64 x) { return vgetq_lane_f64(larger(x, F64(vextq_f64(x.v, x.v, 1))).v, 0); }
SUMEXP_FN double lane0(F64 x) { return vgetq_lane_f64(x.v, 0); }
template <int h>
SUMEXP_FN F64 slide_down(F64 x) {  // lane i < h takes lane i + h
  static_assert(h == 1);
  return vextq_f64(x.v, x.v, 1);
}
SUMEXP_FN F64 exponent_split(F64 z, F64& k) {
  const uint64x2_t half = vdupq_n_u64(0x3fe6a09e667f3bcd);
  const uint64x2_t i = vaddq_u64(vreinterpretq_u64_f64(z.v), vsubq_u64(vdupq_n_u64(0x3ff0000000000000), half));
  k = F64(vcvtq_f64_s64(vsubq_s64(vreinterpretq_s64_u64(vshrq_n_u64(i, 52)), vdupq_n_s64(1023))));
  return vreinterpretq_f64_u64(vaddq_u64(vandq_u64(i, vdupq_n_u64(0x000fffffffffffff)), half));
}

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = Twin<F64>;
  static SUMEXP_FN W from(F32 v) { return {F64(vcvt_f64_f32(vget_low_f32(v.v))), F64(vcvt_high_f64_f32(v.v))}; }
  static SUMEXP_FN W from(F32 a, F32 b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return {F64(d), F64(d)}; }
  static SUMEXP_FN W scaled(W w, double d) { return {w.a * F64(d), w.b * F64(d)}; }
  static SUMEXP_FN F32 narrow(W w) { return vcvt_high_f32_f64(vcvt_f32_f64(w.a.v), w.b.v); }
  static SUMEXP_FN void split(W w, F32& h, F32& l) {
    h = narrow(w);
    const W back = from(h);
    l = narrow({w.a - back.a, w.b - back.b});
  }
};

template <int h>
SUMEXP_FN void halves(F32 a, F32 b, F32& low, F32& high) {
  const float64x2_t x = vreinterpretq_f64_f32(a.v), y = vreinterpretq_f64_f32(b.v);
  if constexpr (h == 2) low = vreinterpretq_f32_f64(vtrn1q_f64(x, y)), high = vreinterpretq_f32_f64(vtrn2q_f64(x, y));
  if constexpr (h == 1) low = vuzp1q_f32(a.v, b.v), high = vuzp2q_f32(a.v, b.v);
}
template <int h>
SUMEXP_FN void halves(F64 a, F64 b, F64& low, F64& high) {
  static_assert(h == 1);
  low = vtrn1q_f64(a.v, b.v), high = vtrn2q_f64(a.v, b.v);
}

// r[i] lane j <-> r[j] lane i
SUMEXP_FN void transpose(F32 (&r)[4]) {
  const auto pd = [](float32x4_t x) { return vreinterpretq_f64_f32(x); };
  const auto ps = [](float64x2_t x) { return F32(vreinterpretq_f32_f64(x)); };
  const float64x2_t a = pd(vtrn1q_f32(r[0].v, r[1].v)), b = pd(vtrn2q_f32(r[0].v, r[1].v));
  const float64x2_t c = pd(vtrn1q_f32(r[2].v, r[3].v)), d = pd(vtrn2q_f32(r[2].v, r[3].v));
  r[0] = ps(vtrn1q_f64(a, c)), r[2] = ps(vtrn2q_f64(a, c));
  r[1] = ps(vtrn1q_f64(b, d)), r[3] = ps(vtrn2q_f64(b, d));
}
SUMEXP_FN void transpose(F64 (&r)[2]) {
  const float64x2_t a = vtrn1q_f64(r[0].v, r[1].v), b = vtrn2q_f64(r[0].v, r[1].v);
  r[0] = a, r[1] = b;
}

}  // namespace sumexp::SUMEXP_NS
