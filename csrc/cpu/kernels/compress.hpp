// Compaction: the lanes of a vector that a mask picks, next to each other in memory. W elements from `to` on may be written.
#pragma once

#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// In registers: VCOMPRESSPS to memory takes over a hundred cycles on Zen 4.
#if defined(__AVX512F__)
SUMEXP_FN void compress(float* to, __mmask16 mask, F32 x) { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, x.v)); }
SUMEXP_FN void compress(double* to, __mmask8 mask, F64 x) { _mm512_storeu_pd(to, _mm512_maskz_compress_pd(mask, x.v)); }
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
