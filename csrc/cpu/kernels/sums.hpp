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

template <class T, int kSums>
struct SumsState {
  Wide<T> sum[kSums];

  static SumsState empty() {
    SumsState state;
    for (auto& s : state.sum) s = WideOf<T>::constant(0);
    return state;
  }
};
template <class T, int kSums>
SUMEXP_FN SumsState<T, kSums> merge(const SumsState<T, kSums>& a, const SumsState<T, kSums>& b) {
  SumsState<T, kSums> state;
  for (int k = 0; k < kSums; ++k) state.sum[k] = a.sum[k] + b.sum[k];
  return state;
}

// What map takes of a row, or of V::W rows.
template <class V>
struct SumsRow {
  RowScalars<V> sums;
  V factor;
};

// E: the elements that a function reads and writes, of V's own type or of 16 bits.
template <class V, class Op>
struct SumsKernel {
  using T = ElementOf<V>;
  using State = SumsState<T, Op::kSums>;
  using Row = SumsRow<T>;
  using TileRow = SumsRow<V>;
  static constexpr int W = V::W, kInputs = Op::kInputs;

  static SUMEXP_FN void prepare(TileRow& row) {
    if constexpr (Op::kPrepares) Op::prepare(row.sums);
  }
  static SUMEXP_FN V map_value(const V* v, const TileRow& row) {
    if constexpr (Op::kPrepares) return quiet(Op::map_prepared(v, row.sums) * row.factor);
    else return quiet(Op::map(v, row.sums) * row.factor);
  }

  // The next row is prefetched by map, if that has more to compute; the next chunk of this one when it is first read.
  static SUMEXP_FN bool next_row(const cpu::Chunk& chunk) { return chunk.ahead > Geometry<T>::kChunk; }

  template <int pass, class E>
  SUMEXP_KERNEL static void reduce(const cpu::Chunk& chunk, const void* from, void* to) {
    const E* in[kInputs];
    for (int k = 0; k < kInputs; ++k) in[k] = static_cast<const E*>(chunk.in[k]);
    TileRow row;
    if constexpr (pass > 0) row = broadcast<V, TileRow>(as<Row>(from));
    V sums[Op::kSums][Geometry<T>::kGroup / W];
    const std::int64_t ahead = next_row(chunk) && !Op::kMapAdds ? 0 : chunk.ahead;
    const bool all = sum_lanes<V, Op, pass, true>(in, chunk.count, row.sums, sums, ahead);
    State& state = as<State>(to);
    for (int k = 0; k < Op::kSums; ++k)
      state.sum[k] = all || k == Op::kSums - 1 ? fold_group<V>(sums[k]) : WideOf<T>::constant(0);
  }
  template <int pass>
  SUMEXP_KERNEL static void finish(const void* from, const cpu::RowContext& context, void* to) {
    const State& state = as<State>(from);
    Row& row = as<Row>(to);
    for (int k = 0; k < Op::kSums && pass * Op::kSums + k < RowScalars<T>::kMax; ++k)
      WideOf<T>::split(state.sum[k], row.sums.h[pass * Op::kSums + k], row.sums.l[pass * Op::kSums + k]);
    row.factor = static_cast<T>(context.factor);
  }
  template <class E>
  SUMEXP_KERNEL static void map(const cpu::Chunk& chunk, const void* from) {
    TileRow row = broadcast<V, TileRow>(as<Row>(from));
    prepare(row);
    const bool next = next_row(chunk) && !Op::kMapAdds;
    store_chunk<V>(static_cast<E*>(chunk.out), chunk.count, chunk.stream, [&](int i, auto memory) SUMEXP_INLINE {
      V v[kInputs];
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k)
        v[k] = memory.template load<V>(static_cast<const E*>(chunk.in[k]) + i, absent<V, Op>(k));
      if (next)
        for (int k = 0; k < kInputs; ++k) __builtin_prefetch(static_cast<const E*>(chunk.in[k]) + i + chunk.ahead, 0, 2);
      return map_value(v, row);
    });
  }

#if SUMEXP_REGISTERS
  template <class Layout>
  static SUMEXP_FN void reduce_tiles(const Layout* rows, int count, double factor, TileRow* row) {
    for (int t = 0; t < count; ++t) {
      row[t].factor = V(static_cast<T>(factor));
      rows[t].template sums<Op, 0>(row[t].sums);
    }
    if constexpr (Op::kPasses > 1)
      for (int t = 0; t < count; ++t) rows[t].template sums<Op, 1>(row[t].sums);
    for (int t = 0; t < count; ++t) prepare(row[t]);
  }
  template <class E, class Count>
  __attribute__((noinline)) SUMEXP_KERNEL static void panels_of(const cpu::Panel* panels, int count, double factor, Count n) {
    PanelRows<V, E, kInputs, Count> rows[kTiles];
    TileRow row[kTiles];
    for (int t = 0; t < count; ++t) rows[t] = {panels + t, n};
    if constexpr (Op::kWinnersApart)
      if (n < kManyBranches) return short_panels<E>(rows, count, factor, row);
    reduce_tiles(rows, count, factor, row);
    for (int t = 0; t < count; ++t)
      map_panel<V, E, kInputs, false, Op::kLog>(rows[t], row[t], nullptr,
                                                [](const V* v, const TileRow& row) SUMEXP_INLINE { return map_value(v, row); });
  }
  // Of short rows any may have a winner or not: what is taken is decided once a panel, or branches would be guessed wrong. The
  // shortest are looked at first, as their sums take longer than a look; others are looked at while they are summed.
  static constexpr int kManyBranches = 512, kLookFirst = 64;
  struct All : Op {
    static constexpr bool kWinnersApart = false;
  };
  template <class E, class Rows>
  static SUMEXP_FN void short_panels(const Rows* rows, int count, double factor, TileRow* row) {
    static_assert(Op::kSums == 2 && Op::kPrepares);
    bool winners[kTiles];
    for (int t = 0; t < count; ++t) {
      row[t].factor = V(static_cast<T>(factor));
      RowScalars<V>& sums = row[t].sums;
      if (rows[t].count <= kLookFirst) {
        winners[t] = any(wins(rows[t].largest_lanes(Op::kLog)));
        if (!winners[t]) rows[t].template usual_sum<Op, false>(sums);
      } else {
        winners[t] = any(wins(rows[t].template usual_sum<Op, true>(sums)));
      }
      if (winners[t]) rows[t].template sums<All, 0>(sums);
      prepare(row[t]);
    }
    for (int t = 0; t < count; ++t) {
      if (winners[t]) {
        map_panel<V, E, kInputs, false, Op::kLog>(rows[t], row[t], nullptr, [](const V* v, const TileRow& row) SUMEXP_INLINE {
          return quiet(Op::map_any(v, row.sums) * row.factor);
        });
      } else {
        map_panel<V, E, kInputs, false, Op::kLog>(rows[t], row[t], nullptr, [](const V* v, const TileRow& row) SUMEXP_INLINE {
          return quiet(Op::map_usual(v, row.sums) * row.factor);
        });
      }
    }
  }
  template <class E>
  SUMEXP_KERNEL static bool panels(const cpu::Panel* panels, int count, double factor) {
    constexpr int kGroup = Geometry<T>::kGroup;  // known to the compiler, a row of one group has no loop left
    if (panels->count == kGroup) panels_of<E>(panels, count, factor, std::integral_constant<int, kGroup>());
    else panels_of<E>(panels, count, factor, panels->count);
    return true;
  }
  SUMEXP_KERNEL static bool tiles(const cpu::Tile* tiles, int count, double factor) {
    Transposed<V, kInputs> rows[kTiles];
    TileRow row[kTiles];
    for (int t = 0; t < count; ++t) rows[t] = Transposed<V, kInputs>(tiles[t]);
    reduce_tiles(rows, count, factor, row);
    for (int t = 0; t < count; ++t) map_rows(rows[t], row[t]);
    return true;
  }
  static SUMEXP_FN void map_rows(const Transposed<V, kInputs>& rows, const TileRow& row) {
    if constexpr (Op::kWinnersApart) {
      const auto map = [&](auto value) SUMEXP_INLINE {
        for (int j = 0; j < rows.n; ++j) {
          V v[kInputs];
          for (int k = 0; k < kInputs; ++k) v[k] = rows.in[k][j];
          rows.in[0][j] = quiet(value(v) * row.factor);
        }
      };
      if (any(wins(rows.largest_lanes(Op::kLog)))) map([&](const V* v) SUMEXP_INLINE { return Op::map_any(v, row.sums); });
      else map([&](const V* v) SUMEXP_INLINE { return Op::map_usual(v, row.sums); });
      return;
    }
    for (int j = 0; j < rows.n; ++j) {
      V v[kInputs];
      for (int k = 0; k < kInputs; ++k) v[k] = rows.in[k][j];
      rows.in[0][j] = map_value(v, row);
    }
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
    // the last sum, and, where they are apart, the others
    constexpr int kFirst = Op::kWinnersApart ? kSums - 1 : 0, kKept = kSums - kFirst;
    V(*const lane)[kKept] = static_cast<V(*)[kKept]>(scratch);
    for (int l = 0; l < lanes * tiles; ++l)
      for (int a = 0; a < kKept; ++a) lane[l][a] = V(T(0));
    if constexpr (!Op::kWinnersApart) {
      each_element<V, S, kInputs>(at, 0, first, count, [=, &known](int j, int t, const V* v) SUMEXP_INLINE {
        add_any<Op, pass>(lane[j % G::kLanes * tiles + t], v, known[t].sums);
      });
      return fold_columns_of<0>(lane, lanes, tiles, nullptr, to);
    } else {
      V(*const apart)[kFirst] = reinterpret_cast<V(*)[kFirst]>(lane + lanes * tiles);
      bool winners[kMostTiles<V, S>] = {};
      each_element<V, S, kInputs>(at, 0, first, count, [=, &known, &winners](int j, int t, const V* v) SUMEXP_INLINE {
        const int at = j % G::kLanes * tiles + t;
        if (!any(wins(v[Op::kLog]))) {
          lane[at][0] = Op::usual(lane[at][0], v);
          return;
        }
        for (int l = 0; !winners[t] && l < lanes; ++l)
          for (int a = 0; a < kFirst; ++a) apart[l * tiles + t][a] = V(T(0));
        winners[t] = true;
        V acc[kSums];
        for (int a = 0; a < kSums; ++a) acc[a] = a < kFirst ? apart[at][a] : lane[at][0];
        Op::template add<pass>(acc, v, known[t].sums);
        for (int a = 0; a < kSums; ++a) (a < kFirst ? apart[at][a] : lane[at][0]) = acc[a];
      });
      fold_columns_of<kFirst>(lane, lanes, tiles, nullptr, to);
      fold_columns_of<0>(apart, lanes, tiles, winners, to);
    }
  }
  // The lanes of the sums from `first` on to the states of V::W rows a tile; where not `there`, sums are 0.
  template <int first, int kKept>
  static SUMEXP_FN void fold_columns_of(const V (*lane)[kKept], int lanes, int tiles, const bool* there, void* to) {
    State* const states = static_cast<State*>(to);
    for (int t = 0; t < tiles; ++t) {
      if (there && !there[t]) {
        for (int b = 0; b < W; ++b)
          for (int a = 0; a < kKept; ++a) states[t * W + b].sum[first + a] = WideOf<T>::constant(0);
        continue;
      }
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
    const std::int64_t stride = at.stride[cpu::kOut];
    char* const out = at.data[cpu::kOut] + first * stride;
    const bool stream = at.stream;
    each_element<V, S, kInputs>(at, 0, first, count, [=, &known](int j, int t, const V* v) SUMEXP_INLINE {
      put_vector<V, S>(out + j * stride + t * W * sizeof(S), map_value(v, known[t]), stream);
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
  kernel.sums = Op::kSums;
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
