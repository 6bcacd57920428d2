// The vocabulary for AVX-512 (F, BW, DQ, VL); csrc/README.md lists its words.
#pragma once

#include <immintrin.h>

#include "../../numerics/formats.hpp"
#include "../../numerics/wide.hpp"

#define SUMEXP_REGISTERS 1  // a vector is a machine register

namespace sumexp::SUMEXP_NS {

struct F32 {
  using T = float;
  static constexpr int W = 16;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 2;
  static constexpr int kMaskBits = 1;  // of bits(mask), a lane
  using Mask = __mmask16;
  __m512 v;
  F32() = default;
  SUMEXP_FN F32(__m512 x) : v(x) {}
  SUMEXP_FN explicit F32(float x) : v(_mm512_set1_ps(x)) {}

  static SUMEXP_FN Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }
  static SUMEXP_FN F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static SUMEXP_FN F32 load_part(const float* p, int n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
  }
  static SUMEXP_FN void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
  static SUMEXP_FN void store_part(float* p, F32 x, int n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
  static SUMEXP_FN void stream(float* p, F32 x) { _mm512_stream_ps(p, x.v); }

  static SUMEXP_FN F32 load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static SUMEXP_FN F32 load(const bf16* p) {
    const __m512i h = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i k = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, _mm512_slli_epi32(k, 16), h));
  }
  static SUMEXP_FN __m256i narrow(F32 x, f16*) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }
  // Round to nearest even by integer arithmetic: VCVTNEPS2BF16 would flush subnormals.
  static SUMEXP_FN __m256i narrow(F32 x, bf16*) {
    const __m512i i = _mm512_castps_si512(x.v);
    const __mmask16 odd = _mm512_test_epi32_mask(i, _mm512_set1_epi32(0x10000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    __m512i r = _mm512_add_epi32(i, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_sub_epi32(r, odd, r, _mm512_set1_epi32(-1));
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
    const __m512i high_halves =
        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015, 0x130011, 0xf000d, 0xb0009, 0x70005, 0x30001);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(high_halves, r));
  }
  template <class S>
  static SUMEXP_FN void store(S* p, F32 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x, p));
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, F32 x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(x, p));
  }
};

struct F64 {
  using T = double;
  static constexpr int W = 8;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 2;
  static constexpr int kMaskBits = 1;  // of bits(mask), a lane
  using Mask = __mmask8;
  __m512d v;
  F64() = default;
  SUMEXP_FN F64(__m512d x) : v(x) {}
  SUMEXP_FN explicit F64(double x) : v(_mm512_set1_pd(x)) {}

  static SUMEXP_FN Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }
  static SUMEXP_FN F64 load(const double* p) { return _mm512_loadu_pd(p); }
  static SUMEXP_FN F64 load_part(const double* p, int n, double fill) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), first(n), p);
  }
  static SUMEXP_FN void store(double* p, F64 x) { _mm512_storeu_pd(p, x.v); }
  static SUMEXP_FN void store_part(double* p, F64 x, int n) { _mm512_mask_storeu_pd(p, first(n), x.v); }
  static SUMEXP_FN void stream(double* p, F64 x) { _mm512_stream_pd(p, x.v); }
};

SUMEXP_FN F32 operator+(F32 a, F32 b) { return _mm512_add_ps(a.v, b.v); }
SUMEXP_FN F32 operator-(F32 a, F32 b) { return _mm512_sub_ps(a.v, b.v); }
SUMEXP_FN F32 operator*(F32 a, F32 b) { return _mm512_mul_ps(a.v, b.v); }
SUMEXP_FN F32 operator/(F32 a, F32 b) { return _mm512_div_ps(a.v, b.v); }
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
SUMEXP_FN F32 larger(F32 a, F32 b) { return _mm512_max_ps(a.v, b.v); }
SUMEXP_FN F32 at_least(F32 floor, F32 x) { return _mm512_max_ps(floor.v, x.v); }  // 2nd operand on NaN
SUMEXP_FN F32 pow2_field(F32 t) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23)); }
SUMEXP_FN __mmask16 equal(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
SUMEXP_FN __mmask16 unordered(F32 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
SUMEXP_FN __mmask16 at_or_above(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
SUMEXP_FN F32 clear(__mmask16 m, F32 x) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(~m), x.v); }
SUMEXP_FN F32 pick(__mmask16 m, F32 a, F32 b) { return _mm512_mask_mov_ps(b.v, m, a.v); }
SUMEXP_FN F32 quiet(F32 x) { return _mm512_mask_mov_ps(x.v, unordered(x), _mm512_set1_ps(Limits<float>::nan())); }
SUMEXP_FN int count(__mmask16 m) { return __builtin_popcount(m); }
SUMEXP_FN bool any(__mmask16 m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(__mmask16 m) { return m; }
SUMEXP_FN float largest(F32 x) { return _mm512_reduce_max_ps(x.v); }

SUMEXP_FN F64 operator+(F64 a, F64 b) { return _mm512_add_pd(a.v, b.v); }
SUMEXP_FN F64 operator-(F64 a, F64 b) { return _mm512_sub_pd(a.v, b.v); }
SUMEXP_FN F64 operator*(F64 a, F64 b) { return _mm512_mul_pd(a.v, b.v); }
SUMEXP_FN F64 operator/(F64 a, F64 b) { return _mm512_div_pd(a.v, b.v); }
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
SUMEXP_FN F64 larger(F64 a, F64 b) { return _mm512_max_pd(a.v, b.v); }
SUMEXP_FN F64 at_least(F64 floor, F64 x) { return _mm512_max_pd(floor.v, x.v); }
SUMEXP_FN F64 pow2_field(F64 t) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t.v), 52)); }
SUMEXP_FN __mmask8 equal(F64 a, F64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
SUMEXP_FN __mmask8 unordered(F64 a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q); }
SUMEXP_FN __mmask8 at_or_above(F64 a, F64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ); }
SUMEXP_FN F64 clear(__mmask8 m, F64 x) { return _mm512_maskz_mov_pd(static_cast<__mmask8>(~m), x.v); }
SUMEXP_FN F64 pick(__mmask8 m, F64 a, F64 b) { return _mm512_mask_mov_pd(b.v, m, a.v); }
SUMEXP_FN F64 quiet(F64 x) { return _mm512_mask_mov_pd(x.v, unordered(x), _mm512_set1_pd(Limits<double>::nan())); }
SUMEXP_FN int count(__mmask8 m) { return __builtin_popcount(m); }
SUMEXP_FN bool any(__mmask8 m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(__mmask8 m) { return m; }
SUMEXP_FN double largest(F64 x) { return _mm512_reduce_max_pd(x.v); }
SUMEXP_FN double lane0(F64 x) { return _mm512_cvtsd_f64(x.v); }
template <int h>
SUMEXP_FN F64 slide_down(F64 x) {  // lane i takes lane i + h
  if constexpr (h == 4) return _mm512_shuffle_f64x2(x.v, x.v, 0x4e);
  if constexpr (h == 2) return _mm512_shuffle_f64x2(x.v, x.v, 0xb1);
  if constexpr (h == 1) return _mm512_permute_pd(x.v, 0x55);
}
SUMEXP_FN F64 exponent_split(F64 z, F64& k) {
  const __m512i one = _mm512_set1_epi64(0x3ff0000000000000), half = _mm512_set1_epi64(0x3fe6a09e667f3bcd);
  const __m512i i = _mm512_add_epi64(_mm512_castpd_si512(z.v), _mm512_sub_epi64(one, half));
  k = F64(_mm512_cvtepi64_pd(_mm512_sub_epi64(_mm512_srli_epi64(i, 52), _mm512_set1_epi64(1023))));
  const __m512i m = _mm512_and_si512(i, _mm512_set1_epi64(0x000fffffffffffff));
  return _mm512_castsi512_pd(_mm512_add_epi64(m, half));
}

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = Twin<F64>;
  static SUMEXP_FN W from(F32 v) {
    return {F64(_mm512_cvtps_pd(_mm512_castps512_ps256(v.v))), F64(_mm512_cvtps_pd(_mm512_extractf32x8_ps(v.v, 1)))};
  }
  static SUMEXP_FN W from(F32 a, F32 b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return {F64(d), F64(d)}; }
  static SUMEXP_FN W scaled(W w, double d) { return {w.a * F64(d), w.b * F64(d)}; }
  static SUMEXP_FN F32 narrow(W w) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(w.a.v)), _mm512_cvtpd_ps(w.b.v), 1);
  }
  static SUMEXP_FN void split(W w, F32& h, F32& l) {
    h = narrow(w);
    const W back = from(h);
    l = narrow({w.a - back.a, w.b - back.b});
  }
};

template <int h>
SUMEXP_FN void halves(F32 a, F32 b, F32& low, F32& high) {
  const __m512d x = _mm512_castps_pd(a.v), y = _mm512_castps_pd(b.v);
  if constexpr (h == 8) low = _mm512_shuffle_f32x4(a.v, b.v, 0x44), high = _mm512_shuffle_f32x4(a.v, b.v, 0xee);
  if constexpr (h == 4) low = _mm512_shuffle_f32x4(a.v, b.v, 0x88), high = _mm512_shuffle_f32x4(a.v, b.v, 0xdd);
  if constexpr (h == 2) low = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), high = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
  if constexpr (h == 1) low = _mm512_shuffle_ps(a.v, b.v, 0x88), high = _mm512_shuffle_ps(a.v, b.v, 0xdd);
}
template <int h>
SUMEXP_FN void halves(F64 a, F64 b, F64& low, F64& high) {
  if constexpr (h == 4) low = _mm512_shuffle_f64x2(a.v, b.v, 0x44), high = _mm512_shuffle_f64x2(a.v, b.v, 0xee);
  if constexpr (h == 2) low = _mm512_shuffle_f64x2(a.v, b.v, 0x88), high = _mm512_shuffle_f64x2(a.v, b.v, 0xdd);
  if constexpr (h == 1) low = _mm512_unpacklo_pd(a.v, b.v), high = _mm512_unpackhi_pd(a.v, b.v);
}

// r[i] lane j <-> r[j] lane i
SUMEXP_FN void transpose(F32 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto pd = [&](int k) { return _mm512_castps_pd(t[i + k]); };
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(0), pd(2)));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(0), pd(2)));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(1), pd(3)));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(1), pd(3)));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(u[j], u[j + 4], 0x88), b = _mm512_shuffle_f32x4(u[j], u[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0x88), d = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0xdd);
    r[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}
SUMEXP_FN void transpose(F64 (&r)[8]) {
  __m512d t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_pd(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_pd(r[i].v, r[i + 1].v);
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512d a = _mm512_shuffle_f64x2(t[j], t[j + 2], 0x88), b = _mm512_shuffle_f64x2(t[j], t[j + 2], 0xdd);
    const __m512d c = _mm512_shuffle_f64x2(t[j + 4], t[j + 6], 0x88), d = _mm512_shuffle_f64x2(t[j + 4], t[j + 6], 0xdd);
    r[j] = _mm512_shuffle_f64x2(a, c, 0x88);
    r[j + 2] = _mm512_shuffle_f64x2(b, d, 0x88);
    r[j + 4] = _mm512_shuffle_f64x2(a, c, 0xdd);
    r[j + 6] = _mm512_shuffle_f64x2(b, d, 0xdd);
  }
}

}  // namespace sumexp::SUMEXP_NS
