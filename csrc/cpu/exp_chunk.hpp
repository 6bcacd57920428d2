// One chunk of logits, contiguous in T, to its state: the kernel under every operation on logits.
#pragma once

#include "../numerics/state.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// The largest element is the largest of these lanes; -inf for none. NaN are passed over.
template <class V, class E>
SUMEXP_FN V lane_max(const E* x, int count) {
  using T = ElementOf<V>;
  if (count <= V::W) {
    const V x0 = count == V::W ? V::load(x) : Part{count}.load<V>(x, -Limits<T>::infinity);
    return larger(x0, V(-Limits<T>::infinity));
  }
  V best[4] = {V(-Limits<T>::infinity), V(-Limits<T>::infinity), V(-Limits<T>::infinity), V(-Limits<T>::infinity)};
  int i = 0;
  for (; i + 4 * V::W <= count; i += 4 * V::W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) best[u] = larger(V::load(x + i + u * V::W), best[u]);
  for (; i + V::W <= count; i += V::W) best[0] = larger(V::load(x + i), best[0]);
  if (i < count) best[1] = larger(Part{count - i}.load<V>(x + i, -Limits<T>::infinity), best[1]);
  return larger(larger(best[0], best[1]), larger(best[2], best[3]));
}
template <class V, class E>
SUMEXP_FN ElementOf<V> chunk_max(const E* x, int count) {
  const ElementOf<V> m = largest(lane_max<V>(x, count));
  return m == m ? m : -Limits<ElementOf<V>>::infinity;
}

template <class V, class E>
SUMEXP_FN bool any_nan(const E* x, int count) {
  int found = 0;
  each_vector<V>(count, [&](int i, auto memory) {
    found |= ::sumexp::SUMEXP_NS::count(unordered(memory.template load<V>(x + i, ElementOf<V>(0))));
  });
  return found != 0;
}

// The largest element below `limit` is the largest of these lanes; -inf for none.
template <class V, class E>
SUMEXP_FN V lane_max_below(const E* x, int count, ElementOf<V> limit) {
  using T = ElementOf<V>;
  const V lowest = V(-Limits<T>::infinity), bound = V(limit);
  V best = lowest;
  each_vector<V>(count, [&](int i, auto memory) {
    const V v = memory.template load<V>(x + i, -Limits<T>::infinity);
    best = larger(pick(at_or_above(v, bound), lowest, v), best);
  });
  return best;
}

// The terms of a chunk, summed to one group of lanes, as Terms has it (hi in sums[0], lo in sums[1]). kExclude: elements
// from `bound` up are counted in `excluded` instead. kStore: terms, relative to what `reduce` says (with kAnchored
// to e^anchor), are written to `terms`, which may be x. While the arithmetic runs, what lies `ahead` elements on
// is prefetched.
template <class Terms, class V, bool kExclude, bool kStore, bool kAnchored, class E>
SUMEXP_FN void sum_term_lanes(const E* x, int count, const Reduction<V>& reduce, V anchor, V bound, int& excluded,
                              ElementOf<V>* terms, std::int64_t ahead,
                              V (&sums)[Terms::kSums][Geometry<ElementOf<V>>::kGroup / V::W]) {
  using T = ElementOf<V>;
  int left_out = 0;
  lane_reduce<V, Terms::kSums>(count, Terms::template start<T>(), sums, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
    using U = std::remove_pointer_t<decltype(acc)>;  // V, or some abreast
    const U raw = memory.template load<U>(x + i, -Limits<T>::infinity);
    for (int j = 0; j < U::W; j += V::W) __builtin_prefetch(x + i + j + ahead, 0, 2);
    const Reduction<U> to = {U(reduce.shift), U(reduce.floor)};
    auto e = Terms::parts(kAnchored ? raw - U(anchor) : raw, to);
    if constexpr (kExclude) {
      const auto out = at_or_above(raw, U(bound));
      left_out += ::sumexp::SUMEXP_NS::count(out);
      e.s = clear(out, e.s);
    }
    const U term = Terms::term(e);
    Terms::add(acc, e, term);
    if constexpr (kStore) memory.store(terms + i, term);
  });
  excluded = left_out;
}

// The sum of the chunk's terms relative to `base`: sum of e^x 2^(carry - N).
template <class Terms, class V, bool kExclude, bool kStore, class E>
SUMEXP_FN Wide<ElementOf<V>> sum_terms(const E* x, int count, const Base<ElementOf<V>>& base,
                                       ElementOf<V> limit, int& excluded, ElementOf<V>* terms, std::int64_t ahead) {
  using T = ElementOf<V>;
  const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
  const V anchor = V(base.anchor), bound = V(limit);
  V sums[Terms::kSums][Geometry<T>::kGroup / V::W];
  if (base.anchor == T(0)) {
    sum_term_lanes<Terms, V, kExclude, kStore, false>(x, count, reduce, anchor, bound, excluded, terms, ahead, sums);
    return fold_terms(sums);
  }
  sum_term_lanes<Terms, V, kExclude, kStore, true>(x, count, reduce, anchor, bound, excluded, terms, ahead, sums);
  return fold_terms(sums) * exp_wide(base.rho);
}

// The state of a chunk whose maximum is m. kExclude: elements equal to the maximum go to c instead of R.
template <class Terms, class V, bool kExclude, bool kStore, class E>
SUMEXP_FN ExpState<ElementOf<V>> exp_chunk(const E* x, int count, ElementOf<V> m, ElementOf<V>* terms,
                                           std::int64_t ahead = 0) {
  using T = ElementOf<V>;
  ExpState<T> state = ExpState<T>::empty();
  state.m = m;
  if (!is_finite(state.m)) {
    if (any_nan<V>(x, count)) state.R = WideOf<T>::constant(Limits<double>::nan());
    if (kStore) each_vector<V>(count, [&](int i, auto memory) { memory.store(terms + i, V(T(0))); });
    return state;
  }
  const Base<T> base = base_of(state.m);
  int of_max = 0;
  state.N = base.N;
  state.R = sum_terms<Terms, V, kExclude, kStore>(x, count, base, state.m, of_max, terms, ahead);
  state.c = WideOf<T>::constant(of_max);
  if (kExclude && !Terms::kShort && needs_second_look(state)) {
    int others = 0;
    const T next = largest(lane_max_below<V>(x, count, state.m));
    const Base<T> lower = base_of(next);
    const Wide<T> R = sum_terms<Terms, V, true, false>(x, count, lower, state.m, others, nullptr, 0);
    state.R = shifted<T>(R, exponent_gap(next, lower.N, state.m, base.N));
  }
  return state;
}

}  // namespace sumexp::SUMEXP_NS
