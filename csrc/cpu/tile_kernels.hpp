// Short rows: a tile is V::W rows, transposed, so that a vector holds one element of every row and each lane
// follows its own row through the very same definition. With at most one lane row (n <= kLanes) every lane
// of the geometry holds one element, and the sum is the fold alone.
//
// `run` is one function for all storage types of V. A kernel returns false, having written nothing, when a row of the tile is special (a maximum that is not
// finite or needs an anchor, a NaN); the row driver then takes these rows.
#pragma once

#include "kernels.hpp"

namespace sumexp::SUMEXP_NS {

template <class V>
struct TileParams {
  V row_input;     // logsumexp_vjp: g
  V factor;        // of 1/T
};

// Steps 2 and 3 of the geometry over element j's contributions body(acc, j).
template <class V, int kSums, class Body, class Widen>
SUMEXP_FN void tile_fold(int n, Body body, Widen widen) {
  using G = Geometry<ElementOf<V>>;
  for (int i = 0; i < G::kGroup && i < n; ++i) {
    V column[G::kColumns][kSums];
    int columns = 0;
    for (int j = i; j < n; j += G::kGroup) body(column[columns++], j);
    for (; columns > 1; columns = (columns + 1) / 2) {
      for (int k = 0; k < columns / 2; ++k)
#pragma GCC unroll 2
        for (int a = 0; a < kSums; ++a) column[k][a] = column[2 * k][a] + column[2 * k + 1][a];
      if (columns & 1)
        for (int a = 0; a < kSums; ++a) column[columns / 2][a] = column[columns - 1][a];
    }
    widen(i, column[0]);
  }
}
template <class W, int kGroup>
SUMEXP_FN W tile_fold_members(int n, W (&member)[kGroup]) {
  int count = n < kGroup ? n : kGroup;
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

// Terms of elements below `limit` (all if !kExclude), relative to 2^N; kStore leaves them in x.
template <class V, bool kExclude, bool kStore>
SUMEXP_FN Wide<V> tile_sum_terms(V* x, int n, V N, V limit, V& excluded) {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  const Reduction<V> reduce = reduction_to(N);
  const V one = V(T(1)), zero = V(T(0));
  Wide<V> member[G::kGroup];
  V left_out = zero;
  tile_fold<V, 2>(
      n,
      [&](V* acc, int j) {
        ExpParts<V> e = exp_parts(x[j], reduce);
        if constexpr (kExclude) {
          const auto out = at_or_above(x[j], limit);
          left_out = left_out + pick(out, one, zero);
          e.s = clear(out, e.s);
        }
        const V rounded = term(e);
        acc[0] = V(TermSum<V>::kStart), acc[1] = zero;
        TermSum<V>::accumulate(acc[0], acc[1], e, rounded);
        acc[0] = acc[0] - V(TermSum<V>::kStart);
        if constexpr (kStore) x[j] = rounded;
      },
      [&](int i, const V* acc) { member[i] = WideOf<V>::from(acc[0], acc[1]); });
  excluded = left_out;
  return tile_fold_members(n, member);
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
SUMEXP_FN F32 tile_head(Twin<F64> w) { return WideOf<F32>::narrow(w); }
SUMEXP_FN F64 tile_head(DD<F64> w) { return w.hi; }

template <class V, bool kExclude, bool kStore>
SUMEXP_FN bool tile_state(V* x, int n, TileState<V>& state) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  V m = x[0];
  for (int j = 1; j < n; ++j) m = larger(x[j], m);
  if (out_of_direct_range(m)) return false;
  const V N = exponent_of(m);
  V counted;
  state = {m, N, O::constant(0), tile_sum_terms<V, kExclude, kStore>(x, n, N, m, counted)};
  const V head = tile_head(O::scaled(state.R, kCarryDown<T>));
  if (count(unordered(head))) return false;
  if constexpr (kExclude) {
    state.c = O::from(counted);
    // the second look, for the lanes that need it
    const V zero = V(T(0)), one = V(T(1));
    const auto enough = at_or_above(head, V(T(0x1p-8)));
    const V R_full = tile_head(state.R);
    const V needs = pick(enough, zero, pick(equal(R_full, zero), zero, one));
    if (count(equal(needs, one))) {
      const V lowest = V(-Limits<T>::infinity);
      V next = lowest;
      for (int j = 0; j < n; ++j) next = larger(pick(at_or_above(x[j], m), lowest, x[j]), next);
      next = pick(equal(needs, one), next, m);
      if (out_of_direct_range(next)) return false;
      const V below = exponent_of(next);
      const Wide<V> R = tile_sum_terms<V, true, false>(x, n, below, m, counted);
      state.R = tile_pick(O::from(needs), tile_shifted(R, O::from(below - N)), state.R);
    }
  }
  return true;
}

// -- one per op: in[k][j] element j of the tile's rows, out[j] (may be in[0]); row outputs in out[0] --------

template <class V>
struct SoftmaxTile {
  using T = ElementOf<V>;
  static constexpr int kInputs = 1;
  static constexpr bool kRowOutput = false;
  template <class Last>
  static SUMEXP_FN bool apply(V* x, int n, V* out, Last last) {
    TileState<V> state;
    if (!tile_state<V, false, true>(x, n, state)) return false;
    using O = WideOf<V>;
    const Wide<V> inverse = O::constant(kCarryUp<T>) / state.R;
    V h, l;
    O::split(inverse, h, l);
    const V step = V(static_cast<T>(kCarryDown<T>));
    h = h * step, l = l * step;
    const V top = tile_head(inverse * exp_wide(remainder_wide(O::from(state.m), O::from(state.N))));
    const V top_term = term(exp_parts(state.m, reduction_to(state.N)));
    for (int j = 0; j < n; ++j) out[j] = last(probability(x[j], h, l, top_term, top));
    return true;
  }
  static bool run(V* const* in, int n, V* out, const TileParams<V>&) {
    return apply(in[0], n, out, [](V y) { return y; });
  }
};

template <class V>
struct LogSumExpVjpTile : SoftmaxTile<V> {
  static bool run(V* const* in, int n, V* out, const TileParams<V>& params) {
    return SoftmaxTile<V>::apply(in[0], n, out, [&](V y) { return quiet(y * params.row_input); });
  }
};

template <class V>
SUMEXP_FN Wide<V> tile_log_over_max(const TileState<V>& state) {
  using O = WideOf<V>;
  return log_over_max<V>(state.c, state.R, remainder_wide(O::from(state.m), O::from(state.N)));
}

template <class V>
struct LogSoftmaxTile {
  static constexpr int kInputs = 1;
  static constexpr bool kRowOutput = false;
  static bool run(V* const* in, int n, V* out, const TileParams<V>&) {
    TileState<V> state;
    if (!tile_state<V, true, false>(in[0], n, state)) return false;
    const V L = tile_head(tile_log_over_max(state));
    for (int j = 0; j < n; ++j) out[j] = log_probability(in[0][j], state.m, L);
    return true;
  }
};

SUMEXP_FN F32 plus_narrow(F32 m, Twin<F64> L) { return WideOf<F32>::narrow(WideOf<F32>::from(m) + L); }
SUMEXP_FN F64 plus_narrow(F64 m, DD<F64> L) {
  const DD<F64> sum = two_sum(m, L.hi);
  return sum.hi + (sum.lo + L.lo);
}

template <class V>
struct LogSumExpTile {
  static constexpr int kInputs = 1;
  static constexpr bool kRowOutput = true;
  static bool run(V* const* in, int n, V* out, const TileParams<V>&) {
    TileState<V> state;
    if (!tile_state<V, true, false>(in[0], n, state)) return false;
    out[0] = plus_narrow(state.m, tile_log_over_max(state));
    return true;
  }
};

template <class V, class Op>
struct SumsTile {
  using T = ElementOf<V>;
  static constexpr int kInputs = Op::kInputs;
  static constexpr bool kRowOutput = false;

  template <int pass>
  static SUMEXP_FN void reduce(V* const* in, int n, RowScalars<V>& row) {
    using G = Geometry<T>;
    Wide<V> member[Op::kSums][G::kGroup];
    tile_fold<V, Op::kSums>(
        n,
        [&](V* acc, int j) {
          V v[kInputs];
          for (int k = 0; k < kInputs; ++k) v[k] = in[k][j];
          for (int a = 0; a < Op::kSums; ++a) acc[a] = V(T(0));
          Op::template add<pass>(acc, v, row);
        },
        [&](int i, const V* acc) {
          for (int a = 0; a < Op::kSums; ++a) member[a][i] = WideOf<V>::from(acc[a]);
        });
    for (int a = 0; a < Op::kSums && pass * Op::kSums + a < RowScalars<V>::kMax; ++a)
      WideOf<V>::split(tile_fold_members(n, member[a]), row.h[pass * Op::kSums + a], row.l[pass * Op::kSums + a]);
  }
  static bool run(V* const* in, int n, V* out, const TileParams<V>& params) {
    RowScalars<V> row;
    reduce<0>(in, n, row);
    if constexpr (Op::kPasses > 1) reduce<1>(in, n, row);
    for (int j = 0; j < n; ++j) {
      V v[kInputs];
      for (int k = 0; k < kInputs; ++k) v[k] = in[k][j];
      out[j] = quiet(Op::map(v, row) * params.factor);
    }
    return true;
  }
};

}  // namespace sumexp::SUMEXP_NS
