// What log-probabilities, entropy and the Kullback-Leibler divergence are made of. With p = softmax(x), m the maximum of x,
// d_j = m - x_j >= 0, L = log S - m and A = sum_j p_j d_j, the mean distance from the maximum:
//
//   entropy       H = sum_j p_j (log S - x_j) = L + A                  two numbers >= 0: nothing cancels, also as p -> 1
//   its gradient  dH/dx_j = -p_j (log p_j + H) = p_j (d_j - A)         of the maximum: -p A, again without a difference
//
// And with q = softmax(y), w_j = log p_j - log q_j:
//
//   KL(p || q) = sum_j p_j w_j = sum_j p_j (e^(-w_j) - 1 + w_j)        since sum_j p_j e^(-w_j) = sum_j q_j = 1 = sum_j p_j
//
// No term of the last sum is negative, so that nothing cancels where rows are nearly equal.
//
// Rows are read once. A chunk is a row of its own, with sums P and Q, a divergence, and l = log Q - log P. Where two parts
// join, with shares 1 - s and s of p, divergences K_a and K_b, and l_b = l_a + g (merge in ops/information.hpp):
//
//   KL = (1 - s) K_a + s K_b + D,    D = log(1 - s + s e^g) - s g = log1p((1 - s) (e^v - 1 - v) + s (e^u - 1 - u))
//   l  = l_a + s g + D                                              v = -s g, u = (1 - s) g
//
// D is the divergence of the parts' masses, and no number in it is negative either. But it takes g as exact as the rows'
// differences are: log Q - log P from the sums has an error that is large beside a g of 1e-6. What it lacks is in the elements:
// sum p_j (e^(-w_j) - 1), the divergence less sum p_j w_j, would be 0 with w_j exact. Beyond |g| = 1, D is log1p(-s) +
// log1p(Q_b / Q_a) - s g, in which nothing overflows, and which holds for a part without p, s = 0.
//
// Errors, relative, with e = 2^-24 for float rows and 2^-53 for double ones (numerics/README.md); eps = 2 e:
//
//   A         a term 1.15 e; d_j, rounded once, e; S 0.12 e. Products are added unrounded, to a grid (grid_start in
//             ops/information.hpp): 0.3 e. Nothing is negative: 2.6 e of A, and, as L has 0.12 e, of H.
//   entropy   H is rounded once: 3.1 ulp; 4 promised, 1.3 measured
//   gradient  p has 2.3 e with its rounding, d_j e, A 2.6 e, the two sums and products e each: 5 eps of |g| p_j (d_j + A),
//             which is next to nothing where one element has nearly all probability, or all logits are nearly the same
//   log_prob  -((m - x_i) + L) in the wide type, as cross_entropy: 0.75 ulp
//
//   w_j       the distances are subtracted exactly; L of p less that of q has an error c <= 0.24 e that all elements share,
//             and rounding adds 2 e |w_j|
//   KL        elements with |w| <= 1: the series 3.2 e, w 2.4 * 2 e, p and the product 3.3 e. Beyond, q + p (w - 1) has 22 e
//             at w = -1, the worst place, and less from there on. 11 additions of numbers >= 0 in T and one rounding: 34 e
//             of an element; of a chunk 28 e, as elements with w < 0 have others with w > 0 beside them.
//             What c does is c sum (p_j - q_j) = 0 in first order, over the elements of the series; the others' share,
//             c sum q_j, is 1 e of KL itself. What is left is c^2 / 2.
//   l         c is found by sum p_j w_j, whose terms have 4.5 e, with 11 additions: 16 e sum p_j |w_j|, which is sqrt(2 K) at
//             most where all w are small, and K where they are large
//   joined    D changes by s (1 - s) |g| for each of both l. With U the parts' divergence, that is 32 e sqrt(D U) where w is
//             small: with 28 e U, 36 e of U + D. Where it is large, U itself has 19 e, and D 16 e of U. All else is in the wide
//             type, shares within 0.24 e. So 20 eps of KL and (eps / 8)^2 are promised; 1.9 eps measured. All parts are >= 0
//             as computed, and 0 for w = 0: KL is never negative, and 0 for equal rows. A chunk with one w for all elements,
//             of rows that differ by a constant, is said to have 0.
//   gradient  dKL/dy_j = q_j - p_j = p_j (e^-w_j - 1), by the series or as it stands: 5 eps of itself, and c p_j.
//             dKL/dx_j = p_j (w_j - KL): 20 eps of p_j (|w_j| + KL), and c p_j. Where one element w has nearly all
//             probability, this does not vanish as the result does; so its own is p_w (w_w (1 - p_w) - sum_{j != w} p_j w_j).
#pragma once

#include "state.hpp"

namespace sumexp::SUMEXP_NS {

// From this distance on an element has no probability, in any row: its terms are +0. Distances are cut off here, so that those
// of -inf are numbers.
template <class T>
inline constexpr T kFarthest = sizeof(T) == 4 ? T(256) : T(1024);

// min(m - x, about kFarthest); `lowest` is m - kFarthest
template <class V>
SUMEXP_FN V distance(V m, V lowest, V x) {
  return m - at_least(lowest, x);
}

// A sum of exponentials, and sum_j e^(x_j) d_j relative to the same power of two.
template <class T>
struct DistanceState {
  ExpState<T> sum;
  Wide<T> distance;

  SUMEXP_FN static DistanceState empty() { return {ExpState<T>::empty(), WideOf<T>::constant(0)}; }
};

// The distances of the lower one grow by that of the maxima: sums of numbers >= 0.
template <class T>
SUMEXP_FN DistanceState<T> merge(const DistanceState<T>& a, const DistanceState<T>& b) {
  const bool a_upper = a.sum.m >= b.sum.m;
  const ExpState<T> sum = merge(a.sum, b.sum), upper = pick(a_upper, a.sum, b.sum), lower = pick(a_upper, b.sum, a.sum);
  const Wide<T> upper_distance = pick(a_upper, a.distance, b.distance);
  if (!is_finite(lower.m) || !is_finite(upper.m)) return {sum, upper_distance};
  const std::int64_t gap = exponent_gap(lower.m, lower.N, upper.m, upper.N);
  if (gap == kFarBelow) return {sum, upper_distance};
  const Wide<T> apart = WideOf<T>::from(upper.m, T(0) - lower.m) * total(lower);
  return {sum, upper_distance + shifted<T>(pick(a_upper, b.distance, a.distance) + apart, gap)};
}

// A = sum_j p_j d_j
template <class T>
SUMEXP_FN Wide<T> mean_distance(const DistanceState<T>& row) {
  return row.distance / total(row.sum);
}

// 1 / (k + 2)!, the coefficients of (e^r - 1 - r) / r^2
template <class T>
struct ExcessConstants;
template <>
struct ExcessConstants<float> {
  static constexpr int size = 10;
  static constexpr float value[size] = {1.0f / 2,    1.0f / 6,     1.0f / 24,     1.0f / 120,     1.0f / 720,
                                        1.0f / 5040, 1.0f / 40320, 1.0f / 362880, 1.0f / 3628800, 1.0f / 39916800};
};
template <>
struct ExcessConstants<double> {
  static constexpr int size = 18;
  static constexpr double value[size] = {1.0 / 2,
                                         1.0 / 6,
                                         1.0 / 24,
                                         1.0 / 120,
                                         1.0 / 720,
                                         1.0 / 5040,
                                         1.0 / 40320,
                                         1.0 / 362880,
                                         1.0 / 3628800,
                                         1.0 / 39916800,
                                         1.0 / 479001600,
                                         1.0 / 6227020800,
                                         1.0 / 87178291200,
                                         1.0 / 1307674368000,
                                         1.0 / 20922789888000,
                                         1.0 / 355687428096000,
                                         1.0 / 6402373705728000,
                                         1.0 / 121645100408832000};
};

// e^r - 1 - r for |r| <= 1
//   error     2 * 2^-24 (2^-53), relative; never negative, and 0 for r = 0
//   source    Taylor's series; what is left out is below 2 / 12! (2 / 20!) of it
template <class V>
SUMEXP_FN V exp_excess(V r) {
  const V r2 = r * r;
  return r2 * polynomial<ExcessConstants<ElementOf<V>>>(r, r2);
}

// Both rows of a divergence, finished: their maxima, and L of p less that of q as h + l.
template <class V>
struct LogRatio {
  V p_max, q_max, h, l;
};

// m - x as hi + lo, exactly; -inf, and where the difference overflows, count as the largest number.
template <class V>
SUMEXP_FN void exact_distance(V m, V x, V& hi, V& lo) {
  const V most = V(sizeof(ElementOf<V>) == 4 ? ElementOf<V>(0x1.fffffep127) : ElementOf<V>(0x1.fffffffffffffp1023));
  const V s = m - x, b = s - m;
  const V rest = (m - (s - b)) - (x + b);
  lo = pick(equal(rest, rest), rest, V(ElementOf<V>(0)));
  hi = pick(at_or_above(s, most), most, s);
}

// w = log p - log q of one element: what both distances differ by, exactly, less the difference of both L. Within
// 2 * 2^-24 (2^-53) of |w|, and the error of h + l, which all elements have in common.
template <class V>
SUMEXP_FN V log_ratio(V x, V y, const LogRatio<V>& rows) {
  V p_hi, p_lo, q_hi, q_lo;
  exact_distance(rows.p_max, x, p_hi, p_lo);
  exact_distance(rows.q_max, y, q_hi, q_lo);
  const V s = q_hi - p_hi, b = s - q_hi;
  const V rest = (q_hi - (s - b)) - (p_hi + b);
  return (s - rows.h) + (rest + ((q_lo - p_lo) - rows.l));
}

// One element's part of the divergence, p (e^-w - 1 + w), and q - p. By the series up to |w| = 1; beyond from p and q as they
// are, where 6 to 20 times the rounding error of these is that of the result.
template <class V>
struct Divergence {
  V part, change;
};
template <class V>
SUMEXP_FN Divergence<V> divergence(V p, V q, V w) {
  const V zero = V(ElementOf<V>(0)), one = V(ElementOf<V>(1)), minus_one = V(ElementOf<V>(-1));
  const V inside = pick(at_or_above(w, one), zero, pick(at_or_above(minus_one, w), zero, w));
  const auto near = equal(inside, w);
  const V excess = exp_excess(zero - inside);
  return {pick(near, p * excess, fma(p, w - one, q)), pick(near, p * (excess - inside), q - p)};
}

}  // namespace sumexp::SUMEXP_NS
