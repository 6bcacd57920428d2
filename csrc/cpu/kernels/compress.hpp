// Compaction: the lanes of a vector that a mask picks, next to each other in memory. W elements from `to` on may be written.
#pragma once

#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// In registers: VCOMPRESSPS to memory takes over a hundred cycles on Zen 4.
#if defined(__AVX512F__)
SUMEXP_FN void compress(float* to, __mmask16 mask, F32 x) { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, x.v)); }
SUMEXP_FN void compress(double* to, __mmask8 mask, F64 x) { _mm512_storeu_pd(to, _mm512_maskz_compress_pd(mask, x.v)); }
#elif defined(__AVX2__)
// Byte j of entry m: the lane of the j-th bit that is set in m.
struct LaneLists {
  std::uint64_t of[256];
  constexpr LaneLists() : of() {
    for (int m = 0; m < 256; ++m)
      for (int lane = 0, at = 0; lane < 8; ++lane)
        if (m >> lane & 1) of[m] |= static_cast<std::uint64_t>(lane) << (8 * at++);
  }
};
inline constexpr LaneLists kLaneLists;

SUMEXP_FN __m256 compressed(int mask, __m256 x) {
  return _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(kLaneLists.of[mask]))));
}
SUMEXP_FN void compress(float* to, Mask32 mask, F32 x) { _mm256_storeu_ps(to, compressed(_mm256_movemask_ps(mask.v), x.v)); }
SUMEXP_FN void compress(double* to, Mask64 mask, F64 x) {
  _mm256_storeu_pd(to, _mm256_castps_pd(compressed(_mm256_movemask_ps(_mm256_castpd_ps(mask.v)), _mm256_castpd_ps(x.v))));
}
#else
template <class V>
SUMEXP_FN void compress(ElementOf<V>* to, typename V::Mask mask, V x) {
  using T = ElementOf<V>;
  T value[V::W], wanted[V::W];
  V::store(value, x);
  V::store(wanted, pick(mask, V(T(1)), V(T(0))));
  int at = 0;
  for (int i = 0; i < V::W; ++i) {
    to[at] = value[i];
    at += wanted[i] != T(0);
  }
}
#endif

}  // namespace sumexp::SUMEXP_NS
