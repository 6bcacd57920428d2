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
  const int tiles = at.tiles, whole = at.whole_tiles(), rows_left = V::W - at.absent;
  const std::int64_t left = at.n - first - at.ahead, run = tiles * V::W * static_cast<std::int64_t>(sizeof(S));
  const char* from[kInputs];
  [[maybe_unused]] ElementOf<V> fill[kInputs];
  std::int64_t stride[kInputs], ahead[kInputs], ahead_of_next[kInputs];
  bool apart = false;
  for (int k = 0; k < kInputs; ++k) {
    stride[k] = at.stride[k0 + k];
    fill[k] = k0 + k == at.log ? -Limits<ElementOf<V>>::infinity : ElementOf<V>(0);
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
      for (int k = 0; k < kInputs; ++k) {
        const S* const x = reinterpret_cast<const S*>(from[k]) + t * V::W;
        if constexpr (std::is_same_v<S, ElementOf<V>>) v[k] = t < whole ? V::load(x) : V::load_part(x, rows_left, fill[k]);
        else v[k] = V::load(x);
      }
      body(j, t, v);
    }
    for (int k = 0; k < kInputs; ++k) from[k] += stride[k];
  }
}

// The results of such rows from element `first` on.
template <class V, class S>
class ColumnResults {
 public:
  SUMEXP_FN ColumnResults(const cpu::Columns& at, std::int64_t first)
      : stride_(at.stride[cpu::kOut]),
        to_(at.data[cpu::kOut] + first * stride_),
        whole_(at.whole_tiles()),
        rows_left_(V::W - at.absent),
        stream_(at.stream) {}
  SUMEXP_FN char* at(int j, int t) const { return to_ + j * stride_ + t * V::W * static_cast<std::int64_t>(sizeof(S)); }
  SUMEXP_FN void put(int j, int t, V x) const {
    if constexpr (std::is_same_v<S, ElementOf<V>>)
      if (t >= whole_) return V::store_part(reinterpret_cast<S*>(at(j, t)), x, rows_left_);
    put_vector<V, S>(at(j, t), x, stream_);
  }
  SUMEXP_FN int rows_of(int t) const { return t < whole_ ? V::W : rows_left_; }

 private:
  std::int64_t stride_;
  char* to_;
  int whole_, rows_left_;
  bool stream_;
};

}  // namespace sumexp::SUMEXP_NS
