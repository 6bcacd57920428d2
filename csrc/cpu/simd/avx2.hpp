// The vocabulary for AVX2 with FMA and F16C. See csrc/README.md for what each word means.
#pragma once

#include <immintrin.h>

#include "../../numerics/formats.hpp"
#include "../../numerics/wide.hpp"

#define SUMEXP_REGISTERS 1  // a vector is a machine register

namespace sumexp::SUMEXP_NS {

// Masks are vectors of all-ones and all-zeros lanes; types of their own, so that no mask turns into a value.
struct Mask32 {
  __m256 v;
};
struct Mask64 {
  __m256d v;
};

// +0, as the compiler sees: that is what a masked load puts beyond its n by itself.
template <class T>
SUMEXP_FN bool is_known_zero(T fill) {
  return __builtin_constant_p(fill) && fill == T(0) && !__builtin_signbit(fill);
}

struct F32 {
  using T = float;
  static constexpr int W = 8;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 1;
  static constexpr int kMaskBits = 1;  // of bits(mask), a lane
  using Mask = Mask32;
  __m256 v;
  F32() = default;
  SUMEXP_FN F32(__m256 x) : v(x) {}
  SUMEXP_FN explicit F32(float x) : v(_mm256_set1_ps(x)) {}

  static SUMEXP_FN Mask first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane))};
  }
  static SUMEXP_FN F32 load(const float* p) { return _mm256_loadu_ps(p); }
  static SUMEXP_FN F32 load_part(const float* p, int n, float fill) {
    const __m256 m = first(n).v, loaded = _mm256_maskload_ps(p, _mm256_castps_si256(m));
    if (is_known_zero(fill)) return loaded;
    return _mm256_blendv_ps(_mm256_set1_ps(fill), loaded, m);
  }
  static SUMEXP_FN void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
  static SUMEXP_FN void store_part(float* p, F32 x, int n) { _mm256_maskstore_ps(p, _mm256_castps_si256(first(n).v), x.v); }
  static SUMEXP_FN void stream(float* p, F32 x) { _mm256_stream_ps(p, x.v); }

  static SUMEXP_FN F32 load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static SUMEXP_FN F32 load(const bf16* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static SUMEXP_FN __m128i narrow(F32 x, f16*) { return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }
  static SUMEXP_FN __m128i narrow(F32 x, bf16*) {
    const __m256i i = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(i, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(i, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  }
  template <class S>
  static SUMEXP_FN void store(S* p, F32 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x, p));
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, F32 x) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(x, p));
  }
};

struct F64 {
  using T = double;
  static constexpr int W = 4;
  static constexpr bool kRegister = true;
  static constexpr int kUnroll = 1;
  static constexpr int kMaskBits = 1;  // of bits(mask), a lane
  using Mask = Mask64;
  __m256d v;
  F64() = default;
  SUMEXP_FN F64(__m256d x) : v(x) {}
  SUMEXP_FN explicit F64(double x) : v(_mm256_set1_pd(x)) {}

  static SUMEXP_FN Mask first(int n) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return {_mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane))};
  }
  static SUMEXP_FN F64 load(const double* p) { return _mm256_loadu_pd(p); }
  static SUMEXP_FN F64 load_part(const double* p, int n, double fill) {
    const __m256d m = first(n).v, loaded = _mm256_maskload_pd(p, _mm256_castpd_si256(m));
    if (is_known_zero(fill)) return loaded;
    return _mm256_blendv_pd(_mm256_set1_pd(fill), loaded, m);
  }
  static SUMEXP_FN void store(double* p, F64 x) { _mm256_storeu_pd(p, x.v); }
  static SUMEXP_FN void store_part(double* p, F64 x, int n) { _mm256_maskstore_pd(p, _mm256_castpd_si256(first(n).v), x.v); }
  static SUMEXP_FN void stream(double* p, F64 x) { _mm256_stream_pd(p, x.v); }
};

SUMEXP_FN F32 operator+(F32 a, F32 b) { return _mm256_add_ps(a.v, b.v); }
SUMEXP_FN F32 operator-(F32 a, F32 b) { return _mm256_sub_ps(a.v, b.v); }
SUMEXP_FN F32 operator*(F32 a, F32 b) { return _mm256_mul_ps(a.v, b.v); }
SUMEXP_FN F32 operator/(F32 a, F32 b) { return _mm256_div_ps(a.v, b.v); }
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
SUMEXP_FN F32 larger(F32 a, F32 b) { return _mm256_max_ps(a.v, b.v); }
SUMEXP_FN F32 at_least(F32 floor, F32 x) { return _mm256_max_ps(floor.v, x.v); }  // 2nd operand on NaN
SUMEXP_FN F32 pow2_field(F32 t) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.v), 23)); }
SUMEXP_FN Mask32 equal(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
SUMEXP_FN Mask32 unordered(F32 a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
SUMEXP_FN Mask32 at_or_above(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
SUMEXP_FN F32 clear(Mask32 m, F32 x) { return _mm256_andnot_ps(m.v, x.v); }
SUMEXP_FN F32 pick(Mask32 m, F32 a, F32 b) { return _mm256_blendv_ps(b.v, a.v, m.v); }
SUMEXP_FN F32 quiet(F32 x) { return _mm256_blendv_ps(x.v, _mm256_set1_ps(Limits<float>::nan()), unordered(x).v); }
SUMEXP_FN int count(Mask32 m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(m.v))); }
SUMEXP_FN bool any(Mask32 m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(Mask32 m) { return static_cast<unsigned>(_mm256_movemask_ps(m.v)); }
SUMEXP_FN float largest(F32 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ps(m, _mm_shuffle_ps(m, m, 0x55)));
}

SUMEXP_FN F64 operator+(F64 a, F64 b) { return _mm256_add_pd(a.v, b.v); }
SUMEXP_FN F64 operator-(F64 a, F64 b) { return _mm256_sub_pd(a.v, b.v); }
SUMEXP_FN F64 operator*(F64 a, F64 b) { return _mm256_mul_pd(a.v, b.v); }
SUMEXP_FN F64 operator/(F64 a, F64 b) { return _mm256_div_pd(a.v, b.v); }
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
SUMEXP_FN F64 larger(F64 a, F64 b) { return _mm256_max_pd(a.v, b.v); }
SUMEXP_FN F64 at_least(F64 floor, F64 x) { return _mm256_max_pd(floor.v, x.v); }
SUMEXP_FN F64 pow2_field(F64 t) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t.v), 52)); }
SUMEXP_FN Mask64 equal(F64 a, F64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
SUMEXP_FN Mask64 unordered(F64 a) { return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)}; }
SUMEXP_FN Mask64 at_or_above(F64 a, F64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)}; }
SUMEXP_FN F64 clear(Mask64 m, F64 x) { return _mm256_andnot_pd(m.v, x.v); }
SUMEXP_FN F64 pick(Mask64 m, F64 a, F64 b) { return _mm256_blendv_pd(b.v, a.v, m.v); }
SUMEXP_FN F64 quiet(F64 x) { return _mm256_blendv_pd(x.v, _mm256_set1_pd(Limits<double>::nan()), unordered(x).v); }
SUMEXP_FN int count(Mask64 m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_pd(m.v))); }
SUMEXP_FN bool any(Mask64 m) { return count(m) != 0; }
SUMEXP_FN std::uint64_t bits(Mask64 m) { return static_cast<unsigned>(_mm256_movemask_pd(m.v)); }
SUMEXP_FN double largest(F64 x) {
  const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
SUMEXP_FN double lane0(F64 x) { return _mm256_cvtsd_f64(x.v); }
template <int h>
SUMEXP_FN F64 slide_down(F64 x) {  // lane i < h takes lane i + h
  if constexpr (h == 2) return _mm256_permute2f128_pd(x.v, x.v, 0x01);
  if constexpr (h == 1) return _mm256_permute_pd(x.v, 0x5);
}
SUMEXP_FN F64 exponent_split(F64 z, F64& k) {
  const __m256i one = _mm256_set1_epi64x(0x3ff0000000000000), half = _mm256_set1_epi64x(0x3fe6a09e667f3bcd);
  const __m256i i = _mm256_add_epi64(_mm256_castpd_si256(z.v), _mm256_sub_epi64(one, half));
  // There is no conversion from 64-bit integers: the 12 bits become the last of 2^52 + k + 1023.
  const __m256i field = _mm256_or_si256(_mm256_srli_epi64(i, 52), _mm256_castpd_si256(_mm256_set1_pd(0x1p52)));
  k = F64(_mm256_sub_pd(_mm256_castsi256_pd(field), _mm256_set1_pd(0x1p52 + 1023)));
  const __m256i m = _mm256_and_si256(i, _mm256_set1_epi64x(0x000fffffffffffff));
  return _mm256_castsi256_pd(_mm256_add_epi64(m, half));
}

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = Twin<F64>;
  static SUMEXP_FN W from(F32 v) {
    return {F64(_mm256_cvtps_pd(_mm256_castps256_ps128(v.v))), F64(_mm256_cvtps_pd(_mm256_extractf128_ps(v.v, 1)))};
  }
  static SUMEXP_FN W from(F32 a, F32 b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return {F64(d), F64(d)}; }
  static SUMEXP_FN W scaled(W w, double d) { return {w.a * F64(d), w.b * F64(d)}; }
  static SUMEXP_FN F32 narrow(W w) { return _mm256_set_m128(_mm256_cvtpd_ps(w.b.v), _mm256_cvtpd_ps(w.a.v)); }
  static SUMEXP_FN void split(W w, F32& h, F32& l) {
    h = narrow(w);
    const W back = from(h);
    l = narrow({w.a - back.a, w.b - back.b});
  }
};

template <int h>
SUMEXP_FN void halves(F32 a, F32 b, F32& low, F32& high) {
  const __m256d x = _mm256_castps_pd(a.v), y = _mm256_castps_pd(b.v);
  if constexpr (h == 4) low = _mm256_permute2f128_ps(a.v, b.v, 0x20), high = _mm256_permute2f128_ps(a.v, b.v, 0x31);
  if constexpr (h == 2) low = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), high = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
  if constexpr (h == 1) low = _mm256_shuffle_ps(a.v, b.v, 0x88), high = _mm256_shuffle_ps(a.v, b.v, 0xdd);
}
template <int h>
SUMEXP_FN void halves(F64 a, F64 b, F64& low, F64& high) {
  if constexpr (h == 2) low = _mm256_permute2f128_pd(a.v, b.v, 0x20), high = _mm256_permute2f128_pd(a.v, b.v, 0x31);
  if constexpr (h == 1) low = _mm256_unpacklo_pd(a.v, b.v), high = _mm256_unpackhi_pd(a.v, b.v);
}

// r[i] lane j <-> r[j] lane i
SUMEXP_FN void transpose(F32 (&r)[8]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m256 u[8];  // u[j], u[j + 4]: lanes j and j + 4 of the first and of the last four rows
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x20);
    r[j + 4] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x31);
  }
}
SUMEXP_FN void transpose(F64 (&r)[4]) {
  const __m256d a = _mm256_unpacklo_pd(r[0].v, r[1].v), b = _mm256_unpackhi_pd(r[0].v, r[1].v);
  const __m256d c = _mm256_unpacklo_pd(r[2].v, r[3].v), d = _mm256_unpackhi_pd(r[2].v, r[3].v);
  r[0] = _mm256_permute2f128_pd(a, c, 0x20);
  r[1] = _mm256_permute2f128_pd(b, d, 0x20);
  r[2] = _mm256_permute2f128_pd(a, c, 0x31);
  r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

}  // namespace sumexp::SUMEXP_NS
