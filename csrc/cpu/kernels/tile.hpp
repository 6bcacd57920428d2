// Rows that go V::W at a time: lane b of a vector belongs to row b. The same definition as exp_chunk.hpp has for a row alone. A
// layout holds the elements of such rows, at most a chunk of each, and reduces them:
//
//   largest() -> V, largest_below(limit) -> V
//   sum_terms<Terms, kApart, kStore, kAll>(N, limit, counted, wanted) -> Wide<V>
//                                   as sum_term_lanes in exp_chunk.hpp; unless kAll, where wanted is 1
//   sums<Op, pass>(scalars)         the sums of an op of ops/sums.hpp
//
// Transposed (transposed.hpp) has element j of every row in one vector; PanelRows (panel.hpp) leaves rows where they are.
#pragma once

#include "../../ops/op.hpp"
#include "exp_chunk.hpp"
#include "sum_lanes.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::kTiles;

template <class W, int kGroup>
SUMEXP_FN W tile_fold_members(int n, W (&member)[kGroup]) {
  if (n >= kGroup) return fold_vectors(member);
  int count = n;
  for (int h = kGroup / 2; h > 0; h /= 2) {
    for (int i = 0; i + h < count; ++i) member[i] = member[i] + member[i + h];
    if (count > h) count = h;
  }
  return member[0];
}

template <class V>
struct TileState {
  V m, N;
  Wide<V> c, R;
};

template <class V>
SUMEXP_FN bool out_of_direct_range(V m) {
  const V limit = V(Format<ElementOf<V>>::direct);
  return (count(at_or_above(m, limit)) | count(at_or_above(V(ElementOf<V>(0)) - limit, m)) | count(unordered(m))) != 0;
}

SUMEXP_FN F64 tile_pow2(F64 e) { return pow2_field(F64(Format<double>::magic + Format<double>::bias) + e); }
SUMEXP_FN F64 tile_half(F64 e) {
  const F64 magic = F64(Format<double>::magic);
  return (fma(e, F64(0.5), magic)) - magic;
}
SUMEXP_FN Twin<F64> tile_shifted(Twin<F64> w, Twin<F64> gap) {
  return {w.a * tile_pow2(gap.a), w.b * tile_pow2(gap.b)};  // gap > -350: one step does
}
SUMEXP_FN DD<F64> tile_shifted(DD<F64> w, DD<F64> gap) {
  const F64 half = tile_half(gap.hi), a = tile_pow2(half), b = tile_pow2(gap.hi - half);
  return {w.hi * a * b, w.lo * a * b};
}
SUMEXP_FN Twin<F64> tile_pick(Twin<F64> flag, Twin<F64> x, Twin<F64> y) {  // x where flag > 0
  return {pick(equal(flag.a, F64(0.0)), y.a, x.a), pick(equal(flag.b, F64(0.0)), y.b, x.b)};
}
SUMEXP_FN DD<F64> tile_pick(DD<F64> flag, DD<F64> x, DD<F64> y) {
  const auto no = equal(flag.hi, F64(0.0));
  return {pick(no, y.hi, x.hi), pick(no, y.lo, x.lo)};
}
// lane b from w[b]
SUMEXP_FN Twin<F64> wide_lanes(const double* w) { return {F64::load(w), F64::load(w + F64::W)}; }
SUMEXP_FN DD<F64> wide_lanes(const DD<double>* w) {
  double hi[F64::W], lo[F64::W];
  for (int b = 0; b < F64::W; ++b) hi[b] = w[b].hi, lo[b] = w[b].lo;
  return {F64::load(hi), F64::load(lo)};
}
// and back
SUMEXP_FN void put_lanes(Twin<F64> w, double* to) { F64::store(to, w.a), F64::store(to + F64::W, w.b); }
SUMEXP_FN void put_lanes(DD<F64> w, DD<double>* to) {
  double hi[F64::W], lo[F64::W];
  F64::store(hi, w.hi), F64::store(lo, w.lo);
  for (int b = 0; b < F64::W; ++b) to[b] = {hi[b], lo[b]};
}
// lane b from value(b)
template <class V, class Value>
SUMEXP_FN V lanes_of(Value value) {
  ElementOf<V> lanes[V::W];
  for (int b = 0; b < V::W; ++b) lanes[b] = value(b);
  return V::load(lanes);
}
// head(w) - d, with the sign that it has in double
SUMEXP_FN F32 tile_head_over(Twin<F64> w, double d) { return WideOf<F32>::narrow({w.a - F64(d), w.b - F64(d)}); }
SUMEXP_FN F64 tile_head_over(DD<F64> w, double d) { return w.hi - F64(d); }

// The states of some tiles, stage by stage, so that the latencies of one hide behind the arithmetic of another.
template <class Terms, bool kApart, bool kStore, class V, class Layout>
SUMEXP_FN bool tile_states(Layout* rows, int tiles, TileState<V>* state) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  const V zero = V(T(0)), one = V(T(1));
  for (int t = 0; t < tiles; ++t) state[t].m = rows[t].largest();
  for (int t = 0; t < tiles; ++t) {
    if (out_of_direct_range(state[t].m)) return false;
    state[t].N = exponent_of(state[t].m);
  }
  V counted[kTiles];
  for (int t = 0; t < tiles; ++t)
    state[t].R = rows[t].template sum_terms<Terms, kApart, kStore, true>(state[t].N, state[t].m, counted[t], one);
  for (int t = 0; t < tiles; ++t) {
    TileState<V>& s = state[t];
    const Wide<V> others = O::scaled(s.R, kCarryDown<T>);
    const V head = WideOf<V>::narrow(others);
    if (!Layout::kToleratesNaN && count(unordered(head))) return false;
    s.c = O::constant(0);
    if constexpr (kApart) s.c = O::from(counted[t]);
    if constexpr (kApart && !Terms::kShort) {
      // for the lanes that need it (needs_refinement)
      V needs =
          pick(at_or_above(tile_head_over(others, 0x1p-8), zero), zero, pick(equal(WideOf<V>::narrow(s.R), zero), zero, one));
      needs = pick(unordered(head), zero, needs);
      if (count(equal(needs, one))) {
        const V next = pick(equal(needs, one), rows[t].largest_below(s.m), s.m);
        if (out_of_direct_range(next)) return false;
        const V below = exponent_of(next);
        const Wide<V> again = rows[t].template sum_terms<Terms, true, false, false>(below, s.m, counted[t], needs);
        s.R = tile_pick(O::from(needs), tile_shifted(again, O::from(below - s.N)), s.R);
      }
    }
  }
  return true;
}

// What an op's finish takes.
template <class V>
SUMEXP_FN RowSum<V> row_sum(const TileState<V>& state) {
  using O = WideOf<V>;
  return {state.m, state.c, state.R, remainder_wide(O::from(state.m), O::from(state.N))};
}
// NaN in the lanes of rows that hold one.
template <class V>
SUMEXP_FN V nan_of(const TileState<V>& state) {
  return WideOf<V>::narrow(state.R);
}

SUMEXP_FN F32 plus_narrow(F32 m, Twin<F64> L) { return WideOf<F32>::narrow(WideOf<F32>::from(m) + L); }
SUMEXP_FN F64 plus_narrow(F64 m, DD<F64> L) {
  const DD<F64> sum = two_sum(m, L.hi);
  return sum.hi + (sum.lo + L.lo);
}

// Sums of a pass, a in Wide<V>, to their places among the scalars.
template <class Op, int pass, class V>
SUMEXP_FN void place_sum(int a, Wide<V> sum, RowScalars<V>& row) {
  const int at = pass * Op::kSums + a;
  sum = sum + WideOf<V>::constant(0);  // no sum is -0
  if (at < RowScalars<V>::kMax) WideOf<V>::split(sum, row.h[at], row.l[at]);
}

}  // namespace sumexp::SUMEXP_NS
