// Kernels of an op on logits (LogitsOp in ops/op.hpp), for storage type S and vectors V: logits_kernel<V, S, Op>().
#pragma once

#include "../../ops/probability.hpp"
#include "../../ops/softmax.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"
#if SUMEXP_REGISTERS
#include "columns.hpp"
#include "panel.hpp"
#include "transposed.hpp"
#endif

namespace sumexp::SUMEXP_NS {

struct NoScale {};

// A finished row: what the op wants of it, and how its terms become probabilities.
template <class T, class Op>
struct LogitsRow {
  std::conditional_t<Op::kProbability, Normalizer<T>, NoScale> normalizer;
  typename Op::template Row<T> own;
  bool nan;            // every output is NaN
  std::int64_t index;  // of ops with kIndex
  bool scaled;
};

// Io: what numbers of a row, its input or its one result, are stored in; T where there are none, so that storage types share
// code. E: the elements that a function reads and writes, of V's own type or of 16 bits.
template <class V, class Terms, class Io, class Op>
struct LogitsKernel {
  using T = ElementOf<V>;
  using State = ExpState<T>;
  using Row = LogitsRow<T, Op>;
  using OwnRow = typename Op::template Row<V>;
  using Scale = std::conditional_t<Op::kProbability, TermScale<V>, NoScale>;
  static constexpr int W = V::W;
  static constexpr bool kScales = Op::kIndex && !Op::kRowOutput;
  using ScaledIndex = cpu::ScaledIndex;

  // -- a row, chunk by chunk ------------------------------------------------------------------------------

  template <class E>
  static void reduce(const cpu::Chunk& chunk, const void*, void* to) {
    const E* const x = static_cast<const E*>(chunk.in[0]);
    T* const terms = static_cast<T*>(chunk.terms);
    State& state = as<State>(to);
    if constexpr (Op::kProbability)
      state = terms ? exp_chunk<Terms, V, Op::kApart, true>(x, chunk.count, terms, {chunk.ahead})
                    : exp_chunk<Terms, V, Op::kApart, false>(x, chunk.count, terms, {chunk.ahead});
    else state = exp_chunk<Terms, V, Op::kApart, false>(x, chunk.count, terms, {chunk.ahead});
    if (Op::kProbability) as<T>(chunk.maximum) = state.m;
  }

  // Of softmax and log_softmax.
  static void reduce_over(const cpu::Chunk& chunk, void* to, const cpu::Chunk& other, const void* other_row) {
    constexpr bool kStore = Op::kProbability;
    const Row& row = as<Row>(other_row);
    State& state = as<State>(to);
    const auto write = [&](const void* from, const auto& value) {
      write_while<V>(static_cast<const T*>(from), static_cast<T*>(other.out), other.count, value,
                     [&](OverlapOf<V, kStore>* overlap) {
                       state = exp_chunk<Terms, V, Op::kApart, kStore>(static_cast<const T*>(chunk.in[0]), chunk.count,
                                                                       static_cast<T*>(chunk.terms), {chunk.ahead, overlap});
                     });
    };
    if constexpr (kStore) {
      const ChunkScale<T> k = chunk_scale<Terms>(row.normalizer, as<T>(other.maximum));
      if (!row.nan && !k.far) {
        write(other.terms, OfTerms<V>{k.template scale<V>(), V(T(1))});
        as<T>(chunk.maximum) = state.m;
        return;
      }
    } else if (!row.nan) {
      return write(other.in[0], OfLogits<V>{broadcast<V, OwnRow>(row.own)});
    }
    map<T>(other, other_row);
    reduce<T>(chunk, nullptr, to);
  }

  static void finish(const void* from, const cpu::RowContext& context, void* to) {
    const State& state = as<State>(from);
    Row& row = as<Row>(to);
    row.nan = is_special<Op>(state);
    if constexpr (Op::kIndex)
      row.index = read<std::int64_t>(static_cast<const char*>(context.input)), row.scaled = context.scaled;
    if (row.nan) {
      if constexpr (Op::kRowOutput) row.own = {Op::special(state.m, is_nan(state.R))};
      return;
    }
    if constexpr (Op::kProbability) row.normalizer = normalizer<Terms>(state);
    row.own = Op::finish(row_sum(state), row_input<Io, Op>(context));
    if constexpr (kScales)
      if (row.scaled) row.own.factor = static_cast<T>(as<ScaledIndex>(context.input).factor);
  }

  template <class Out, class Source>
  static SUMEXP_FN void write_chunk(const cpu::Chunk& chunk, const OwnRow& own, Source source) {
    store_chunk<V>(static_cast<Out*>(chunk.out), chunk.count, chunk.stream,
                   [&](int i, auto memory) SUMEXP_INLINE { return Op::map(source(i, memory), own); });
  }
  template <class E>
  static void map(const cpu::Chunk& chunk, const void* from) {
    const Row& row = as<Row>(from);
    if (row.nan) return fill_chunk<V>(static_cast<E*>(chunk.out), chunk.count, Limits<T>::nan());
    map_numbers<E>(chunk, row);
    if constexpr (Op::kIndex)
      if (const std::int64_t i = row.index - chunk.first; i >= 0 && i < chunk.count)
        write<E>(static_cast<char*>(chunk.out) + i * sizeof(E), Op::at_index(row.own));
  }
  template <class E>
  static SUMEXP_FN void map_numbers(const cpu::Chunk& chunk, const Row& row) {
    const OwnRow own = broadcast<V, OwnRow>(row.own);
    const E* const x = static_cast<const E*>(chunk.in[0]);
    if constexpr (Op::kProbability) {
      const T maximum = as<T>(chunk.maximum);
      const ChunkScale<T> k = chunk_scale<Terms>(row.normalizer, maximum);
      const Scale scale = k.template scale<V>();
      const T* terms = static_cast<const T*>(chunk.terms);
      T buffer[Geometry<T>::kChunk];
      if (k.far) terms = far_terms<E>(chunk, k, maximum, buffer);
      if (terms)
        return write_chunk<E>(chunk, own, [&](int i, auto memory) SUMEXP_INLINE {
          return probability<Terms>(memory.template load<V>(terms + i, T(0)), scale);
        });
      const Base<T> base = base_of(is_finite(maximum) ? maximum : T(0));  // a chunk of -inf alone has zero terms
      const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
      const V anchor = V(base.anchor);
      write_chunk<E>(chunk, own, [&](int i, auto memory) SUMEXP_INLINE {
        __builtin_prefetch(x + i + chunk.ahead, 0, 2);
        const V moved = memory.template load<V>(x + i, T(0)) - anchor;
        return probability<Terms>(Terms::term(Terms::parts(moved, reduce)), scale);
      });
    } else {
      write_chunk<E>(chunk, own, [&](int i, auto memory) SUMEXP_INLINE { return memory.template load<V>(x + i, T(0)); });
    }
  }
  // The terms of a far chunk for unit_scale. Such chunks are rare.
  template <class E>
  __attribute__((noinline)) static const T* far_terms(const cpu::Chunk& chunk, const ChunkScale<T>& k, T maximum, T* to) {
    if (chunk.terms) {
      memcpy(to, chunk.terms, static_cast<std::size_t>(chunk.count) * sizeof(T));
    } else {
      each_term<Terms, V>(static_cast<const E*>(chunk.in[0]), chunk.count, maximum,
                          [&](int i, auto memory, V term) SUMEXP_INLINE { memory.store(to + i, term); });
    }
    for (int i = 0; i < chunk.count; ++i) to[i] = far_term<Terms>(to[i], k);
    return to;
  }
  static void emit(const void* from, char* out, char* extra) {
    const Row& row = as<Row>(from);
    const auto put = [&](char* to, T value) SUMEXP_INLINE {
      if (Op::kIndex && row.scaled) write<T>(to, value);
      else write<Io>(to, value);
    };
    if constexpr (Op::kRowOutput) put(out, Op::emit(row.own));
    if constexpr (Op::kExtra)
      if (extra) put(extra, row.nan ? Limits<T>::nan() : Op::extra(row.own));
  }

#if SUMEXP_REGISTERS
  // -- rows V::W at a time --------------------------------------------------------------------------------

  // Nothing but V: what map takes of a tile's rows.
  struct TileRow : Scale, OwnRow {};

  // input: of the rows, as finish takes it; At: a panel or a tile of them
  template <class At>
  static SUMEXP_FN TileRow finish_tile(const TileState<V>& state, V input, const At& at) {
    const RowSum<V> sum = row_sum(state);
    TileRow row;
    if constexpr (Op::kProbability) static_cast<Scale&>(row) = term_scale<Terms, Op::kApart>(sum, state.N);
    static_cast<OwnRow&>(row) = Op::finish(sum, input);
    if constexpr (kScales)
      if (at.scaled)
        row.factor = lanes_of<V>([&](int b) SUMEXP_INLINE {
          b = b < at.rows ? b : 0;
          return static_cast<T>(as<ScaledIndex>(at.row_input.first + b * at.row_input.step).factor);
        });
    return row;
  }
  template <class E>
  static SUMEXP_FN V row_inputs(const cpu::Panel& panel) {
    if constexpr (Op::kIndex) {
      return lanes_of<V>([&](int b) SUMEXP_INLINE {
        b = b < panel.rows ? b : 0;
        return widen(read<E>(panel.in[0].first + b * panel.in[0].step + index_of(panel.row_input, b) * sizeof(E)));
      });
    } else if constexpr (Op::kRowInput >= 0) {
      return load_rows<V, Io>(panel.row_input.first, panel.row_input.step, panel.rows);
    } else {
      return V(T(0));
    }
  }
  static SUMEXP_FN V row_inputs(const cpu::Tile& tile) {
    if constexpr (Op::kIndex) {
      return lanes_of<V>([&](int b) SUMEXP_INLINE {
        b = b < tile.rows ? b : 0;
        return *lane(tile, index_of(tile.row_input, b), b);
      });
    } else if constexpr (Op::kRowInput >= 0) {
      return load_rows<V, Io>(tile.row_input.first, tile.row_input.step, tile.rows);
    } else {
      return V(T(0));
    }
  }
  typedef T __attribute__((may_alias)) Lane;
  static SUMEXP_FN Lane* lane(const cpu::Tile& tile, std::int64_t i, int b) {
    return reinterpret_cast<Lane*>(static_cast<V*>(tile.in[0]) + i) + b;
  }
  // Terms, or logits, to results.
  static SUMEXP_FN void map_rows(const cpu::Tile& tile, const TileRow& row) {
    const V* const from = static_cast<const V*>(Op::kApart && Op::kProbability ? tile.terms : tile.in[0]);
    V* const to = static_cast<V*>(tile.in[0]);
    for (int j = 0; j < tile.count; ++j) to[j] = map_value(from[j], row);
  }
  // One value a row, NaN where the row has one.
  static SUMEXP_FN void put_rows(const TileState<V>& state, V value, RowsAt out, int rows, [[maybe_unused]] bool scaled) {
    value = pick(unordered(nan_of(state)), V(Limits<T>::nan()), value);
    if constexpr (Op::kIndex && !std::is_same_v<Io, T>)
      if (scaled) return store_rows<V, T>(out.first, out.step, rows, value);
    store_rows<V, Io>(out.first, out.step, rows, value);
  }
  template <class At>
  static SUMEXP_FN void emit_extra(const TileState<V>& state, const TileRow& row, const At& at) {
    if constexpr (Op::kExtra)
      if (at.extra.first) put_rows(state, Op::extra(static_cast<const OwnRow&>(row)), at.extra, at.rows, at.scaled);
  }
  static SUMEXP_FN V map_value(V v, const TileRow& row) {
    if constexpr (Op::kProbability) v = probability<Terms>(v, static_cast<const Scale&>(row));
    return Op::map(v, static_cast<const OwnRow&>(row));
  }
  template <class At>
  static SUMEXP_FN void emit_tile(const TileState<V>& state, const TileRow& row, const At& at) {
    put_rows(state, Op::emit(static_cast<const OwnRow&>(row)), at.out, at.rows, at.scaled);
  }

  template <class E, class Count>
  static SUMEXP_FN void map_panels(const cpu::Panel* panels, int count, const TileState<V>* states, const TileRow* rows,
                                   Count n) {
    for (int t = 0; t < count; ++t) {
      T nan[W];
      V::store(nan, nan_of(states[t]));
      map_panel<V, E, 1, Op::kProbability>(PanelRows<V, E, 1, Count>{panels + t, n}, rows[t], nan,
                                           [](const V* v, const TileRow& row) SUMEXP_INLINE { return map_value(v[0], row); });
    }
  }
  template <class E>
  static bool panels(const cpu::Panel* panels, int count, double) {
    TileState<V> states[kTiles];
    if (!panel_states<Terms, V, Op::kApart, Op::kProbability, E>(panels, count, states)) return false;
    TileRow rows[kTiles];
    for (int t = 0; t < count; ++t) rows[t] = finish_tile(states[t], row_inputs<E>(panels[t]), panels[t]);
    if constexpr (Op::kRowOutput) {
      for (int t = 0; t < count; ++t) emit_tile(states[t], rows[t], panels[t]);
    } else {
      constexpr int kGroup = Geometry<T>::kGroup;
      if (panels->count == kGroup) map_panels<E>(panels, count, states, rows, std::integral_constant<int, kGroup>());
      else map_panels<E>(panels, count, states, rows, panels->count);
      for (int t = 0; t < count; ++t) {
        if constexpr (Op::kIndex) put_at_index<E>(panels[t], states[t], rows[t]);
        emit_extra(states[t], rows[t], panels[t]);
      }
    }
    return true;
  }
  template <class E>
  static SUMEXP_FN void put_at_index(const cpu::Panel& panel, const TileState<V>& state, const TileRow& row) {
    T value[W];
    V::store(value, pick(unordered(nan_of(state)), V(Limits<T>::nan()), Op::at_index(static_cast<const OwnRow&>(row))));
    for (int b = 0; b < panel.rows; ++b)
      write<E>(panel.out.first + b * panel.out.step + index_of(panel.row_input, b) * sizeof(E), value[b]);
  }

  static bool tiles(const cpu::Tile* tiles, int count, double) {
    TileState<V> states[kTiles];
    V input[kTiles];
    for (int t = 0; t < count; ++t) input[t] = row_inputs(tiles[t]);  // terms may take its place
    if (!transposed_states<Terms, V, Op::kApart, Op::kProbability>(tiles, count, states)) return false;
    TileRow rows[kTiles];  // all of them first, so that their latencies overlap
    for (int t = 0; t < count; ++t) rows[t] = finish_tile(states[t], input[t], tiles[t]);
    for (int t = 0; t < count; ++t) {
      const cpu::Tile& tile = tiles[t];
      const TileRow& row = rows[t];
      if constexpr (Op::kRowOutput) {
        emit_tile(states[t], row, tile);
      } else {
        map_rows(tile, row);
        if constexpr (Op::kIndex) {
          T value[W];
          V::store(value, Op::at_index(static_cast<const OwnRow&>(row)));
          for (int b = 0; b < tile.rows; ++b) *lane(tile, index_of(tile.row_input, b), b) = value[b];
        }
        emit_extra(states[t], row, tile);
      }
    }
    return true;
  }

  // -- rows of many chunks, side by side --------------------------------------------------------------------

  static bool tile_states(const cpu::Tile& tile, bool keep_terms, void* maximum, void* to) {
    TileState<V> s;
    if constexpr (Op::kProbability) {
      if (!(keep_terms ? transposed_states<Terms, V, Op::kApart, true>(&tile, 1, &s)
                       : transposed_states<Terms, V, Op::kApart, false>(&tile, 1, &s)))
        return false;
      V::store(static_cast<T*>(maximum), s.m);
    } else if (!transposed_states<Terms, V, Op::kApart, false>(&tile, 1, &s)) {
      return false;
    }
    T m[W], N[W];
    Wide<T> c[W], R[W];
    V::store(m, s.m), V::store(N, s.N), put_lanes(s.c, c), put_lanes(s.R, R);
    State* const states = static_cast<State*>(to);
    for (int b = 0; b < W; ++b) states[b] = {m[b], static_cast<std::int64_t>(N[b]), c[b], R[b]};
    return true;
  }

  // What map takes of the rows of a tile, for a chunk with these maxima. fix_far(b, scale) is asked for each lane whose chunk
  // is far below its row's maximum: false, and so is the whole, or it makes the terms such that unit_scale serves them.
  template <class FixFar>
  static SUMEXP_FN bool chunk_row(const Row* rows, [[maybe_unused]] const T* maximum, TileRow& to,
                                  [[maybe_unused]] FixFar fix_far) {
    if constexpr (Op::kProbability) {
      ChunkScale<T> k[W];
      for (int b = 0; b < W; ++b) {
        k[b] = chunk_scale<Terms>(rows[b].normalizer, maximum[b]);
        if (!k[b].far) continue;
        if (!fix_far(b, k[b])) return false;
        k[b].near = unit_scale<T>();
      }
      static_cast<Scale&>(to) = gather_lanes<V, Scale>([&](int b) SUMEXP_INLINE { return k[b].near; });
    }
    static_cast<OwnRow&>(to) = gather_lanes<V, OwnRow>([&](int b) SUMEXP_INLINE { return rows[b].own; });
    return true;
  }
  static void term_tile(const cpu::Tile& tile, const void* maximum) {
    V* const x = static_cast<V*>(tile.in[0]);
    V* const terms = Op::kApart ? static_cast<V*>(tile.terms) : x;
    const Reduction<V> reduce = reduction_to(exponent_of(V::load(static_cast<const T*>(maximum))));
    for (int j = 0; j < tile.count; ++j) terms[j] = Terms::term(Terms::parts(x[j], reduce));
  }
  static void map_tile(const cpu::Tile& tile, const void* maximum, const void* from) {
    const Row* const rows = static_cast<const Row*>(from);
    TileRow row;
    chunk_row(rows, static_cast<const T*>(maximum), row, [&](int b, const ChunkScale<T>& k) SUMEXP_INLINE {
      char* at = static_cast<char*>(Op::kApart ? tile.terms : tile.in[0]) + b * sizeof(T);
      for (int j = 0; j < tile.count; ++j, at += sizeof(V)) {
        T term;
        memcpy(&term, at, sizeof(T));
        term = far_term<Terms>(term, k);
        memcpy(at, &term, sizeof(T));
      }
      return true;
    });
    map_rows(tile, row);
    if constexpr (Op::kIndex)
      each_in_chunk(rows, tile.first, tile.count,
                    [&](int b, std::int64_t i) SUMEXP_INLINE { *lane(tile, i, b) = Op::at_index(rows[b].own); });
  }
  // put(b, i) for each row b whose index is in the chunk, at i.
  template <class Put>
  static SUMEXP_FN void each_in_chunk(const Row* rows, std::int64_t first, int count, Put put) {
    for (int b = 0; b < W; ++b)
      if (const std::int64_t i = rows[b].index - first; i >= 0 && i < count) put(b, i);
  }
  template <class S>
  static bool map_columns(const cpu::Columns& at, std::int64_t first, int count, const void* maximum, const void* rows) {
    TileRow row[kMostTiles<V, S>];
    [[maybe_unused]] Reduction<V> reduce[kMostTiles<V, S>];
    for (int t = 0; t < at.tiles; ++t) {
      const T* const m = static_cast<const T*>(maximum) + t * W;
      const auto refuse = [](int, const ChunkScale<T>&) SUMEXP_INLINE { return false; };
      if (!chunk_row(static_cast<const Row*>(rows) + t * W, m, row[t], refuse)) return false;
      if constexpr (Op::kProbability) reduce[t] = reduction_to(exponent_of(V::load(m)));
    }
    const ColumnResults<V, S> out(at, first);
    const bool divide = at.temperature != 1.0;
    const V temperature = V(static_cast<T>(at.temperature));
    each_element<V, S, 1>(at, 0, first, count, [&](int j, int t, V* v) SUMEXP_INLINE {
      if (divide) v[0] = v[0] / temperature;
      if constexpr (Op::kProbability) v[0] = Terms::term(Terms::parts(v[0], reduce[t]));
      out.put(j, t, map_value(v[0], row[t]));
    });
    if constexpr (Op::kIndex)
      for (int t = 0; t < at.tiles; ++t) {
        const Row* const own = static_cast<const Row*>(rows) + t * W;
        each_in_chunk(own, first, count, [&](int b, std::int64_t i) SUMEXP_INLINE {
          if (b < out.rows_of(t)) write<S>(out.at(static_cast<int>(i), t) + b * sizeof(S), Op::at_index(own[b].own));
        });
      }
    return true;
  }
#endif
};

template <class V, class S, class Op>
constexpr cpu::Kernel logits_kernel() {
  using T = ElementOf<V>;
  using Io = std::conditional_t<Op::kRowOutput || Op::kRowInput >= 0, S, T>;
  using K = LogitsKernel<V, TermsOf<S>, Io, Op>;
  cpu::Kernel kernel = kernel_of<typename K::State, typename K::Row>();
  kernel.finish[0] = K::finish;
  kernel.reduce[0][cpu::kScratch] = K::template reduce<T>;
  if constexpr (Op::kRowOutput || Op::kExtra) kernel.emit = K::emit;
  if constexpr (!Op::kRowOutput) kernel.map[cpu::kScratch] = K::template map<T>;
  constexpr bool stored = std::is_same_v<S, T> || V::kRegister;
  if constexpr (stored) {
    kernel.reduce[0][cpu::kStored] = K::template reduce<S>;
    if constexpr (!Op::kRowOutput) kernel.map[cpu::kStored] = K::template map<S>;
    if constexpr (kOverlaps<V, S> && (std::is_same_v<Op, Softmax> || std::is_same_v<Op, LogSoftmax>))
      kernel.reduce_over = K::reduce_over;
  }
#if SUMEXP_REGISTERS
  kernel.panels[cpu::kScratch] = K::template panels<T>;
  kernel.panels[cpu::kStored] = K::template panels<S>;
  kernel.tiles = K::tiles;
  kernel.tile_states = K::tile_states;
  if constexpr (!Op::kRowOutput)
    kernel.term_tile = K::term_tile, kernel.map_tile = K::map_tile, kernel.map_columns = K::template map_columns<S>;
#endif
  return kernel;
}

}  // namespace sumexp::SUMEXP_NS
