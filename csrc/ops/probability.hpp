// From the terms of a sum of exponentials to probabilities p_i = e^(x_i) / S, for every op whose results start from them.
//
// A kernel keeps terms t_i = e^(x_i) 2^(carry - N_chunk); the row multiplies them by
// 2^(N_row - N_chunk ...)/S, held as h + l so that its rounding does not count: p = fma(t, h, t*l) 2^-carry. The carry
// goes last: before, t*l of a result near the smallest normal number would be less than a number.
// Error: 1.15 * 2^-24 in t (relative), 0.12 * 2^-24 in S, half an ulp here: 1.8 ulp, 2 promised.
// The rounding of t would let the largest probability of a confident row be 1 + ulp, or softmax([x]) 1 - ulp. So
// the maximum's own probability is e^m / S in the wide type, rounded once.
// For 16-bit results (ShortTerms) p = t h, with the carry in h, is enough: 2^-19 before the result is rounded.
#pragma once

#include "op.hpp"

namespace sumexp::SUMEXP_NS {

// What turns the terms of a chunk into probabilities.
template <class V>
struct TermScale {
  V h, l;
  V top_term, top;  // a term equal to top_term is the row's maximum, its probability top (not of ShortTerms)
};

// ... of a term that is not the row's maximum
template <class V>
SUMEXP_FN V probability_of_others(V term, const TermScale<V>& k) {
  return fma(term, k.h, term * k.l) * V(static_cast<ElementOf<V>>(kCarryDown<ElementOf<V>>));
}
template <class Terms, class V>
SUMEXP_FN V probability(V term, const TermScale<V>& k) {
  if constexpr (Terms::kShort) return term * k.h;
  else return pick(equal(term, k.top_term), k.top, probability_of_others(term, k));
}

// -- a row of one chunk, or a vector of such rows -----------------------------------------------------------

// N: the base of the terms, 2^N. kApart: the maximum is not in sum.R yet.
template <class Terms, bool kApart, class V>
SUMEXP_FN TermScale<V> term_scale(const RowSum<V>& sum, V N) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  Wide<V> all = sum.R;
  if constexpr (kApart) all = total(sum);
  const Wide<V> inverse = O::constant(kCarryUp<T>) / all;
  TermScale<V> scale;
  O::split(inverse, scale.h, scale.l);
  if constexpr (Terms::kShort) {
    scale.h = scale.h * V(static_cast<T>(kCarryDown<T>));
    scale.top = scale.top_term = V(T(0));
  } else {
    scale.top = O::narrow(inverse * exp_wide(sum.rho));
    scale.top_term = Terms::term(Terms::parts(sum.m, reduction_to(N)));
  }
  return scale;
}

// -- a row of any number of chunks --------------------------------------------------------------------------

template <class T>
struct Normalizer {
  T m;
  std::int64_t N;
  Wide<T> inverse;  // 2^N / S
  T top;            // e^m / S
};
template <class Terms, class T>
SUMEXP_FN Normalizer<T> normalizer(const ExpState<T>& row) {
  const Wide<T> inverse = WideOf<T>::constant(kCarryUp<T>) / total(row);
  T top = T(0);
  if constexpr (!Terms::kShort) top = WideOf<T>::narrow(inverse * exp_wide(base_of(row.m).rho));
  return {row.m, row.N, inverse, top};
}

// The scale of one of its chunks. A chunk may lie so far below the row's maximum that h would be subnormal: then t is first
// divided by 2^carry (before), and the power of two between the chunk and the row goes last (after).
template <class T>
struct ChunkScale {
  TermScale<T> near;
  bool far;
  T before, after;

  // Of its terms, or where it is far of what far_term makes of them. Number by number: a copy in vectors of what has been
  // written so waits for all stores before it, those on their way to memory among them.
  template <class V>
  SUMEXP_FN TermScale<V> scale() const {
    return {V(far ? T(1) : near.h), V(far ? T(0) : near.l), V(far ? T(-1) : near.top_term), V(far ? T(0) : near.top)};
  }
};
template <class Terms, class T>
SUMEXP_FN ChunkScale<T> chunk_scale(const Normalizer<T>& row, T chunk_m) {
  using O = WideOf<T>;
  // No term is top_term, since all are >= 0; of no element, they are 0.
  ChunkScale<T> k = {{T(0), T(0), T(-1), row.top}, false, static_cast<T>(kCarryDown<T>), T(1)};
  if (!is_finite(chunk_m)) return k;
  const Base<T> base = base_of(chunk_m);
  TermScale<T>& near = k.near;
  O::split(row.inverse * anchor_factor(base), near.h, near.l);
  if (chunk_m == row.m) {
    if constexpr (!Terms::kShort) near.top_term = Terms::term(Terms::parts(chunk_m - base.anchor, base.reduce));
  } else {
    const std::int64_t gap = exponent_gap(chunk_m, base.N, row.m, row.N);
    k.far = !(near.h * pow2<T>(gap - Format<T>::carry) >= Format<T>::nearest_factor);
    k.after = pow2<T>(gap);
    if (!k.far) near.h = near.h * k.after, near.l = near.l * k.after;
  }
  if (!k.far && Terms::kShort) near.h = near.h * k.before;
  return k;
}
template <class T>
SUMEXP_FN T far_probability(T term, const ChunkScale<T>& k) {
  term = term * k.before;
  return fma(term, k.near.h, term * k.near.l) * k.after;
}

// Where the terms of a far chunk are replaced one by one, so that probability() of the new ones, with the scale
// unit_scale, gives the probabilities of the old.
template <class Terms, class T>
SUMEXP_FN T far_term(T term, const ChunkScale<T>& k) {
  const T p = far_probability(term, k);
  return Terms::kShort ? p : p * static_cast<T>(kCarryUp<T>);
}
template <class T>
SUMEXP_FN TermScale<T> unit_scale() {
  return {T(1), T(0), T(-1), T(0)};
}

}  // namespace sumexp::SUMEXP_NS
