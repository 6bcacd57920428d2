// softmax and its derivatives. With s = softmax(x / T):
//
//   forward    y_i = e^(x_i) / S
//   VJP = JVP  dx = s (g - <s, g>) / T                            (the Jacobian diag(s) - s s^T is symmetric)
//   HVP        d/dx <g, s> along v:
//              s ( (v - <s,v>)(g - <s,g>) - <s, (v - <s,v>)(g - <s,g>)> ) / T^2
//
// Forward. A kernel keeps terms t_i = e^(x_i) 2^(carry - N_chunk); the row multiplies them by
// 2^(N_row - N_chunk ...)/S, held as h + l so that its rounding does not count: y = fma(t, h, t*l) 2^-carry. The carry
// goes last: before, t*l of a result near the smallest normal number would be less than a number.
// Error: 1.15 * 2^-24 in t (relative), 0.12 * 2^-24 in S, half an ulp here: 1.8 ulp, 2 promised.
// The rounding of t would let the largest probability of a confident row be 1 + ulp, or softmax([x]) 1 - ulp. So
// the maximum's own probability is e^m / S in the wide type, rounded once.
// For 16-bit results (ShortTerms) y = t h, with the carry in h, is enough: 2^-19 before the result is rounded.
#pragma once

#include "../numerics/state.hpp"
#include "sums.hpp"

namespace sumexp::SUMEXP_NS {

// What a finished row needs to turn terms into probabilities.
template <class T>
struct SoftmaxRow {
  T m;
  std::int64_t N;
  Wide<T> inverse;  // 2^N / S
  T top;            // e^m / S (not of ShortTerms)
  bool nan;         // a NaN or +inf in the row, or no element above -inf: every output is NaN
};

template <class Terms, class T>
SUMEXP_FN SoftmaxRow<T> softmax_finish(const ExpState<T>& row) {
  const Wide<T> S = total(row);
  if (is_nan(S) || !is_finite(row.m)) return {row.m, row.N, S, T(0), true};
  const Wide<T> inverse = WideOf<T>::constant(kCarryUp<T>) / S;
  T top = T(0);
  if constexpr (!Terms::kShort) top = static_cast<T>(head(inverse * exp_wide(base_of(row.m).rho)));
  return {row.m, row.N, inverse, top, false};
}

// The factor of one chunk's terms, y = fma(t, h, t*l) 2^-carry; where the chunk lies so far below the row's maximum that
// h would be subnormal, t is first divided by 2^carry (before), and the power of two between the chunk and the row goes
// last (after).
template <class T>
struct TermScale {
  T h, l;
  bool far;
  T before, after;
  T top_term, top;  // a term equal to top_term is the row's maximum, its probability top
};

template <class Terms, class T>
SUMEXP_FN TermScale<T> term_scale(const SoftmaxRow<T>& row, T chunk_m) {
  using O = WideOf<T>;
  if (!is_finite(chunk_m)) return {T(0), T(0), false, T(1), T(1), T(-1), T(0)};
  const Base<T> base = base_of(chunk_m);
  TermScale<T> scale = {T(0), T(0), false, static_cast<T>(kCarryDown<T>), T(1), T(-1), row.top};  // terms are >= 0
  O::split(row.inverse * anchor_factor(base), scale.h, scale.l);
  if (chunk_m == row.m) {
    if constexpr (!Terms::kShort) scale.top_term = Terms::term(Terms::parts(chunk_m - base.anchor, base.reduce));
  } else {
    const std::int64_t gap = exponent_gap(chunk_m, base.N, row.m, row.N);
    scale.far = !(scale.h * pow2<T>(gap - Format<T>::carry) >= Format<T>::nearest_factor);
    scale.after = pow2<T>(gap);
    if (!scale.far) scale.h = scale.h * scale.after, scale.l = scale.l * scale.after;
  }
  if (!scale.far && Terms::kShort) scale.h = scale.h * scale.before;
  return scale;
}

template <class Terms, class V>
SUMEXP_FN V probability(V term, V h, V l, V top_term, V top) {
  using T = ElementOf<V>;
  if constexpr (Terms::kShort) return term * h;
  else return pick(equal(term, top_term), top, fma(term, h, term * l) * V(static_cast<T>(kCarryDown<T>)));
}
template <class V>
SUMEXP_FN V probability_far(V term, V h, V l, V before, V after) {
  term = term * before;
  return fma(term, h, term * l) * after;
}

// in: g, y
struct SoftmaxVjp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 1;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    acc[0] = fma(in[1], in[0], acc[0]);
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return in[1] * row.minus(0, in[0]);
  }
};

// in: g, v, y
struct SoftmaxHvp : SumsOp {
  static constexpr int kInputs = 3, kPasses = 2, kSums = 2;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>& row) {
    if constexpr (pass == 0) {
      acc[0] = fma(in[2], in[0], acc[0]);
      acc[1] = fma(in[2], in[1], acc[1]);
    } else {
      // y first: an absent element adds 0 whatever the sums are
      acc[0] = fma(in[2] * row.minus(0, in[0]), row.minus(1, in[1]), acc[0]);
    }
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return in[2] * row.minus(2, row.minus(0, in[0]) * row.minus(1, in[1]));
  }
};

}  // namespace sumexp::SUMEXP_NS
