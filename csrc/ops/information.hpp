// Log-probabilities of chosen classes, entropies and divergences of rows of logits, with their gradients: what a chunk adds to
// its row's sums, how those merge, and what becomes of them. CPU and CUDA kernels go through the chunks, in the order of
// numerics/geometry.hpp. Notation, forms and errors: numerics/information.hpp.
#pragma once

#include "../numerics/information.hpp"
#include "cross_entropy.hpp"

namespace sumexp::SUMEXP_NS {

// a - b
SUMEXP_FN double minus(double a, double b) { return a + (0.0 - b); }
template <class D>
SUMEXP_FN DD<D> minus(DD<D> a, DD<D> b) {
  return a + DD<D>{D(0.0) - b.hi, D(0.0) - b.lo};
}
template <class D>
SUMEXP_FN Twin<D> minus(Twin<D> a, Twin<D> b) {
  return {a.a + (D(0.0) - b.a), a.b + (D(0.0) - b.b)};
}
template <class V>
SUMEXP_FN V quiet_number(V x) {
  return pick(equal(x, x), x, V(Limits<ElementOf<V>>::nan()));
}

// -- sum_j t_j (m - x_j) over a chunk's terms t_j ---------------------------------------------------------------------
//
// Added as the terms themselves are (TermSum), to a grid that the largest product gives: a sum begins at grid_start of it.

// 1.5 * 2^(e + 7), or 2^(e + 6) for double, with 2^e the power of two in `most`. 128 products, or 64, which the fold of the
// columns may add, are a number of 24 (53) bits on its grid.
SUMEXP_FN float grid_start(float most) {
  return bit_cast<float>(((bit_cast<std::uint32_t>(most) & 0x7f800000u) + (7u << 23)) | 0x400000u);
}
SUMEXP_FN double grid_start(double most) {
  constexpr std::uint64_t one = std::uint64_t(1) << 52;
  return bit_cast<double>(((bit_cast<std::uint64_t>(most) & 0x7ff0000000000000u) + 6 * one) | one / 2);
}
// hi = acc[0] is exact, and lo = acc[1] gets what the grid cuts off, of products as they are before rounding.
template <class V>
SUMEXP_FN void add_product(V a, V b, V* acc) {
  const V next = fma(a, b, acc[0]);
  acc[1] = acc[1] + fma(a, b, acc[0] - next);
  acc[0] = next;
}

// Whether a chunk with this sum of terms has such a sum: a finite maximum, and no NaN.
template <class T>
SUMEXP_FN bool has_distances(const ExpState<T>& chunk) {
  return is_finite(chunk.m) && !is_nan(chunk.R);
}
template <class T>
SUMEXP_FN DistanceState<T> with_distances(const ExpState<T>& chunk, const Wide<T>& distances) {
  return {chunk, distances * anchor_factor(base_of(chunk.m))};
}

// -- log_prob and entropy ------------------------------------------------------------------------------------------------

// A row whose chunks are merged.
template <class T>
struct FinishedLogits {
  RowSum<T> sum;
  bool special;  // a NaN or +inf in it, or nothing above -inf: all results are NaN
  bool winner;   // one element alone is the maximum
  Wide<T> L, mean;
};
template <class T>
SUMEXP_FN FinishedLogits<T> finished(const ExpState<T>& state) {
  FinishedLogits<T> row;
  row.special = is_nan(state.R) || !is_finite(state.m);
  row.winner = false;
  row.L = row.mean = WideOf<T>::constant(0);
  if (row.special) return row;
  row.sum = row_sum(state);
  row.winner = head(row.sum.c) == 1.0;
  row.L = log_over_max(row.sum);
  return row;
}
template <class T>
SUMEXP_FN FinishedLogits<T> finished(const DistanceState<T>& state) {
  FinishedLogits<T> row = finished(state.sum);
  if (!row.special) row.mean = mean_distance(state);
  return row;
}

template <class V>
SUMEXP_FN V log_probability(const RowSum<V>& sum, V x_i) {
  return V(ElementOf<V>(0)) - cross_entropy(sum.m, log_over_max(sum), x_i);
}
template <class V>
SUMEXP_FN V entropy_of(const Wide<V>& L, const Wide<V>& mean) {
  return WideOf<V>::narrow(L + mean);
}

// Of the winner: its probability, and what it leaves to 1.
template <class V>
struct Winner {
  Wide<V> p, rest;
};
template <class V>
SUMEXP_FN Winner<V> winner_of(const RowSum<V>& sum) {
  const Wide<V> others = others_over_max(sum), all = sum.c + others;
  return {WideOf<V>::constant(1) / all, others / all};
}

// Gradients of a row's log-probabilities: the sum of those that chose the winner, and of all others, in their order.
template <class V>
struct PickedGradients {
  Wide<V> own, others;

  SUMEXP_FN static PickedGradients none() { return {WideOf<V>::constant(0), WideOf<V>::constant(0)}; }
};

// With G the sum of the gradients g_k of the log-probabilities, and h that of the entropy:
//   dx_j = sum_{k: i_k = j} g_k - p_j G + h p_j (d_j - A)
// Of the winner w, if it is picked, with G_w the sum of its own: G_w (1 - p_w) - p_w (G - G_w + h A).
template <class V>
struct LogitsGradient {  // nothing but V
  V m, lowest, h, minus_h, minus_l;

  // Of an element that is not picked; else its g_k are added, in their order.
  SUMEXP_FN V of(V p, V x) const { return quiet(p * (fma(h, distance(m, lowest, x), minus_h) + minus_l)); }
};
template <class V>
SUMEXP_FN LogitsGradient<V> logits_gradient(const RowSum<V>& sum, const Wide<V>& mean, V h, const PickedGradients<V>& g) {
  using T = ElementOf<V>;
  const V zero = V(T(0));
  V base_h, base_l;
  WideOf<V>::split(WideOf<V>::from(h) * mean + (g.others + g.own), base_h, base_l);
  base_l = pick(equal(base_h - base_h, zero), base_l, zero);
  return {sum.m, sum.m - V(kFarthest<T>), h, zero - base_h, zero - base_l};
}
template <class V>
SUMEXP_FN V gradient_at_winner(const RowSum<V>& sum, const Wide<V>& mean, V h, const PickedGradients<V>& g) {
  const Winner<V> w = winner_of(sum);
  const Wide<V> hA = WideOf<V>::from(h) * mean;
  return quiet_number(WideOf<V>::narrow(minus(g.own * w.rest, w.p * (g.others + hA))));
}

// -- the Kullback-Leibler divergence -----------------------------------------------------------------------------------

// What is summed over the elements of both rows, for the gradient.
template <class T>
struct DivergenceSums {
  Wide<T> divergence, of_others;  // sum p_j (e^-w_j - 1 + w_j); sum of p_j w_j without the winner's
  bool infinite;                  // somewhere p > 0 and q = 0

  SUMEXP_FN static DivergenceSums empty() { return {WideOf<T>::constant(0), WideOf<T>::constant(0), false}; }
};
template <class T>
SUMEXP_FN DivergenceSums<T> merge(const DivergenceSums<T>& a, const DivergenceSums<T>& b) {
  return {a.divergence + b.divergence, a.of_others + b.of_others, a.infinite || b.infinite};
}
// The divergence; `infinite` is a mask. Of a sum that overflows a pair of doubles may be NaN.
template <class V, class Mask>
SUMEXP_FN V divergence_of(const Wide<V>& sum, Mask infinite) {
  const V infinity = V(Limits<ElementOf<V>>::infinity), narrow = WideOf<V>::narrow(sum);
  return pick(infinite, infinity, pick(equal(narrow, narrow), narrow, infinity));
}

// Both rows, finished.
template <class V>
struct RowPair {  // nothing but V
  LogRatio<V> ratio;
  V winner;  // the maximum of p, where one element alone has it; else NaN
};
template <class V>
SUMEXP_FN RowPair<V> row_pair(const RowSum<V>& p, const Wide<V>& p_L, const RowSum<V>& q, const Wide<V>& q_L) {
  using T = ElementOf<V>;
  RowPair<V> pair;
  pair.ratio.p_max = p.m, pair.ratio.q_max = q.m;
  WideOf<V>::split(minus(p_L, q_L), pair.ratio.h, pair.ratio.l);
  pair.winner = pick(equal(WideOf<V>::narrow(p.c), V(T(1))), p.m, V(Limits<T>::nan()));
  return pair;
}

template <class T>
SUMEXP_FN RowPair<T> row_pair(const ExpState<T>& p, const ExpState<T>& q) {
  return row_pair(row_sum(p), log_over_max(p), row_sum(q), log_over_max(q));
}

// One element of both: p, w = log p - log q, its part of the divergence, q - p.
template <class V>
struct PairAt {
  V p, w;
  Divergence<V> parts;
};
template <class V>
SUMEXP_FN PairAt<V> pair_at(V x, V y, V p, V q, const LogRatio<V>& ratio) {
  const V w = log_ratio(x, y, ratio);
  return {p, w, divergence(p, q, w)};
}
// acc: DivergenceSums' numbers
template <class V>
SUMEXP_FN void add_pair(V x, const PairAt<V>& pair, V winner, V* acc) {
  acc[0] = acc[0] + pair.parts.part;
  acc[1] = pick(equal(x, winner), acc[1], fma(pair.p, pair.w, acc[1]));
}
// A mask: p > 0 and q = 0
template <class V>
SUMEXP_FN auto nowhere(V x, V y) {
  const V lowest = V(-Limits<ElementOf<V>>::infinity);
  return equal(pick(equal(x, lowest), V(ElementOf<V>(0)), y), lowest);
}

// What is known of both rows, or of some of their elements alone: the sums P and Q, the divergence, and log Q - log P. That is
// (q.m - p.m) + rest, so that rest is log n at most, whatever the rows' offsets.
template <class T>
struct DivergenceState {
  ExpState<T> p, q;
  Wide<T> divergence, rest;
  bool infinite;  // somewhere p > 0 and q = 0

  SUMEXP_FN static DivergenceState of(const ExpState<T>& p, const ExpState<T>& q) {
    const bool infinite = is_finite(p.m) && q.m == -Limits<T>::infinity;
    return {p, q, WideOf<T>::constant(0), WideOf<T>::constant(0), infinite};
  }
  SUMEXP_FN static DivergenceState empty() { return of(ExpState<T>::empty(), ExpState<T>::empty()); }
};
template <class T>
SUMEXP_FN DivergenceState<T> pick(bool mask, const DivergenceState<T>& a, const DivergenceState<T>& b) {
  return {pick(mask, a.p, b.p), pick(mask, a.q, b.q), pick(mask, a.divergence, b.divergence), pick(mask, a.rest, b.rest),
          mask ? a.infinite : b.infinite};
}
// Whether a chunk with these sums has a divergence: numbers above -inf in both, and no NaN.
template <class T>
SUMEXP_FN bool has_divergence(const ExpState<T>& p, const ExpState<T>& q) {
  return is_finite(p.m) && is_finite(q.m) && !is_nan(p.R) && !is_nan(q.R);
}
// w where x and y are the maxima: of all elements, where rows differ by a constant
template <class V>
SUMEXP_FN V log_ratio_at_maxima(const LogRatio<V>& ratio) {
  return log_ratio(ratio.p_max, ratio.q_max, ratio);
}
// mean: sum p_j w_j, which the divergence would be if `ratio` had no error; constant: all w_j are log_ratio_at_maxima
template <class T>
SUMEXP_FN DivergenceState<T> with_divergence(const ExpState<T>& p, const ExpState<T>& q, const LogRatio<T>& ratio,
                                             Wide<T> divergence, Wide<T> mean, bool infinite, bool constant) {
  if (constant) return {p, q, WideOf<T>::constant(0), WideOf<T>::constant(0), infinite};
  return {p, q, divergence, WideOf<T>::from(T(0) - ratio.h, T(0) - ratio.l) + minus(divergence, mean), infinite};
}

// a - b in the wide type, exactly; where it overflows, the largest number
template <class T>
SUMEXP_FN Wide<T> apart(T a, T b) {
  const Wide<T> d = WideOf<T>::from(a, T(0) - b);
  if (is_finite(head(d))) return d;
  return WideOf<T>::constant(head(d) > 0 ? 0x1.fffffffffffffp1023 : -0x1.fffffffffffffp1023);
}
// The sums of two states relative to the same power of two, that of the upper one.
template <class T>
struct Totals {
  Wide<T> a, b;
};
template <class T>
SUMEXP_FN Totals<T> totals(const ExpState<T>& a, const ExpState<T>& b) {
  const bool a_upper = a.m >= b.m;
  const ExpState<T> upper = pick(a_upper, a, b), lower = pick(a_upper, b, a);
  const Wide<T> high = total(upper), low = shifted<T>(total(lower), exponent_gap(lower.m, lower.N, upper.m, upper.N));
  return {pick(a_upper, high, low), pick(a_upper, low, high)};
}

// The part with the larger share of p and the smaller, s, as numerics/information.hpp has them; r: the quotient of both Q.
template <class T>
SUMEXP_LARGE_FN DivergenceState<T> merge(const DivergenceState<T>& a, const DivergenceState<T>& b) {
  using O = WideOf<T>;
  const Wide<T> zero = O::constant(0);
  const Totals<T> P = totals(a.p, b.p), Q = totals(a.q, b.q);
  DivergenceState<T> to = {merge(a.p, b.p), merge(a.q, b.q), zero, zero, a.infinite || b.infinite};
  if (!has_divergence(to.p, to.q)) return to;
  const bool swap = head(P.b) > head(P.a);
  const DivergenceState<T> large = pick(swap, b, a), small = pick(swap, a, b);
  const Wide<T> all = P.a + P.b, s = pick(swap, P.a, P.b) / all, rest_s = pick(swap, P.b, P.a) / all;
  Wide<T> g = zero, shift, of_masses;
  if (head(s) > 0) g = (apart(small.q.m, large.q.m) + apart(large.p.m, small.p.m)) + minus(small.rest, large.rest);
  if (head(s) > 0 && head(g) <= 1 && head(g) >= -1) {
    const double v = head(minus(zero, s * g)), u = head(rest_s * g);
    of_masses = log1p_wide(O::constant(head(rest_s) * exp_excess(v) + head(s) * exp_excess(u)));
    shift = of_masses + s * g;
  } else {
    const Wide<T> r = pick(swap, Q.a, Q.b) / pick(swap, Q.b, Q.a);
    const bool large_r = !(head(r) < 0x1p900);
    const Wide<T> grown =
        large_r ? apart(small.q.m, large.q.m) + minus(log_over_max(small.q), log_over_max(large.q)) : log1p_wide(r);
    shift = log1p_wide(minus(zero, s)) + grown;
    of_masses = minus(shift, s * g);
    if (!(head(of_masses) > 0)) of_masses = zero;
  }
  to.divergence = (rest_s * large.divergence + of_masses) + (head(s) > 0 ? s * small.divergence : zero);
  to.rest = ((apart(large.q.m, to.q.m) + apart(to.p.m, large.p.m)) + large.rest) + shift;
  return to;
}

// Of rows with elements: NaN where one is special.
template <class T>
SUMEXP_FN T divergence_of(const DivergenceState<T>& rows) {
  const bool special = is_special<LogitsOp>(rows.p) || is_special<LogitsOp>(rows.q);
  return special ? Limits<T>::nan() : divergence_of<T>(rows.divergence, rows.infinite);
}

// dp_j = g p_j (w_j - KL), of the winner g p_w (w_w (1 - p_w) - sum_{j != w} p_j w_j); dq_j = g (q_j - p_j). Where KL is
// infinite, dp_j is NaN wherever p > 0.
template <class V>
struct PairGradient {  // nothing but V
  V g, winner, rest;   // rest: 1 - p_w
  V kl_h, kl_l, others_h, others_l;

  SUMEXP_FN V of_p(V x, const PairAt<V>& pair) const {
    using T = ElementOf<V>;
    const V zero = V(T(0));
    const auto wins = equal(x, winner);
    V own = (pick(wins, pair.w * rest, pair.w) - pick(wins, others_h, kl_h)) - pick(wins, others_l, kl_l);
    own = pick(equal(pair.p, zero), at_least(V(T(-1)), own), own);  // -inf, where the difference overflows, times 0 is 0
    return quiet(g * pick(equal(x, V(-Limits<T>::infinity)), zero, pair.p * own));
  }
  SUMEXP_FN V of_q(const PairAt<V>& pair) const { return quiet(g * pair.parts.change); }
};
// kl: divergence_of the sum
template <class V>
SUMEXP_FN PairGradient<V> pair_gradient(V g, const RowSum<V>& p, V winner, V kl, const Wide<V>& divergence,
                                        const Wide<V>& of_others) {
  using O = WideOf<V>;
  const V zero = V(ElementOf<V>(0)), nan = V(Limits<ElementOf<V>>::nan());
  PairGradient<V> to;
  to.g = g, to.winner = winner, to.rest = O::narrow(winner_of(p).rest);
  O::split(divergence, to.kl_h, to.kl_l);
  O::split(of_others, to.others_h, to.others_l);
  const auto finite = equal(kl - kl, zero);
  to.kl_h = pick(finite, to.kl_h, nan), to.kl_l = pick(finite, to.kl_l, zero);
  to.others_l = pick(equal(to.others_h - to.others_h, zero), to.others_l, zero);
  to.others_h = pick(finite, to.others_h, nan);
  return to;
}

}  // namespace sumexp::SUMEXP_NS
