// A walk over rows that lie side by side: a vector is one element of V::W rows as it stands in memory.
#pragma once

#include "store.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

template <class V, class S>
inline constexpr int kMostTiles = static_cast<int>(cpu::kColumnRun) / (V::W * static_cast<int>(sizeof(S)));
template <class V, class S>
inline constexpr int kTilesInLine = cpu::kLineBytes / (V::W * sizeof(S)) > 1 ? cpu::kLineBytes / (V::W * sizeof(S)) : 1;

// body(j, t, inputs) for the `count` elements from `first` on, j counted from there, of inputs [k0, k1) of every tile t. What
// comes `ahead` elements later is prefetched, of these rows, then of the next; but where the elements are next to each other
// the hardware does it better.
template <class V, class S, int kInputs, class Body>
SUMEXP_FN void each_element(const cpu::Columns& at, int k0, std::int64_t first, int count, Body body) {
  const int tiles = at.tiles;
  const std::int64_t left = at.n - first - at.ahead, run = tiles * V::W * static_cast<std::int64_t>(sizeof(S));
  const char* from[kInputs];
  std::int64_t stride[kInputs], ahead[kInputs], ahead_of_next[kInputs];
  bool apart = false;
  for (int k = 0; k < kInputs; ++k) {
    stride[k] = at.stride[k0 + k];
    from[k] = at.data[k0 + k] + first * stride[k];
    ahead[k] = at.ahead * stride[k], ahead_of_next[k] = (at.ahead - at.n) * stride[k] + run;
    apart |= stride[k] > 2 * run || stride[k] < 0;
  }
  for (int j = 0; j < count; ++j) {
    if (apart)
      for (int k = 0; k < kInputs; ++k)
        for (int t = 0; t < tiles; t += kTilesInLine<V, S>)
          __builtin_prefetch(from[k] + (j < left ? ahead[k] : ahead_of_next[k]) + t * V::W * sizeof(S), 0, 2);
    for (int t = 0; t < tiles; ++t) {
      V v[kInputs];
      for (int k = 0; k < kInputs; ++k) v[k] = V::load(reinterpret_cast<const S*>(from[k]) + t * V::W);
      body(j, t, v);
    }
    for (int k = 0; k < kInputs; ++k) from[k] += stride[k];
  }
}

}  // namespace sumexp::SUMEXP_NS
