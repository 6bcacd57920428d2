// One chunk of logits, held by a warp, to its state: the kernel under every operation on logits.
#pragma once

#include "../numerics/state.hpp"
#include "fold.cuh"

namespace sumexp::SUMEXP_NS {

// The largest element of the chunk (below `limit`); -inf for none. A NaN loses.
template <class S, int kRows>
SUMEXP_DEVICE Compute<S> chunk_max(const Compute<S> (&x)[kRows][Tile<S>::kValues]) {
  Compute<S> m = -Limits<Compute<S>>::infinity;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < Tile<S>::kValues; ++i) m = arch::larger(x[r][i], m);
  return warp_max(m);
}
template <class S, int kRows>
SUMEXP_DEVICE Compute<S> chunk_max_below(const Compute<S> (&x)[kRows][Tile<S>::kValues], Compute<S> limit) {
  const Compute<S> lowest = -Limits<Compute<S>>::infinity;
  Compute<S> m = lowest;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < Tile<S>::kValues; ++i) m = arch::larger(x[r][i] >= limit ? lowest : x[r][i], m);
  return warp_max(m);
}

// What stands for an element that equals the maximum where terms are stored without it: no term is negative.
template <class T>
inline constexpr T kOfMaximum = T(-1);

// Terms: as results of type S are made of (TermsOf), or FullTerms for any.

// The sum of the chunk's terms relative to `base`. kExclude: elements from `limit` up count in `excluded`
// instead. kStore: x becomes the terms, relative to 2^(N - carry) (to e^m 2^-carry if anchored), or kOfMaximum.
template <class S, bool kExclude, bool kStore, class Terms = TermsOf<S>, int kRows>
SUMEXP_DEVICE Wide<Compute<S>> sum_terms(Compute<S> (&x)[kRows][Tile<S>::kValues], const Base<Compute<S>>& base,
                                         Compute<S> limit, int& excluded) {
  using T = Compute<S>;
  constexpr int kValues = Tile<S>::kValues;
  T sums[kValues][Terms::kSums];
#pragma unroll
  for (int i = 0; i < kValues; ++i)
#pragma unroll
    for (int k = 0; k < Terms::kSums; ++k) sums[i][k] = k == 0 ? Terms::template start<T>() : T(0);
  int left_out = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      auto e = Terms::parts(x[r][i] - base.anchor, base.reduce);
      const bool out = kExclude && x[r][i] >= limit;
      if constexpr (kExclude) {
        left_out += out;
        e.s = clear(out, e.s);
      }
      const T term = Terms::term(e);
      Terms::add(sums[i], e, term);
      if constexpr (kStore) x[r][i] = out ? kOfMaximum<T> : term;
    }
#pragma unroll
  for (int i = 0; i < kValues; ++i) sums[i][0] = sums[i][0] - Terms::template start<T>();
  if constexpr (kExclude) excluded = arch::warp_add(left_out);
  const Wide<T> sum = fold_lanes<S>(sums);
  return base.anchor == T(0) ? sum : sum * exp_wide(base.rho);
}

// kExclude: elements equal to the maximum go to c instead of R. kStore: as sum_terms.
template <class S, bool kExclude, bool kStore, class Terms = TermsOf<S>, int kRows>
SUMEXP_DEVICE ExpState<Compute<S>> exp_chunk(Compute<S> (&x)[kRows][Tile<S>::kValues]) {
  using T = Compute<S>;
  ExpState<T> state = ExpState<T>::empty();
  state.m = chunk_max<S>(x);
  if (!is_finite(state.m)) {  // the whole warp goes here or none of it
    bool nan = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < Tile<S>::kValues; ++i) {
        nan = nan || x[r][i] != x[r][i];
        if (kStore) x[r][i] = kExclude && x[r][i] == state.m ? kOfMaximum<T> : T(0);
      }
    if (arch::any(nan)) state.R = WideOf<T>::constant(Limits<double>::nan());
    return state;
  }
  if constexpr (kExclude && !kStore && !Terms::kShort) {
    T top = state.m;  // of the terms that are summed: the maximum, or the largest element below it
#pragma unroll 1
    for (bool again = false;; again = true) {
      const Base<T> base = base_of(top);
      int left_out = 0;
      const Wide<T> R = sum_terms<S, true, false, Terms>(x, base, state.m, left_out);
      if (again) {
        state.R = shifted<T>(R, exponent_gap(top, base.N, state.m, state.N));
        break;
      }
      state.N = base.N;
      state.R = R;
      state.c = WideOf<T>::constant(left_out);
      if (!needs_refinement(state)) break;
      top = chunk_max_below<S>(x, state.m);
    }
  } else {
    const Base<T> base = base_of(state.m);
    int of_max = 0;
    state.N = base.N;
    state.R = sum_terms<S, kExclude, kStore, Terms>(x, base, state.m, of_max);
    state.c = WideOf<T>::constant(of_max);
  }
  return state;
}

// The terms alone, of a chunk whose maximum is known: the same instructions, the same bits.
template <class S, int kRows>
SUMEXP_DEVICE void exp_terms(Compute<S> (&x)[kRows][Tile<S>::kValues], Compute<S> maximum) {
  using T = Compute<S>;
  const bool finite = is_finite(maximum);
  const Base<T> base = base_of(finite ? maximum : T(0));
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < Tile<S>::kValues; ++i) {
      const T term = TermsOf<S>::term(TermsOf<S>::parts(x[r][i] - base.anchor, base.reduce));
      x[r][i] = finite ? term : T(0);
    }
}

}  // namespace sumexp::SUMEXP_NS
