// The layout of rows of up to one chunk: every row stays where it is and is reduced to one group of lanes; then the
// groups of V::W rows are transposed, and all that is done once a row (widening, the last fold, division, logarithm)
// is done for V::W rows at once.
#pragma once

#include "tile_kernels.hpp"

namespace sumexp::SUMEXP_NS {

// E: the elements of the rows, of V's own type or a 16-bit format.
template <class V, class E, int kInputs>
struct Panel {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  static constexpr int W = V::W, kVectors = G::kGroup / W;
  // A NaN shows only when terms may have taken the place of x; results of its row are filled in.
  static constexpr bool kToleratesNaN = true;

  const E* in[W][kInputs];
  T* terms[W];
  int count;
  std::int64_t ahead;

  struct Lanes {
    T at[W];
    SUMEXP_FN explicit Lanes(V v) { V::store(at, v); }
  };
  // one group of lanes a row, vector u of row b at group[u][b]
  using Groups = V[kVectors][W];

  // Transposes every row's group and folds its members; widen(u, i) is member u * W + i of all rows.
  template <class Widen>
  static SUMEXP_FN Wide<V> fold(Groups& hi, Widen widen) {
    Wide<V> member[G::kGroup];
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      transpose(hi[u]);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) member[u * W + i] = widen(u, i);
    }
    return tile_fold_members(G::kGroup, member);
  }

  SUMEXP_FN V largest() const {
    V best[W];
    for (int b = 0; b < W; ++b) best[b] = lane_max<V>(in[b][0], count);
    transpose(best);
#pragma GCC unroll 4
    for (int h = W / 2; h > 0; h /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < h; ++i) best[i] = larger(best[i], best[i + h]);
    return best[0];
  }
  SUMEXP_FN V largest_below(V limit) const {
    const Lanes bound(limit);
    T found[W];
    for (int b = 0; b < W; ++b) found[b] = chunk_max_below<V>(in[b][0], count, bound.at[b]);
    return V::load(found);
  }
  template <bool kExclude, bool kStore>
  SUMEXP_FN Wide<V> sum_terms(V N, V limit, V& excluded, V wanted) const {
    const Reduction<V> reduce = reduction_to(N);
    const Lanes shift(reduce.shift), floor(reduce.floor), bound(limit), want(wanted);
    Groups hi, lo;
    T left_out[W];
    for (int b = 0; b < W; ++b) {
      V sums[2][kVectors];
      int out = 0;
      if (want.at[b] != T(0)) {
        const Reduction<V> row = {V(shift.at[b]), V(floor.at[b])};
        sum_term_lanes<V, kExclude, kStore, false>(in[b][0], count, row, V(T(0)), V(bound.at[b]), out, terms[b], ahead,
                                                   sums);
      } else {
        for (int u = 0; u < kVectors; ++u) sums[0][u] = sums[1][u] = V(T(0));
      }
      for (int u = 0; u < kVectors; ++u) hi[u][b] = sums[0][u], lo[u][b] = sums[1][u];
      left_out[b] = static_cast<T>(out);
    }
    excluded = V::load(left_out);
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) transpose(lo[u]);
    return fold(hi, [&](int u, int i) { return WideOf<V>::from(hi[u][i], lo[u][i]); });
  }
  template <class Op, int pass>
  SUMEXP_FN void sums(RowScalars<V>& row) const {
    Groups group[Op::kSums];
    for (int b = 0; b < W; ++b) {
      V sums[Op::kSums][kVectors];
      if constexpr (pass == 0) {
        sum_lanes<V, Op, 0>(in[b], count, row, sums);  // looks at no scalar yet
      } else {
        sum_lanes<V, Op, pass>(in[b], count, scalars_of(row, b), sums);
      }
      for (int a = 0; a < Op::kSums; ++a)
        for (int u = 0; u < kVectors; ++u) group[a][u][b] = sums[a][u];
    }
    for (int a = 0; a < Op::kSums; ++a)
      place_sum<Op, pass>(a, fold(group[a], [&](int u, int i) { return WideOf<V>::from(group[a][u][i]); }), row);
  }

 private:
  static SUMEXP_FN RowScalars<V> scalars_of(const RowScalars<V>& row, int b) {
    RowScalars<V> to;
    for (int k = 0; k < RowScalars<V>::kMax; ++k)
      to.h[k] = V(Lanes(row.h[k]).at[b]), to.l[k] = V(Lanes(row.l[k]).at[b]);
    return to;
  }
};

template <class V, class E, class Tile>
bool reduce_panel(const Panel<V, E, Tile::kInputs>& rows, const TileParams<V>& params, typename Tile::Row& row) {
  return Tile::reduce(&rows, 1, params, &row);
}

// The results of every row, row b to out[b].
template <class V, class E, class Tile, class Out>
void map_panel(const Panel<V, E, Tile::kInputs>& rows, const typename Tile::Row& row, Out* const* out, bool stream) {
  using T = ElementOf<V>;
  using Row = typename Tile::Row;
  typedef T __attribute__((may_alias)) Lane;
  static_assert(sizeof(Row) % sizeof(V) == 0, "a Row is nothing but vectors");
  const typename Panel<V, E, Tile::kInputs>::Lanes witness(Tile::witness(row));
  for (int b = 0; b < V::W; ++b) {
    if (is_nan(witness.at[b])) {
      fill_chunk<V>(out[b], rows.count, Limits<T>::nan());
      continue;
    }
    Row own;  // row b's scalars, each in all lanes
    const Lane* lanes = reinterpret_cast<const Lane*>(&row) + b;
#pragma GCC unroll 9
    for (unsigned k = 0; k < sizeof(Row) / sizeof(V); ++k) reinterpret_cast<V*>(&own)[k] = V(T(lanes[k * V::W]));
    store_chunk<V>(out[b], rows.count, stream, [&](int i, auto memory) {
      V v[Tile::kInputs];
#pragma GCC unroll 3
      for (int k = 0; k < Tile::kInputs; ++k) {
        if constexpr (Tile::kTerms) {
          v[k] = memory.template load<V>(rows.terms[b] + i, T(0));
        } else {
          v[k] = memory.template load<V>(rows.in[b][k] + i, T(0));
          if (Tile::kInputs > 1) __builtin_prefetch(rows.in[b][k] + i + rows.ahead, 0, 2);
        }
      }
      return Tile::map(v, own);
    });
  }
}

}  // namespace sumexp::SUMEXP_NS
