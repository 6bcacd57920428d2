// Operations on a tile: V::W rows of at most one chunk, taken together, so that lane b of a vector belongs to row
// b; the same definition as kernels.hpp has for a row alone. A layout holds the tile's elements and reduces them:
//
//   largest() -> V, largest_below(limit) -> V
//   sum_terms<Terms, kExclude, kStore, kAll>(N, limit, excluded, wanted) -> Wide<V>
//                                   as sum_terms in exp_chunk.hpp; unless kAll, where wanted is 1
//   sums<Op, pass>(scalars)         the sums of an op of ops/sums.hpp
//
// Transposed (transposed.hpp) has element j of every row in one vector; Panel (panel.hpp) leaves rows where they
// are. An operation is
//
//   kInputs, kTerms, kRowOutput     as in kernels.hpp
//   reduce(layouts, tiles, params, rows)
//                                   fills a Row for each tile; false, with nothing written to memory, where a row is
//                                   special (a maximum that is not finite or needs an anchor; a NaN, where the layout
//                                   does not tolerate it): the row driver then takes these rows
//   map(v, row), or emit(row)       one element from its inputs (kTerms: from its term), or one value a row
//   witness(row)                    NaN in the lanes whose results are all NaN
//   Op                              an op of ops/sums.hpp; void for those on exponentials
//
// and for rows of many chunks, whose states merge one by one (columns.hpp):
//
//   chunk_states<kKeepTerms>(layout, m, states)
//                                   the states of a chunk's rows, and their maxima; false as above (not of Op)
//   chunk_row(rows, m, g)           what map needs for a chunk with these maxima, from the finished rows
#pragma once

#include "kernels.hpp"

namespace sumexp::SUMEXP_NS {

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
SUMEXP_FN F32 tile_head(Twin<F64> w) { return WideOf<F32>::narrow(w); }
SUMEXP_FN F64 tile_head(DD<F64> w) { return w.hi; }
// head(w) - d, with the sign that it has in double
SUMEXP_FN F32 tile_head_over(Twin<F64> w, double d) { return WideOf<F32>::narrow({w.a - F64(d), w.b - F64(d)}); }
SUMEXP_FN F64 tile_head_over(DD<F64> w, double d) { return w.hi - F64(d); }

// Up to kTiles tiles are taken together; of rows up to kShortRow it pays, to hide the latencies of each.
inline constexpr int kTiles = 4, kShortRow = 64;

template <class V>
struct TileParams {
  V row_input[kTiles];  // logsumexp_vjp: g
  V factor;             // of 1/T
};

// The states of some tiles, stage by stage, so that the latencies of one hide behind the arithmetic of another.
template <class Terms, bool kExclude, bool kStore, class V, class Layout>
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
    state[t].R = rows[t].template sum_terms<Terms, kExclude, kStore, true>(state[t].N, state[t].m, counted[t], one);
  for (int t = 0; t < tiles; ++t) {
    TileState<V>& s = state[t];
    const Wide<V> others = O::scaled(s.R, kCarryDown<T>);
    const V head = tile_head(others);
    if (!Layout::kToleratesNaN && count(unordered(head))) return false;
    s.c = O::constant(0);
    if constexpr (kExclude) s.c = O::from(counted[t]);
    if constexpr (kExclude && !Terms::kShort) {
      // the second look, for the lanes that need it (needs_second_look)
      V needs = pick(at_or_above(tile_head_over(others, 0x1p-8), zero), zero, pick(equal(tile_head(s.R), zero), zero, one));
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

template <class V>
SUMEXP_FN Wide<V> tile_log_over_max(const TileState<V>& state) {
  using O = WideOf<V>;
  return log_over_max<V>(state.c, state.R, remainder_wide(O::from(state.m), O::from(state.N)));
}
// y, or NaN in the lanes of rows that hold one (of which log1p makes a number)
template <class V>
SUMEXP_FN V or_nan(const TileState<V>& state, V y) {
  return pick(unordered(tile_head(state.R)), V(Limits<ElementOf<V>>::nan()), y);
}

// The states of one tile's rows, one by one.
template <class Terms, bool kExclude, bool kStore, class V, class Layout>
SUMEXP_FN bool lane_states(Layout& rows, V& m, ExpState<ElementOf<V>>* to) {
  using T = ElementOf<V>;
  TileState<V> state;
  if (!tile_states<Terms, kExclude, kStore>(&rows, 1, &state)) return false;
  m = state.m;
  T maximum[V::W], N[V::W];
  Wide<T> c[V::W], R[V::W];
  V::store(maximum, m), V::store(N, state.N), put_lanes(state.c, c), put_lanes(state.R, R);
  for (int b = 0; b < V::W; ++b) to[b] = {maximum[b], static_cast<std::int64_t>(N[b]), c[b], R[b]};
  return true;
}

// -- one per op ---------------------------------------------------------------------------------------------

template <class V, class Terms>
struct SoftmaxTile {
  using T = ElementOf<V>;
  using Op = void;
  static constexpr int kInputs = 1;
  static constexpr bool kTerms = true, kRowOutput = false;
  struct Row {
    V h, l, top_term, top, g;  // g: logsumexp_vjp
  };
  template <class Layout>
  static SUMEXP_FN bool reduce(Layout* rows, int tiles, const TileParams<V>& params, Row* row) {
    using O = WideOf<V>;
    TileState<V> state[kTiles];
    if (!tile_states<Terms, false, true>(rows, tiles, state)) return false;
    for (int t = 0; t < tiles; ++t) {
      const Wide<V> inverse = O::constant(kCarryUp<T>) / state[t].R;
      O::split(inverse, row[t].h, row[t].l);
      if constexpr (Terms::kShort) {
        row[t].h = row[t].h * V(static_cast<T>(kCarryDown<T>));
        row[t].top = row[t].top_term = V(T(0));
      } else {
        const V m = state[t].m, N = state[t].N;
        row[t].top = tile_head(inverse * exp_wide(remainder_wide(O::from(m), O::from(N))));
        row[t].top_term = Terms::term(Terms::parts(m, reduction_to(N)));
      }
      row[t].g = params.row_input[t];
    }
    return true;
  }
  static SUMEXP_FN V map(const V* v, const Row& row) { return probability<Terms>(v[0], row.h, row.l, row.top_term, row.top); }
  static SUMEXP_FN V witness(const Row& row) { return row.h; }

  // A chunk far below its row's maximum (TermScale) has a scale of its own.
  struct ChunkRow : Row {
    bool any_far;
    V near, before, after;
  };
  template <bool kKeepTerms, class Layout>
  static SUMEXP_FN bool chunk_states(Layout& rows, V& m, ExpState<T>* to) {
    return lane_states<Terms, false, kKeepTerms>(rows, m, to);
  }
  static SUMEXP_FN ChunkRow chunk_row(const SoftmaxRow<T>* rows, V m, V g) {
    T maximum[V::W];
    V::store(maximum, m);
    TermScale<T> scale[V::W];
    ChunkRow row;
    row.any_far = false;
    for (int b = 0; b < V::W; ++b) {
      scale[b] = term_scale<Terms>(rows[b], maximum[b]);
      row.any_far |= scale[b].far;
    }
    row.h = lanes_of<V>([&](int b) { return scale[b].h; });
    row.l = lanes_of<V>([&](int b) { return scale[b].l; });
    row.top_term = lanes_of<V>([&](int b) { return scale[b].top_term; });
    row.top = lanes_of<V>([&](int b) { return scale[b].top; });
    row.g = g;
    row.near = lanes_of<V>([&](int b) { return T(scale[b].far ? 0 : 1); });
    row.before = lanes_of<V>([&](int b) { return scale[b].before; });
    row.after = lanes_of<V>([&](int b) { return scale[b].after; });
    return row;
  }
  static SUMEXP_FN V map(const V* v, const ChunkRow& row) {
    const V y = map(v, static_cast<const Row&>(row));
    if (!row.any_far) return y;
    return pick(equal(row.near, V(T(1))), y, probability_far(v[0], row.h, row.l, row.before, row.after));
  }
};

template <class V, class Terms>
struct LogSumExpVjpTile : SoftmaxTile<V, Terms> {
  static SUMEXP_FN V map(const V* v, const typename SoftmaxTile<V, Terms>::Row& row) {
    return quiet(SoftmaxTile<V, Terms>::map(v, row) * row.g);
  }
  static SUMEXP_FN V map(const V* v, const typename SoftmaxTile<V, Terms>::ChunkRow& row) {
    return quiet(SoftmaxTile<V, Terms>::map(v, row) * row.g);
  }
};

template <class V, class Terms>
struct LogSoftmaxTile {
  using T = ElementOf<V>;
  using Op = void;
  static constexpr int kInputs = 1;
  static constexpr bool kTerms = false, kRowOutput = false;
  struct Row {
    V m, L;
  };
  template <class Layout>
  static SUMEXP_FN bool reduce(Layout* rows, int tiles, const TileParams<V>&, Row* row) {
    TileState<V> state[kTiles];
    if (!tile_states<Terms, true, false>(rows, tiles, state)) return false;
    for (int t = 0; t < tiles; ++t) row[t] = {state[t].m, or_nan(state[t], tile_head(tile_log_over_max(state[t])))};
    return true;
  }
  static SUMEXP_FN V map(const V* v, const Row& row) { return log_probability(v[0], row.m, row.L); }
  static SUMEXP_FN V witness(const Row& row) { return row.L; }

  using ChunkRow = Row;
  template <bool, class Layout>
  static SUMEXP_FN bool chunk_states(Layout& rows, V& m, ExpState<T>* to) {
    return lane_states<Terms, true, false>(rows, m, to);
  }
  static SUMEXP_FN ChunkRow chunk_row(const LogSoftmaxRow<T>* rows, V, V) {
    return {lanes_of<V>([&](int b) { return rows[b].m; }), lanes_of<V>([&](int b) { return rows[b].L; })};
  }
};

SUMEXP_FN F32 plus_narrow(F32 m, Twin<F64> L) { return WideOf<F32>::narrow(WideOf<F32>::from(m) + L); }
SUMEXP_FN F64 plus_narrow(F64 m, DD<F64> L) {
  const DD<F64> sum = two_sum(m, L.hi);
  return sum.hi + (sum.lo + L.lo);
}

template <class V, class Terms>
struct LogSumExpTile {
  using T = ElementOf<V>;
  using Op = void;
  static constexpr int kInputs = 1;
  static constexpr bool kTerms = false, kRowOutput = true;
  struct Row {
    V value;
  };
  template <class Layout>
  static SUMEXP_FN bool reduce(Layout* rows, int tiles, const TileParams<V>&, Row* row) {
    TileState<V> state[kTiles];
    if (!tile_states<Terms, true, false>(rows, tiles, state)) return false;
    for (int t = 0; t < tiles; ++t)
      row[t].value = or_nan(state[t], plus_narrow(state[t].m, tile_log_over_max(state[t])));
    return true;
  }
  static SUMEXP_FN V emit(const Row& row) { return row.value; }

  using ChunkRow = Row;
  template <bool, class Layout>
  static SUMEXP_FN bool chunk_states(Layout& rows, V& m, ExpState<T>* to) {
    return lane_states<Terms, true, false>(rows, m, to);
  }
};

template <class V, class Op_>
struct SumsTile {
  using Op = Op_;
  static constexpr int kInputs = Op::kInputs;
  static constexpr bool kTerms = false, kRowOutput = false;
  struct Row {
    RowScalars<V> sums;
    V factor;
  };
  template <class Layout>
  static SUMEXP_FN bool reduce(Layout* rows, int tiles, const TileParams<V>& params, Row* row) {
    for (int t = 0; t < tiles; ++t) {
      row[t].factor = params.factor;
      rows[t].template sums<Op, 0>(row[t].sums);
    }
    if constexpr (Op::kPasses > 1)
      for (int t = 0; t < tiles; ++t) rows[t].template sums<Op, 1>(row[t].sums);
    return true;
  }
  static SUMEXP_FN V map(const V* v, const Row& row) { return quiet(Op::map(v, row.sums) * row.factor); }
  static SUMEXP_FN V witness(const Row& row) { return row.factor; }

  using T = ElementOf<V>;
  using ChunkRow = Row;
  static SUMEXP_FN ChunkRow chunk_row(const typename SumsKernel<V, Op>::Row* rows, V, V) {
    ChunkRow row;
    for (int k = 0; k < RowScalars<V>::kMax; ++k) {
      row.sums.h[k] = lanes_of<V>([&](int b) { return rows[b].sums.h[k]; });
      row.sums.l[k] = lanes_of<V>([&](int b) { return rows[b].sums.l[k]; });
    }
    row.factor = lanes_of<V>([&](int b) { return rows[b].factor; });
    return row;
  }
};

// Sums of a pass, a in Wide<V>, to their places among the scalars.
template <class Op, int pass, class V>
SUMEXP_FN void place_sum(int a, Wide<V> sum, RowScalars<V>& row) {
  const int at = pass * Op::kSums + a;
  sum = sum + WideOf<V>::constant(0);  // no sum is -0
  if (at < RowScalars<V>::kMax) WideOf<V>::split(sum, row.h[at], row.l[at]);
}

}  // namespace sumexp::SUMEXP_NS
