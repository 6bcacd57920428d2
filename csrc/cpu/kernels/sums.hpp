// Kernels of an op that starts from saved outputs (SumsOp in ops/sums.hpp): sums_kernel<V, S, Op>().
#pragma once

#include "kernel.hpp"
#include "sum_lanes.hpp"
#if SUMEXP_REGISTERS
#include "columns.hpp"
#include "panel.hpp"
#include "transposed.hpp"
#endif

namespace sumexp::SUMEXP_NS {

// Of a row or, in vectors, of V::W rows: how many elements win, and the sum of their y. Nothing unless kWinnersApart.
template <class V, bool kWinnersApart>
struct SumsWinners {
  V winners, y;
};
template <class V>
struct SumsWinners<V, false> {};

template <class T, class Op>
struct SumsState : SumsWinners<T, Op::kWinnersApart> {
  Wide<T> sum[Op::kSums];

  static SumsState empty() {
    SumsState state;
    for (auto& s : state.sum) s = WideOf<T>::constant(0);
    if constexpr (Op::kWinnersApart) state.winners = state.y = T(0);
    return state;
  }
};
template <class T, class Op>
SUMEXP_FN SumsState<T, Op> merge(const SumsState<T, Op>& a, const SumsState<T, Op>& b) {
  SumsState<T, Op> state;
  for (int k = 0; k < Op::kSums; ++k) state.sum[k] = a.sum[k] + b.sum[k];
  if constexpr (Op::kWinnersApart) state.winners = a.winners + b.winners, state.y = a.y + b.y;
  return state;
}

// What map takes of a row, or of V::W rows.
template <class V, bool kWinnersApart>
struct SumsRow : SumsWinners<V, kWinnersApart> {
  RowScalars<V> sums;
  V factor;
};

// E: the elements that a function reads and writes, of V's own type or of 16 bits.
template <class V, class Op>
struct SumsKernel {
  using T = ElementOf<V>;
  using State = SumsState<T, Op>;
  using Row = SumsRow<T, Op::kWinnersApart>;
  using TileRow = SumsRow<V, Op::kWinnersApart>;
  static constexpr int W = V::W, kInputs = Op::kInputs;

  // The ways to map an element: map, or those of kWinnersApart.
  struct Map {
    SUMEXP_FN V operator()(const V* v, const TileRow& row) const { return quiet(Op::map(v, row.sums) * row.factor); }
  };
  struct MapUsual {
    SUMEXP_FN V operator()(const V* v, const TileRow& row) const { return quiet(Op::map_usual(v, row.sums) * row.factor); }
  };
  struct MapWinner {
    SUMEXP_FN V operator()(const V* v, const TileRow& row) const { return quiet(Op::map_winner(v, row.sums) * row.factor); }
  };
  struct MapAny {
    SUMEXP_FN V operator()(const V* v, const TileRow& row) const { return quiet(Op::map_any(v, row.sums) * row.factor); }
  };
  // use(one of them), for rows with kMost winners at most. Decided once for many elements: whether one wins would be guessed
  // wrong.
  template <int kMost = 2, class Use>
  static SUMEXP_FN void with_map(const TileRow& row, Use use) {
    if constexpr (!Op::kWinnersApart) {
      use(Map());
    } else {
      if constexpr (kMost > 1)
        if (any(at_or_above(row.winners, V(T(2))))) return use(MapAny());
      if (any(at_or_above(row.winners, V(T(1))))) use(MapWinner());
      else use(MapUsual());
    }
  }
  static SUMEXP_FN void prepare(TileRow& row) {
    if constexpr (Op::kWinnersApart) {
      Op::prepare(row.sums);
      if (any(at_or_above(row.winners, V(T(1))))) Op::prepare_winner(row.sums, row.y);
    }
  }

  // The next row is prefetched by map, if that has more to compute; the next chunk of this one when it is first read.
  static SUMEXP_FN bool next_row(const cpu::Chunk& chunk) { return chunk.ahead > Geometry<T>::kChunk; }

  static SUMEXP_FN Wide<T> sum_of(V lanes) {
    LaneGroup<V> group = {};
    group[0] = lanes;
    return fold_group<V>(group);
  }
  template <int pass, class E>
  SUMEXP_KERNEL static void reduce(const cpu::Chunk& chunk, const void* from, void* to) {
    const E* in[kInputs];
    for (int k = 0; k < kInputs; ++k) in[k] = static_cast<const E*>(chunk.in[k]);
    TileRow row;
    if constexpr (pass > 0) row = broadcast<V, TileRow>(as<Row>(from));
    LaneGroup<V> sums[Op::kSums];
    const std::int64_t ahead = next_row(chunk) && !Op::kMapAdds ? 0 : chunk.ahead;
    State& state = as<State>(to);
    state = State::empty();
    if constexpr (Op::kWinnersApart) {
      SumsWinner<V> winner;
      const int winners = winner_lanes<V, Op, true>(in, chunk.count, winner, sums[1], ahead);
      state.winners = static_cast<T>(winners);
      if (winners <= 1) {
        state.sum[0] = sum_of(winner.own), state.sum[1] = fold_group<V>(sums[1]);
        state.y = WideOf<T>::narrow(sum_of(winner.y));
        return;
      }
    }
    sum_lanes<V, Op, pass, true>(in, chunk.count, row.sums, sums, ahead);
    for (int k = 0; k < Op::kSums; ++k) state.sum[k] = fold_group<V>(sums[k]);
  }
  template <int pass>
  SUMEXP_KERNEL static void finish(const void* from, const cpu::RowContext& context, void* to) {
    const State& state = as<State>(from);
    Row& row = as<Row>(to);
    for (int k = 0; k < Op::kSums && pass * Op::kSums + k < RowScalars<T>::kMax; ++k)
      WideOf<T>::split(state.sum[k], row.sums.h[pass * Op::kSums + k], row.sums.l[pass * Op::kSums + k]);
    row.factor = static_cast<T>(context.factor);
    if constexpr (Op::kWinnersApart) row.winners = state.winners, row.y = state.y;
  }
  template <class E>
  SUMEXP_KERNEL static void map(const cpu::Chunk& chunk, const void* from) {
    TileRow row = broadcast<V, TileRow>(as<Row>(from));
    prepare(row);
    const bool next = next_row(chunk) && !Op::kMapAdds;
    with_map(row, [&](auto value) SUMEXP_INLINE {
      store_chunk<V>(static_cast<E*>(chunk.out), chunk.count, chunk.stream, [&](int i, auto memory) SUMEXP_INLINE {
        V v[kInputs];
#pragma GCC unroll 3
        for (int k = 0; k < kInputs; ++k)
          v[k] = memory.template load<V>(static_cast<const E*>(chunk.in[k]) + i, absent<V, Op>(k));
        if (next)
          for (int k = 0; k < kInputs; ++k) __builtin_prefetch(static_cast<const E*>(chunk.in[k]) + i + chunk.ahead, 0, 2);
        return value(v, row);
      });
    });
  }

#if SUMEXP_REGISTERS
  // Sums of winners take longer than a look whether there are some; but after rows that had some (not `rare`) there is no look.
  // False where a row has several.
  template <class Layout>
  static SUMEXP_FN bool reduce_winners(const Layout& rows, bool& rare, TileRow& row) {
    row.winners = row.y = V(T(0));
    if (rare && rows.template usual_sum<Op>(row.sums)) return true;
    if (!rows.template winner_sums<Op>(row.sums, row.y)) return false;
    rare = !any(wins(row.y));
    row.winners = V(T(1));
    return true;
  }
  // map(t, value): the results of rows[t], value(inputs, row) of an element. False, and nothing is written, where a row has
  // several winners: no log-probabilities have, so that they are left to the functions on chunks.
  template <class Layout, class Map>
  static SUMEXP_FN bool reduce_and_map(const Layout* rows, int count, double factor, bool& rare, TileRow* row, Map map) {
    for (int t = 0; t < count; ++t) {
      row[t].factor = V(static_cast<T>(factor));
      if constexpr (!Op::kWinnersApart) rows[t].template sums<Op, 0>(row[t].sums);
      else if (!reduce_winners(rows[t], rare, row[t])) return false;
    }
    if constexpr (Op::kPasses > 1)
      for (int t = 0; t < count; ++t) rows[t].template sums<Op, 1>(row[t].sums);
    for (int t = 0; t < count; ++t) prepare(row[t]);
    for (int t = 0; t < count; ++t) with_map<1>(row[t], [&](auto value) SUMEXP_INLINE { map(t, value); });
    return true;
  }
  template <class E, class Count>
  __attribute__((noinline)) SUMEXP_KERNEL static bool panels_of(const cpu::Panel* panels, int count, double factor, Count n) {
    PanelRows<V, E, kInputs, Count> rows[kTiles];
    TileRow row[kTiles];
    for (int t = 0; t < count; ++t) rows[t] = {panels + t, n};
    return reduce_and_map(rows, count, factor, panels->rare, row, [&](int t, auto value) SUMEXP_INLINE {
      map_panel<V, E, kInputs, false, Op::kLog>(rows[t], row[t], nullptr, value);
    });
  }
  template <class E>
  SUMEXP_KERNEL static bool panels(const cpu::Panel* panels, int count, double factor) {
    constexpr int kGroup = Geometry<T>::kGroup;  // known to the compiler, a row of one group has no loop left
    return panels->count == kGroup ? panels_of<E>(panels, count, factor, std::integral_constant<int, kGroup>())
                                   : panels_of<E>(panels, count, factor, panels->count);
  }
  SUMEXP_KERNEL static bool tiles(const cpu::Tile* tiles, int count, double factor) {
    Transposed<V, kInputs> rows[kTiles];
    TileRow row[kTiles];
    for (int t = 0; t < count; ++t) rows[t] = Transposed<V, kInputs>(tiles[t]);
    bool rare = true;
    return reduce_and_map(rows, count, factor, rare, row, [&](int t, auto value) SUMEXP_INLINE {
      for (int j = 0; j < rows[t].n; ++j) {
        V v[kInputs];
        for (int k = 0; k < kInputs; ++k) v[k] = rows[t].in[k][j];
        rows[t].in[0][j] = value(v, row[t]);
      }
    });
  }

  // Long columns: straight down memory, with all lanes of all tiles in the cache, lane l of tile t at l * tiles + t.
  template <int pass, class S>
  SUMEXP_KERNEL static void column_sums(const cpu::Columns& at, std::int64_t first, int count, void* scratch, const void* from,
                                        void* to) {
    using G = Geometry<T>;
    constexpr int kSums = Op::kSums;
    TileRow known[kMostTiles<V, S>];
    for (int t = 0; pass > 0 && t < at.tiles; ++t) known[t] = tile_row(static_cast<const Row*>(from) + t * W);
    const int lanes = count < G::kLanes ? count : G::kLanes, tiles = at.tiles;
    State* const states = static_cast<State*>(to);
    for (int b = 0; b < tiles * W; ++b) states[b] = State::empty();
    if constexpr (Op::kWinnersApart) {
      V(*const lane)[1] = static_cast<V(*)[1]>(scratch);
      clear_lanes(lane, lanes * tiles);
      SumsWinner<V> winner[kMostTiles<V, S>];
      V winners[kMostTiles<V, S>];
      for (int t = 0; t < tiles; ++t) winners[t] = V(T(0));
      each_element<V, S, kInputs>(at, 0, first, count, [=, &winner, &winners](int j, int t, const V* v) SUMEXP_INLINE {
        const auto wins = winner[t].template add<Op>(lane[j % G::kLanes * tiles + t][0], v);
        winners[t] = winners[t] + pick(wins, V(T(1)), V(T(0)));
      });
      bool several = false;
      for (int t = 0; t < tiles; ++t) {
        several |= any(at_or_above(winners[t], V(T(2))));
        T own[W], y[W], number[W];
        V::store(own, winner[t].own), V::store(y, winner[t].y), V::store(number, winners[t]);
        for (int b = 0; b < W; ++b) {
          State& state = states[t * W + b];
          state.sum[0] = WideOf<T>::from(own[b]) + WideOf<T>::constant(0);  // no sum is -0
          state.winners = number[b], state.y = y[b];
        }
      }
      fold_columns_of<1>(lane, lanes, tiles, states);
      if (!several) return;
    }
    V(*const lane)[kSums] = static_cast<V(*)[kSums]>(scratch);
    clear_lanes(lane, lanes * tiles);
    each_element<V, S, kInputs>(at, 0, first, count, [=, &known](int j, int t, const V* v) SUMEXP_INLINE {
      add_any<Op, pass>(lane[j % G::kLanes * tiles + t], v, known[t].sums);
    });
    fold_columns_of<0>(lane, lanes, tiles, states);
  }
  template <int kKept>
  static SUMEXP_FN void clear_lanes(V (*lane)[kKept], int count) {
    for (int l = 0; l < count; ++l)
      for (int a = 0; a < kKept; ++a) lane[l][a] = V(T(0));
  }
  // The lanes of the sums from `first` on to the states of V::W rows a tile.
  template <int first, int kKept>
  static SUMEXP_FN void fold_columns_of(const V (*lane)[kKept], int lanes, int tiles, State* states) {
    for (int t = 0; t < tiles; ++t) {
      Wide<V> member[kKept][Geometry<T>::kGroup];
      fold_kept_lanes(lanes, lane + t, tiles, [&](int i, const V* acc) SUMEXP_INLINE {
        for (int a = 0; a < kKept; ++a) member[a][i] = WideOf<V>::from(acc[a]);
      });
      for (int a = 0; a < kKept; ++a) {
        Wide<T> sum[W];
        put_lanes(tile_fold_members(lanes, member[a]) + WideOf<V>::constant(0), sum);  // no sum is -0
        for (int b = 0; b < W; ++b) states[t * W + b].sum[first + a] = sum[b];
      }
    }
  }
  static SUMEXP_FN TileRow tile_row(const Row* rows) {
    return gather_lanes<V, TileRow>([&](int b) SUMEXP_INLINE { return rows[b]; });
  }
  template <class S>
  SUMEXP_KERNEL static bool map_columns(const cpu::Columns& at, std::int64_t first, int count, const void*, const void* rows) {
    TileRow known[kMostTiles<V, S>];
    for (int t = 0; t < at.tiles; ++t) known[t] = tile_row(static_cast<const Row*>(rows) + t * W), prepare(known[t]);
    const ColumnResults<V, S> out(at, first);
    TileRow all = known[0];  // of which with_map is asked: one way for all tiles
    if constexpr (Op::kWinnersApart)
      for (int t = 1; t < at.tiles; ++t) all.winners = larger(all.winners, known[t].winners);
    with_map(all, [&](auto value) SUMEXP_INLINE {
      each_element<V, S, kInputs>(at, 0, first, count,
                                  [=, &known](int j, int t, const V* v) SUMEXP_INLINE { out.put(j, t, value(v, known[t])); });
    });
    return true;
  }
#endif
};

template <class V, class S, class Op>
constexpr cpu::Kernel sums_kernel() {
  using K = SumsKernel<V, Op>;
  using T = ElementOf<V>;
  cpu::Kernel kernel = kernel_of<typename K::State, typename K::Row>();
  constexpr bool stored = std::is_same_v<S, T> || V::kRegister;
  kernel.sums = Op::kSums, kernel.log = Op::kLog;
  kernel.finish[0] = K::template finish<0>;
  kernel.reduce[0][cpu::kScratch] = K::template reduce<0, T>;
  if constexpr (stored) kernel.reduce[0][cpu::kStored] = K::template reduce<0, S>;
  if constexpr (Op::kPasses > 1) {
    kernel.finish[1] = K::template finish<1>;
    kernel.reduce[1][cpu::kScratch] = K::template reduce<1, T>;
    if constexpr (stored) kernel.reduce[1][cpu::kStored] = K::template reduce<1, S>;
  }
  kernel.map[cpu::kScratch] = K::template map<T>;
  if constexpr (stored) kernel.map[cpu::kStored] = K::template map<S>;
#if SUMEXP_REGISTERS
  kernel.panels[cpu::kScratch] = K::template panels<T>;
  kernel.panels[cpu::kStored] = K::template panels<S>;
  kernel.tiles = K::tiles;
  kernel.column_sums[0] = K::template column_sums<0, S>;
  if constexpr (Op::kPasses > 1) kernel.column_sums[1] = K::template column_sums<1, S>;
  kernel.map_columns = K::template map_columns<S>;
#endif
  return kernel;
}

}  // namespace sumexp::SUMEXP_NS
