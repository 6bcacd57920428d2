// The layout of the shortest rows, and of rows that lie side by side: element j of all rows of a tile in one vector.
// Every lane of the geometry is a vector here, and folds are additions of vectors.
#pragma once

#include "tile.hpp"

namespace sumexp::SUMEXP_NS {

// Steps 2 and 3 of the geometry over n lanes, at most kLanes: body(acc, l) gives lane l, widen(i, acc) takes member i.
template <class V, int kSums, class Body, class Widen>
SUMEXP_FN void tile_fold(int n, Body body, Widen widen) {
  using G = Geometry<ElementOf<V>>;
  if (n <= G::kGroup) {  // nothing to fold yet
    for (int i = 0; i < n; ++i) {
      V one[kSums];
      body(one, i);
      widen(i, one);
    }
    return;
  }
  for (int i = 0; i < G::kGroup && i < n; ++i) {
    V column[G::kColumns / 4 + 1][kSums];
    int columns = 0, j = i;
    for (; j + 3 * G::kGroup < n; j += 4 * G::kGroup, ++columns) {  // two steps of the fold in registers
      V four[4][kSums];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) body(four[k], j + k * G::kGroup);
#pragma GCC unroll 2
      for (int a = 0; a < kSums; ++a) column[columns][a] = (four[0][a] + four[1][a]) + (four[2][a] + four[3][a]);
    }
    if (j < n) {
      body(column[columns], j);
      for (j += G::kGroup; j < n; j += G::kGroup) {
        V next[kSums];
        body(next, j);
        for (int a = 0; a < kSums; ++a) column[columns][a] = column[columns][a] + next[a];
      }
      ++columns;
    }
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
// Lanes from memory: lane l at lane[l * step].
template <class V, int kSums, class Widen>
SUMEXP_FN void fold_kept_lanes(int n, const V (*lane)[kSums], int step, Widen widen) {
  tile_fold<V, kSums>(
      n,
      [&](V* acc, int l) SUMEXP_INLINE {
        for (int a = 0; a < kSums; ++a) acc[a] = lane[l * step][a];
      },
      widen);
}

// Steps 1 to 3 over the n elements of a chunk: body(acc, j) adds element j to acc, of which the first begins at `start`,
// which is taken off every lane again.
template <class V, int kSums, class Body, class Widen>
SUMEXP_FN void tile_reduce(int n, ElementOf<V> start, Body body, Widen widen) {
  using G = Geometry<ElementOf<V>>;
  const V first = V(start), zero = V(ElementOf<V>(0));
  const auto add_lane = [&](V* acc, auto each) SUMEXP_INLINE {
    acc[0] = first;
    for (int a = 1; a < kSums; ++a) acc[a] = zero;
    each([&](int j) SUMEXP_INLINE { body(acc, j); });
    acc[0] = acc[0] - first;
  };
  if (n <= G::kLanes) {
    const auto one = [&](V* acc, int l) SUMEXP_INLINE { add_lane(acc, [&](auto add) SUMEXP_INLINE { add(l); }); };
    return tile_fold<V, kSums>(n, one, widen);
  }
  V lane[G::kLanes][kSums];  // all of them first, in the order in which memory is read best
  for (int l = 0; l < G::kLanes; ++l)
    add_lane(lane[l], [&](auto add) SUMEXP_INLINE {
      for (int j = l; j < n; j += G::kLanes) add(j);
    });
  fold_kept_lanes(G::kLanes, lane, 1, widen);
}

template <class V, int kInputs>
struct Transposed {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  static constexpr bool kToleratesNaN = false;

  V* in[kInputs];  // in[k][j]: element j of the rows, input k
  V* terms;        // of ops that keep the maximum apart
  const V* top;    // the largest of each row of input 0, where somebody has looked at all of them already
  int n;

  Transposed() = default;
  SUMEXP_FN explicit Transposed(const cpu::Tile& tile)
      : terms(static_cast<V*>(tile.terms)), top(static_cast<const V*>(tile.top)), n(tile.count) {
    for (int k = 0; k < kInputs; ++k) in[k] = static_cast<V*>(tile.in[k]);
  }
  SUMEXP_FN V largest_lanes(int k) const {
    V most = V(-Limits<T>::infinity);
    for (int j = 0; j < n; ++j) most = larger(in[k][j], most);
    return most;
  }
  SUMEXP_FN V largest() const { return top ? *top : largest_lanes(0); }
  SUMEXP_FN V largest_below(V limit) const {
    const V lowest = V(-Limits<T>::infinity);
    V best = lowest;
    for (int j = 0; j < n; ++j) best = larger(pick(at_or_above(in[0][j], limit), lowest, in[0][j]), best);
    return best;
  }
  // Terms take the place of x; but where the maximum is apart, and x may be read again, they go to their own.
  template <class Terms, bool kApart, bool kStore, bool kAll>
  SUMEXP_FN Wide<V> sum_terms(V N, V limit, V& counted, V wanted) const {
    if constexpr (!kAll)
      if (count(equal(wanted, V(T(1)))) * 4 <= V::W) return sum_few<Terms>(N, limit, wanted);
    V* const x = in[0];
    const Reduction<V> reduce = reduction_to(N);
    const V one = V(T(1)), zero = V(T(0));
    Wide<V> member[G::kGroup];
    V left_out = zero;
    tile_reduce<V, Terms::kSums>(
        n, Terms::template start<T>(),
        [&](V* acc, int j) SUMEXP_INLINE {
          auto e = Terms::parts(x[j], reduce);
          if constexpr (kApart) {
            if constexpr (kStore) terms[j] = Terms::term(e);
            const auto out = at_or_above(x[j], limit);
            left_out = left_out + pick(out, one, zero);
            e.s = clear(out, e.s);
          }
          const V term = Terms::term(e);
          Terms::add(acc, e, term);
          if constexpr (!kApart && kStore) x[j] = term;
        },
        [&](int i, const V* acc) SUMEXP_INLINE {
          if constexpr (Terms::kSums == 2) member[i] = WideOf<V>::from(acc[0], acc[1]);
          else member[i] = WideOf<V>::from(acc[0]);
        });
    counted = left_out;
    return tile_fold_members(n, member);
  }
  // A few rows, one by one: where most of a tile need no refinement. Elements from `limit` up are left out.
  template <class Terms>
  Wide<V> sum_few(V N, V limit, V wanted) const {
    const Reduction<V> reduce = reduction_to(N);
    T shift[V::W], floor[V::W], bound[V::W], want[V::W];
    V::store(shift, reduce.shift), V::store(floor, reduce.floor), V::store(bound, limit), V::store(want, wanted);
    Wide<T> sum[V::W];
    for (int b = 0; b < V::W; ++b) {
      sum[b] = WideOf<T>::constant(0);
      if (want[b] == T(0)) continue;
      T row[G::kChunk];
      for (int j = 0; j < n; ++j) memcpy(row + j, reinterpret_cast<const char*>(in[0] + j) + b * sizeof(T), sizeof(T));
      int out = 0;
      sum[b] = ::sumexp::SUMEXP_NS::sum_terms<Terms, V, true, false>(static_cast<const T*>(row), n, {shift[b], floor[b]},
                                                                     bound[b], out, static_cast<T*>(nullptr), {});
    }
    return wide_lanes(sum);
  }
  template <class Op, int pass>
  SUMEXP_FN void sums(RowScalars<V>& row) const {
    sums_from<Op, pass, 0>(row, [&](V* acc, const V* v) SUMEXP_INLINE { Op::template add<pass>(acc, v, row); });
  }
  // As PanelRows has them.
  template <class Op>
  SUMEXP_FN bool usual_sum(RowScalars<V>& row) const {
    if (any(wins(largest_lanes(Op::kLog)))) return false;
    place_sum<Op, 0>(0, WideOf<V>::constant(0), row);
    sums_from<Op, 0, 1>(row, [&](V* acc, const V* v) SUMEXP_INLINE { acc[0] = Op::usual(acc[0], v); });
    return true;
  }
  template <class Op>
  SUMEXP_FN bool winner_sums(RowScalars<V>& row, V& y) const {
    const V zero = V(T(0));
    SumsWinner<V> winner;
    V winners = zero;
    sums_from<Op, 0, 1>(row, [&](V* acc, const V* v) SUMEXP_INLINE {
      winners = winners + pick(winner.template add<Op>(acc[0], v), V(T(1)), zero);
    });
    place_sum<Op, 0>(0, WideOf<V>::from(winner.own), row);
    y = winner.y;
    return !any(at_or_above(winners, V(T(2))));
  }
  // The sums from `first` on.
  template <class Op, int pass, int first, class Add>
  SUMEXP_FN void sums_from(RowScalars<V>& row, Add add) const {
    constexpr int kSums = Op::kSums - first;
    Wide<V> member[kSums][G::kGroup];
    tile_reduce<V, kSums>(
        n, T(0),
        [&](V* acc, int j) SUMEXP_INLINE {
          V v[kInputs];
          for (int k = 0; k < kInputs; ++k) v[k] = in[k][j];
          add(acc, v);
        },
        [&](int i, const V* acc) SUMEXP_INLINE {
          for (int a = 0; a < kSums; ++a) member[a][i] = WideOf<V>::from(acc[a]);
        });
    for (int a = 0; a < kSums; ++a) place_sum<Op, pass>(first + a, tile_fold_members(n, member[a]), row);
  }
};

// The states of the rows of some tiles (tile_states), with the maximum kept out (kApart) or in it; kStore: terms are
// stored. Compiled once an instruction set, in exp_tiles.cpp.
template <class Terms, class V, bool kApart, bool kStore>
bool transposed_states(const cpu::Tile* tiles, int count, TileState<V>* states);

}  // namespace sumexp::SUMEXP_NS
