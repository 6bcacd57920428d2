// The operations as row kernels: how each reduces one chunk, finishes a row and maps one chunk, over the
// term functions of ops/ and Terms, which is TermsOf the storage type. All have the same shape, so that one driver
// (rows.hpp) serves them:
//
//   kInputs     elementwise inputs          kPasses     reductions before the result (softmax_hvp: 2)
//   kTerms      reduce leaves terms that map wants instead of the input
//   kRowOutput  one value a row (emit) instead of elements (map)
//   peak(in, count) -> T      the chunk's maximum, where one is needed; a stage of its own, so that the driver
//                             can run it for several rows and let their latencies overlap
//   reduce<pass>(in, count, peak, terms, row) -> State,  finish(pass, state, row),  map / emit
#pragma once

#include "../ops/log_softmax.hpp"
#include "../ops/logsumexp.hpp"
#include "../ops/softmax.hpp"
#include "exp_chunk.hpp"

namespace sumexp::SUMEXP_NS {

struct Params {
  double factor = 1.0;     // that the temperature gives a derivative
  double row_input = 0.0;  // logsumexp_vjp: this row's g
};

// Where a chunk of results goes: past the cache (Streaming) when the plan says so. Loads are unaligned,
// so only the head of the destination needs care.
template <class V, class E, class Body>
SUMEXP_FN void store_chunk(E* out, int count, bool stream, Body body) {
  if (!stream) {
    each_vector<V>(count, [&](int i, auto memory) { memory.store(out + i, body(i, memory)); });
    return;
  }
  constexpr std::uintptr_t bytes = V::W * sizeof(E);
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(out) % bytes;
  int i = past ? static_cast<int>((bytes - past) / sizeof(E)) : 0;
  if (i > count || past % sizeof(E)) i = count;  // too short, or never aligned: plain stores
  int j = 0;
  for (; j + V::W <= i; j += V::W) V::store(out + j, body(j, Whole{}));
  if (j < i) Part{i - j}.store(out + j, body(j, Part{i - j}));
  for (; i + V::W <= count; i += V::W) V::stream(out + i, body(i, Whole{}));
  if (i < count) Part{count - i}.store(out + i, body(i, Part{count - i}));
}

template <class V, class E>
SUMEXP_FN void fill_chunk(E* out, int count, ElementOf<V> value) {
  store_chunk<V>(out, count, false, [&](int, auto) { return V(value); });
}

template <class V>
struct LogitsKernel {
  static constexpr bool kPackedOnly = false;
  template <class E>
  static ElementOf<V> peak(const E* const* in, int count) { return chunk_max<V>(in[0], count); }
};

template <class V, class Terms>
struct SoftmaxKernel : LogitsKernel<V> {
  using T = ElementOf<V>;
  using State = ExpState<T>;
  using Row = SoftmaxRow<T>;
  static constexpr int kInputs = 1, kPasses = 1;
  static constexpr bool kTerms = true, kRowOutput = false;

  template <int, class E>
  static State reduce(const E* const* in, int count, T peak, T* terms, const Row&, std::int64_t ahead) {
    return terms ? exp_chunk<Terms, V, false, true>(in[0], count, peak, terms, ahead)
                 : exp_chunk<Terms, V, false, false>(in[0], count, peak, nullptr, ahead);
  }
  static void finish(int, const State& state, Row& row, const Params&) { row = softmax_finish<Terms>(state); }

  // The result from terms, which `source(i, memory)` gives; `last` is applied to every probability.
  template <class Source, class Out, class Last>
  static SUMEXP_FN void scale(Source source, Out* out, int count, bool stream, T chunk_m, const Row& row,
                              Last last) {
    const TermScale<T> k = term_scale<Terms>(row, chunk_m);
    const V h = V(k.h), l = V(k.l);
    if (k.far) {
      const V before = V(k.before), after = V(k.after);
      store_chunk<V>(out, count, stream,
                     [&](int i, auto memory) { return last(probability_far(source(i, memory), h, l, before, after)); });
    } else {
      const V top_term = V(k.top_term), top = V(k.top);
      store_chunk<V>(out, count, stream,
                     [&](int i, auto memory) { return last(probability<Terms>(source(i, memory), h, l, top_term, top)); });
    }
  }
  // terms: those that reduce kept; nullptr: they are computed again
  template <class E, class Out, class Last>
  static SUMEXP_FN void map_last(const E* x, const T* terms, Out* out, int count, bool stream, T chunk_m,
                                 const Row& row, std::int64_t ahead, Last last) {
    if (row.nan) return fill_chunk<V>(out, count, Limits<T>::nan());
    if (terms) {
      const auto kept = [&](int i, auto memory) { return memory.template load<V>(terms + i, T(0)); };
      scale(kept, out, count, stream, chunk_m, row, last);
    } else {
      const Base<T> base = base_of(is_finite(chunk_m) ? chunk_m : T(0));  // a chunk of -inf alone has zero terms
      const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
      const V anchor = V(base.anchor);
      const auto again = [&](int i, auto memory) {
        __builtin_prefetch(x + i + ahead, 0, 2);
        return Terms::term(Terms::parts(memory.template load<V>(x + i, T(0)) - anchor, reduce));
      };
      scale(again, out, count, stream, chunk_m, row, last);
    }
  }
  template <class E, class Out>
  static void map(const E* const* in, const T* terms, Out* out, int count, bool stream, T chunk_m, const Row& row,
                  const Params&, std::int64_t ahead) {
    map_last(in[0], terms, out, count, stream, chunk_m, row, ahead, [](V y) { return y; });
  }
};

template <class V, class Terms>
struct LogSumExpVjpKernel : SoftmaxKernel<V, Terms> {
  using T = ElementOf<V>;
  template <class E, class Out>
  static void map(const E* const* in, const T* terms, Out* out, int count, bool stream, T chunk_m,
                  const SoftmaxRow<T>& row, const Params& params, std::int64_t ahead) {
    const V g = V(static_cast<T>(params.row_input));
    const auto times_g = [&](V y) { return quiet(y * g); };
    SoftmaxKernel<V, Terms>::map_last(in[0], terms, out, count, stream, chunk_m, row, ahead, times_g);
  }
};

template <class V, class Terms>
struct LogSoftmaxKernel : LogitsKernel<V> {
  using T = ElementOf<V>;
  using State = ExpState<T>;
  using Row = LogSoftmaxRow<T>;
  static constexpr int kInputs = 1, kPasses = 1;
  static constexpr bool kTerms = false, kRowOutput = false;

  template <int, class E>
  static State reduce(const E* const* in, int count, T peak, T*, const Row&, std::int64_t ahead) {
    return exp_chunk<Terms, V, true, false>(in[0], count, peak, nullptr, ahead);
  }
  static void finish(int, const State& state, Row& row, const Params&) { row = log_softmax_finish(state); }
  template <class E, class Out>
  static void map(const E* const* in, const T*, Out* out, int count, bool stream, T, const Row& row, const Params&,
                  std::int64_t) {
    if (row.nan) return fill_chunk<V>(out, count, Limits<T>::nan());
    const V m = V(row.m), L = V(row.L);
    store_chunk<V>(out, count, stream, [&](int i, auto memory) {
      return log_probability(memory.template load<V>(in[0] + i, T(0)), m, L);
    });
  }
};

template <class V, class Terms>
struct LogSumExpKernel : LogitsKernel<V> {
  using T = ElementOf<V>;
  using State = ExpState<T>;
  struct Row {
    T value;
  };
  static constexpr int kInputs = 1, kPasses = 1;
  static constexpr bool kTerms = false, kRowOutput = true;

  template <int, class E>
  static State reduce(const E* const* in, int count, T peak, T*, const Row&, std::int64_t ahead) {
    return exp_chunk<Terms, V, true, false>(in[0], count, peak, nullptr, ahead);
  }
  static void finish(int, const State& state, Row& row, const Params&) { row.value = logsumexp_finish(state); }
  static T emit(const Row& row, T*) { return row.value; }
};

// logsumexp with weights, in[1] = b. Weighted terms are added in the wide type: weights may be of any size
// and sign, and cancel. `terms` is scratch here.
template <class V, class Terms>
struct WeightedLogSumExpKernel : LogitsKernel<V> {
  using T = ElementOf<V>;
  using State = ExpState<T>;
  using Row = Signed<T>;
  static constexpr int kInputs = 2, kPasses = 1;
  static constexpr bool kTerms = true, kRowOutput = true, kPackedOnly = true;

  template <int>
  static State reduce(const T* const* in, int count, T peak, T* terms, const Row&, std::int64_t ahead) {
    const T *x = in[0], *b = in[1];
    State state = exp_chunk<Terms, V, true, true>(x, count, peak, terms, ahead);
    // sums in the order of the geometry, in W: lanes, columns, members
    using G = Geometry<T>;
    const auto wide_sum = [&](auto value) {
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
    if (state.m == -infinity) return state;
    state.c = wide_sum([&](int i) { return WideOf<T>::from(x[i] == state.m ? b[i] : T(0)); });
    if (state.m == infinity) return state;
    if (is_nan(state.R)) return state;
    const Base<T> base = base_of(state.m);
    state.R = wide_sum([&](int i) { return x[i] == state.m ? WideOf<T>::constant(0) : product(terms[i], b[i]); });
    state.R = state.R * anchor_factor(base);
    return state;
  }
  static double product(float t, float b) { return static_cast<double>(t) * static_cast<double>(b); }
  static DD<double> product(double t, double b) { return two_product(t, b); }
  static void finish(int, const State& state, Row& row, const Params&) { row = logsumexp_finish_signed(state); }
  static T emit(const Row& row, T* sign) {
    if (sign) *sign = row.sign;
    return !sign && row.sign < T(0) ? Limits<T>::nan() : row.value;
  }
};

// logsumexp JVP: in x, t
template <class V, class Terms>
struct LogSumExpJvpKernel : LogitsKernel<V> {
  using T = ElementOf<V>;
  using State = ExpDotState<T>;
  struct Row {
    T value;
  };
  static constexpr int kInputs = 2, kPasses = 1;
  static constexpr bool kTerms = true, kRowOutput = true;

  template <int, class E>
  static State reduce(const E* const* in, int count, T peak, T* terms, const Row&, std::int64_t ahead) {
    State state = {exp_chunk<Terms, V, false, true>(in[0], count, peak, terms, ahead), WideOf<T>::constant(0)};
    if (!is_finite(state.sum.m)) return state;
    V dot[1][Geometry<T>::kGroup / V::W];
    const V down = V(static_cast<T>(kCarryDown<T>));
    lane_reduce<V, 1>(count, T(0), dot, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
      using U = std::remove_pointer_t<decltype(acc)>;
      const U term = memory.template load<U>(terms + i, T(0)) * U(down);
      acc[0] = fma(term, memory.template load<U>(in[1] + i, T(0)), acc[0]);
    });
    state.dot = fold_group<V>(dot[0]) * anchor_factor(base_of(state.sum.m));
    return state;
  }
  static void finish(int, const State& state, Row& row, const Params&) { row.value = logsumexp_jvp_finish(state); }
  static T emit(const Row& row, T*) { return row.value; }
};

// Every op of ops/sums.hpp.
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

// The sums of one pass over a chunk, each to one group of lanes.
template <class V, class Op, int pass, class E>
SUMEXP_FN void sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars,
                         V (&sums)[Op::kSums][Geometry<ElementOf<V>>::kGroup / V::W]) {
  lane_sweep<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) {
    V v[Op::kInputs];
#pragma GCC unroll 3
    for (int k = 0; k < Op::kInputs; ++k) v[k] = memory.template load<V>(in[k] + i, ElementOf<V>(0));
    Op::template add<pass>(acc, v, scalars);
  });
}

template <class V, class Op>
struct SumsKernel {
  using T = ElementOf<V>;
  using State = SumsState<T, Op::kSums>;
  struct Row {
    RowScalars<T> sums;
    T factor;
  };
  static constexpr int kInputs = Op::kInputs, kPasses = Op::kPasses;
  static constexpr bool kTerms = false, kRowOutput = false, kPackedOnly = false;

  template <class E>
  static T peak(const E* const*, int) {
    return T(0);
  }
  static SUMEXP_FN RowScalars<V> broadcast(const RowScalars<T>& from) {
    RowScalars<V> to;
    for (int k = 0; k < RowScalars<T>::kMax; ++k) to.h[k] = V(from.h[k]), to.l[k] = V(from.l[k]);
    return to;
  }
  template <int pass, class E>
  static State reduce(const E* const* in, int count, T, T*, const Row& row, std::int64_t) {
    V sums[Op::kSums][Geometry<T>::kGroup / V::W];
    sum_lanes<V, Op, pass>(in, count, broadcast(row.sums), sums);
    State state;
    for (int k = 0; k < Op::kSums; ++k) state.sum[k] = fold_group<V>(sums[k]);
    return state;
  }
  static void finish(int pass, const State& state, Row& row, const Params& params) {
    for (int k = 0; k < Op::kSums && pass * Op::kSums + k < RowScalars<T>::kMax; ++k)
      WideOf<T>::split(state.sum[k], row.sums.h[pass * Op::kSums + k], row.sums.l[pass * Op::kSums + k]);
    row.factor = static_cast<T>(params.factor);
  }
  template <class E, class Out>
  static void map(const E* const* in, const T*, Out* out, int count, bool stream, T, const Row& row, const Params&,
                  std::int64_t) {
    const RowScalars<V> scalars = broadcast(row.sums);
    const V factor = V(row.factor);
    store_chunk<V>(out, count, stream, [&](int i, auto memory) {
      V v[kInputs];
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k) v[k] = memory.template load<V>(in[k] + i, T(0));
      return quiet(Op::map(v, scalars) * factor);
    });
  }
};

}  // namespace sumexp::SUMEXP_NS
