// k vectors as one: each operation is done for all of them, so that the latency of one hides behind the others. Two
// took exp and exact sum of an AVX-512 vector from 15.7 to 14.8 cycles (Zen 4, 2026-11; the FMA ports alone need 13); four,
// or two with the 16 registers of AVX2, spill. V::kUnroll is how many an instruction set takes.
//
// The words are those that bodies of lane_reduce (kernels/lanes.hpp) need, each with its meaning for one vector.
#pragma once

#include "../../numerics/vocabulary.hpp"

namespace sumexp::SUMEXP_NS {

template <class V, int k>
struct Unrolled {
  using T = ElementOf<V>;
  using Member = V;
  static constexpr int kCount = k, W = k * V::W;
  V at[k];

  Unrolled() = default;
  SUMEXP_FN explicit Unrolled(T x) : Unrolled(V(x)) {}
  SUMEXP_FN explicit Unrolled(V x) {
#pragma GCC unroll 4
    for (int j = 0; j < k; ++j) at[j] = x;
  }
};
template <class V, int k>
struct UnrolledMask {
  typename V::Mask at[k];
};

// member j from f(j)
template <class V, int k, class F>
SUMEXP_FN Unrolled<V, k> each(F f) {
  Unrolled<V, k> x;
#pragma GCC unroll 4
  for (int j = 0; j < k; ++j) x.at[j] = f(j);
  return x;
}

template <class V, int k>
SUMEXP_FN Unrolled<V, k> operator+(const Unrolled<V, k>& a, const Unrolled<V, k>& b) {
  return each<V, k>([&](int j) { return a.at[j] + b.at[j]; });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> operator-(const Unrolled<V, k>& a, const Unrolled<V, k>& b) {
  return each<V, k>([&](int j) { return a.at[j] - b.at[j]; });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> operator*(const Unrolled<V, k>& a, const Unrolled<V, k>& b) {
  return each<V, k>([&](int j) { return a.at[j] * b.at[j]; });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> fma(const Unrolled<V, k>& a, const Unrolled<V, k>& b, const Unrolled<V, k>& c) {
  return each<V, k>([&](int j) { return fma(a.at[j], b.at[j], c.at[j]); });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> at_least(const Unrolled<V, k>& floor, const Unrolled<V, k>& x) {
  return each<V, k>([&](int j) { return at_least(floor.at[j], x.at[j]); });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> pow2_field(const Unrolled<V, k>& t) {
  return each<V, k>([&](int j) { return pow2_field(t.at[j]); });
}
template <class V, int k>
SUMEXP_FN Unrolled<V, k> clear(const UnrolledMask<V, k>& mask, const Unrolled<V, k>& v) {
  return each<V, k>([&](int j) { return clear(mask.at[j], v.at[j]); });
}
template <class V, int k>
SUMEXP_FN UnrolledMask<V, k> at_or_above(const Unrolled<V, k>& a, const Unrolled<V, k>& b) {
  UnrolledMask<V, k> mask;
#pragma GCC unroll 4
  for (int j = 0; j < k; ++j) mask.at[j] = at_or_above(a.at[j], b.at[j]);
  return mask;
}
template <class V, int k>
SUMEXP_FN int count(const UnrolledMask<V, k>& mask) {
  int set = 0;
#pragma GCC unroll 4
  for (int j = 0; j < k; ++j) set += count(mask.at[j]);
  return set;
}
template <class V, int k>
SUMEXP_FN bool any(const UnrolledMask<V, k>& mask) {
  bool set = false;
#pragma GCC unroll 4
  for (int j = 0; j < k; ++j) set |= any(mask.at[j]);
  return set;
}

}  // namespace sumexp::SUMEXP_NS
