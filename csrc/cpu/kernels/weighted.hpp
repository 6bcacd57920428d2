// Kernels of an op on sums of weighted exponentials (WeightedOp in ops/op.hpp): weighted_kernel<V, S, Op>().
#pragma once

#include "../../ops/logsumexp.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"
#if SUMEXP_REGISTERS
#include "panel.hpp"
#endif

namespace sumexp::SUMEXP_NS {

template <class V, class Terms, class Op>
struct WeightedKernel {
  using T = ElementOf<V>;
  using State = typename Op::template State<T>;
  using Row = typename Op::template Row<T>;
  static constexpr int kInputs = 2;

  // Sum of term times factor in T, relative to the chunk's 2^N; in the order of the geometry.
  template <class E>
  static void add_weighted(const T* terms, const E*, const E* f, int count, ExpDotState<T>& state) {
    if (!is_finite(state.sum.m)) return;
    V dot[1][Geometry<T>::kGroup / V::W];
    weighted_lanes(terms, f, count, dot);
    state.dot = fold_group<V>(dot[0]) * anchor_factor(base_of(state.sum.m));
  }
  template <class E>
  static SUMEXP_FN void weighted_lanes(const T* terms, const E* f, int count, V (&dot)[1][Geometry<T>::kGroup / V::W]) {
    const V down = V(static_cast<T>(kCarryDown<T>));
    lane_reduce<V, 1>(count, T(0), dot, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
      using U = std::remove_pointer_t<decltype(acc)>;
      const U term = memory.template load<U>(terms + i, T(0)) * U(down);
      acc[0] = fma(term, memory.template load<U>(f + i, T(0)), acc[0]);
    });
  }
  // The same in the wide type, with the factors of the maxima apart: lanes in order, then by halves.
  static void add_weighted(const T* terms, const T* x, const T* f, int count, WeightedState<T>& to) {
    ExpState<T>& state = to.sum;
    using G = Geometry<T>;
    const auto wide_sum = [&](auto value) SUMEXP_INLINE {
      Wide<T> column[G::kLanes];
      for (int l = 0; l < G::kLanes; ++l) {
        column[l] = WideOf<T>::constant(0);
        for (int i = l; i < count; i += G::kLanes) column[l] = column[l] + value(i);
      }
      for (int width = G::kLanes / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) column[l] = column[l] + column[l + width];
      return column[0];
    };
    const T infinity = Limits<T>::infinity;
    if (state.m == -infinity) return;
    state.c = wide_sum([&](int i) SUMEXP_INLINE { return WideOf<T>::from(x[i] == state.m ? f[i] : T(0)); });
    if (state.m == infinity || is_nan(state.R)) return;
    state.R = wide_sum([&](int i) SUMEXP_INLINE { return x[i] == state.m ? WideOf<T>::constant(0) : product(terms[i], f[i]); });
    state.R = state.R * anchor_factor(base_of(state.m));
  }
  static double product(float t, float f) { return static_cast<double>(t) * static_cast<double>(f); }
  static DD<double> product(double t, double f) { return two_product(t, f); }

  // E: the elements that a function reads, of V's own type; where sums are in T also of 16 bits.
  template <class E>
  static void reduce(const cpu::Chunk& chunk, const void*, void* to) {
    const E *x = static_cast<const E*>(chunk.in[0]), *f = static_cast<const E*>(chunk.in[1]);
    T terms[Geometry<T>::kChunk];
    State& state = as<State>(to);
    state = State::empty();
    T kept[2][Op::kExact ? Geometry<T>::kChunk : 1];
    if constexpr (Op::kExact) {
      for (int i = 0; i < chunk.count; ++i) {
        const auto at = [&](const T* p) { return read<T>(reinterpret_cast<const char*>(p + i)); };  // at any address
        kept[0][i] = at(x), kept[1][i] = at(f);
        weigh(kept[0][i], kept[1][i]);
        if (is_finite(kept[1][i])) continue;
        state.special = state.special + static_cast<double>(kept[1][i]);
        kept[1][i] = T(0);
      }
      x = kept[0], f = kept[1];
    }
    state.sum = exp_chunk<Terms, V, false, true>(x, chunk.count, terms, {chunk.ahead});
    add_weighted(terms, x, f, chunk.count, state);
  }
  static void finish(const void* state, const cpu::RowContext&, void* row) { as<Row>(row) = Op::finish(as<State>(state)); }
  template <class S>
  static void emit(const void* row, char* out, char* extra) {
    T second = T(0);
    write<S>(out, Op::emit(as<Row>(row), extra ? &second : nullptr));
    if (extra) write<S>(extra, second);
  }

#if SUMEXP_REGISTERS
  // Rows V::W at a time, of sums in T; of long ones as many as have room for their terms, since callers' stacks may be small.
  template <class S, class E>
  static bool panels(const cpu::Panel* panels, int count, double) {
    constexpr int kRoom = (V::W > 4 ? V::W / 4 : 1) * Geometry<T>::kChunk;  // of the longest row at least
    T terms[kRoom], value[kTiles][V::W] = {};
    const int at_once = kRoom / panels->count < V::W ? kRoom / panels->count : V::W;
    for (int t = 0; t < count; ++t)
      for (int first = 0; first < panels[t].rows; first += at_once) {
        cpu::Panel some = panels[t];
        some.rows = some.rows - first < at_once ? some.rows - first : at_once;
        for (int k = 0; k < kInputs; ++k) some.in[k].first += first * some.in[k].step;
        some.terms = {reinterpret_cast<char*>(terms), some.count * static_cast<std::int64_t>(sizeof(T))};
        V found;
        if (!quotients(PanelRows<V, E, kInputs, int>{&some, some.count}, found)) return false;
        store_rows<V, T>(reinterpret_cast<char*>(value[t] + first), sizeof(T), some.rows, found);
      }
    for (int t = 0; t < count; ++t)
      store_rows<V, S>(panels[t].out.first, panels[t].out.step, panels[t].rows, V::load(value[t]));
    return true;
  }
  template <class E>
  static SUMEXP_FN bool quotients(const PanelRows<V, E, kInputs, int>& rows, V& found) {
    TileState<V> state;
    if (!panel_states<Terms, V, false, true, E>(rows.at, 1, &state)) return false;
    typename PanelRows<V, E, kInputs, int>::Groups dots;
    rows.each_row([&](int b, const auto& row) SUMEXP_INLINE {
      V dot[1][Geometry<T>::kGroup / V::W];
      weighted_lanes(row.terms(), row.in(1), rows.count, dot);
      dots[b] = group_members(dot[0]);
    });
    rows.repeat_first(dots);
    found = quiet(Op::template quotient<V>(dots.fold() + WideOf<V>::constant(0), total(row_sum(state))));
    return true;
  }
#endif
};

template <class V, class S, class Op>
constexpr cpu::Kernel weighted_kernel() {
  using K = WeightedKernel<V, TermsOf<S>, Op>;
  using T = ElementOf<V>;
  cpu::Kernel kernel = kernel_of<typename K::State, typename K::Row>();
  kernel.finish[0] = K::finish;
  constexpr bool stored = std::is_same_v<S, T> || (V::kRegister && !Op::kExact);
  kernel.reduce[0][cpu::kScratch] = K::template reduce<T>;
  if constexpr (stored) kernel.reduce[0][cpu::kStored] = K::template reduce<S>;
  kernel.emit = K::template emit<S>;
#if SUMEXP_REGISTERS
  if constexpr (!Op::kExact)
    kernel.panels[cpu::kScratch] = K::template panels<S, T>, kernel.panels[cpu::kStored] = K::template panels<S, S>;
#endif
  return kernel;
}

}  // namespace sumexp::SUMEXP_NS
