#include SUMEXP_SIMD
//
#include "exp_chunk.hpp"

namespace sumexp::SUMEXP_NS {

namespace {

template <class V, class E>
bool any_nan(const E* x, int count) {
  int found = 0;
  each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
    found |= ::sumexp::SUMEXP_NS::count(unordered(memory.template load<V>(x + i, ElementOf<V>(0))));
  });
  return found != 0;
}

template <class V, class E>
ElementOf<V> largest_of(const E* x, int count) {
  const ElementOf<V> m = largest(lane_max<V>(x, count));
  return m == m ? m : -Limits<ElementOf<V>>::infinity;
}

// Where the chunk is anchored: a copy of it relative to the anchor.
template <class V, class E>
void shift_chunk(const E* x, int count, ElementOf<V> anchor, ElementOf<V>* to) {
  const V a = V(anchor);
  each_vector<V>(count, [&](int i, auto memory)
                            SUMEXP_INLINE { memory.store(to + i, memory.template load<V>(x + i, ElementOf<V>(0)) - a); });
}

}  // namespace

template <class Terms, class V, bool kApart, bool kStore, class E>
Wide<ElementOf<V>> sum_terms(const E* x, int count, Reduction<ElementOf<V>> reduce, ElementOf<V> bound, int& counted,
                             ElementOf<V>* terms, const Meanwhile<V, kStore>& meanwhile) {
  V sums[Terms::kSums][Geometry<ElementOf<V>>::kGroup / V::W];
  const Reduction<V> to = {V(reduce.shift), V(reduce.floor)};
  using G = Geometry<ElementOf<V>>;
  constexpr bool kWorks = (kStore || kApart) && kOverlaps<V, E>;
  const auto sum = [&](const auto& memory) SUMEXP_INLINE {
    sum_term_lanes<Terms, V, kApart, kStore>(x, count, to, V(bound), counted, terms, memory, sums);
  };
  if (!V::kRegister || count <= G::kLanes) sum(ToNextRow{meanwhile.ahead});
  else if (!kWorks || !meanwhile.overlap) sum(WithinRow<G::kChunk>(meanwhile.ahead));
  else if constexpr (kWorks) sum(WithWork<V, kStore, G::kChunk>(meanwhile));
  return fold_terms(sums);
}

// Of a chunk whose maximum, `base`'s, is finite.
template <class Terms, class V, bool kApart, bool kStore, class E>
void sum_chunk(const E* x, int count, const Reduction<ElementOf<V>>& reduce, ElementOf<V> limit, ExpState<ElementOf<V>>& state,
               ElementOf<V>* terms, const Meanwhile<V, kStore>& meanwhile) {
  int of_max = 0;
  state.R = sum_terms<Terms, V, kApart, kStore>(x, count, reduce, limit, of_max, terms, meanwhile);
  state.c = WideOf<ElementOf<V>>::constant(of_max);
}

template <class Terms, class V, bool kApart, bool kStore, class E>
ExpState<ElementOf<V>> exp_chunk(const E* x, int count, ElementOf<V>* terms, const Meanwhile<V, kStore>& meanwhile) {
  using T = ElementOf<V>;
  ExpState<T> state = ExpState<T>::empty();
  state.m = largest_of<V>(x, count);
  if (!is_finite(state.m)) {
    if (any_nan<V>(x, count)) state.R = WideOf<T>::constant(Limits<double>::nan());
    if (kStore) each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE { memory.store(terms + i, V(T(0))); });
    return state;
  }
  const Base<T> base = base_of(state.m);
  state.N = base.N;
  T shifted_x[Geometry<T>::kChunk];
  if (base.anchor == T(0)) {
    sum_chunk<Terms, V, kApart, kStore>(x, count, base.reduce, state.m, state, terms, meanwhile);
  } else {
    shift_chunk<V>(x, count, base.anchor, shifted_x);
    sum_chunk<Terms, V, kApart, kStore>(static_cast<const T*>(shifted_x), count, base.reduce, T(0), state, terms,
                                        {0, meanwhile.overlap});
    state.R = state.R * exp_wide(base.rho);
  }
  if (kApart && !Terms::kShort && needs_refinement(state)) {
    int others = 0;
    const T next = largest(lane_max_below<V>(x, count, state.m));
    const Base<T> lower = base_of(next);
    Wide<T> R;
    if (lower.anchor == T(0)) {
      R = sum_terms<Terms, V, true, false>(x, count, lower.reduce, state.m, others, static_cast<T*>(nullptr), {});
    } else {
      shift_chunk<V>(x, count, lower.anchor, shifted_x);
      R = sum_terms<Terms, V, true, false>(static_cast<const T*>(shifted_x), count, lower.reduce, state.m - lower.anchor,
                                           others, static_cast<T*>(nullptr), {}) *
          exp_wide(lower.rho);
    }
    state.R = shifted<T>(R, exponent_gap(next, lower.N, state.m, base.N));
  }
  return state;
}

#define SUMEXP_CHUNK_OF(Terms, V, E, kApart, kStore)                                                   \
  template ExpState<ElementOf<V>> exp_chunk<Terms, V, kApart, kStore, E>(const E*, int, ElementOf<V>*, \
                                                                         const Meanwhile<V, kStore>&);
#define SUMEXP_CHUNK(Terms, V, E)            \
  SUMEXP_CHUNK_OF(Terms, V, E, false, true)  \
  SUMEXP_CHUNK_OF(Terms, V, E, false, false) \
  SUMEXP_CHUNK_OF(Terms, V, E, true, false)  \
  SUMEXP_CHUNK_OF(Terms, V, E, true, true)

SUMEXP_CHUNK(FullTerms, F32, float)
SUMEXP_CHUNK(FullTerms, F64, double)
SUMEXP_CHUNK(ShortTerms, F32, float)
#if SUMEXP_REGISTERS  // rows of 16 bits are read where they lie
SUMEXP_CHUNK(ShortTerms, F32, f16)
SUMEXP_CHUNK(ShortTerms, F32, bf16)
#endif

// For tiles, of which a few rows need refinement.
template double sum_terms<FullTerms, F32, true, false>(const float*, int, Reduction<float>, float, int&, float*,
                                                       const Meanwhile<F32, false>&);
template DD<double> sum_terms<FullTerms, F64, true, false>(const double*, int, Reduction<double>, double, int&, double*,
                                                           const Meanwhile<F64, false>&);

}  // namespace sumexp::SUMEXP_NS
