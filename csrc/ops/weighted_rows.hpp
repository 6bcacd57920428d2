// Sums of exponentials with weights over whole rows, and their derivatives: S = sum_j b_j e^(x_j), in pairs of doubles whatever
// the arrays' dtype.
//
//   mean   log |S / n| and the sign of S
//   VJP    dx_j = g b_j e^(x_j) / S,  db_j = g e^(x_j) / S
//   JVP    sum_j (t_j b_j + tb_j) e^(x_j) / S
//
// The order: a piece is 256 elements, 8 runs of 32. Each run is added up in order, the runs' sums in order, and the pieces'
// sums in order.
#pragma once

#include "running_sum.hpp"

namespace sumexp::SUMEXP_NS {

constexpr int kRuns = 8, kRun = 32, kPieceElements = kRuns * kRun;
constexpr double kDirect = 0x1p40;  // |x| below: exponents are exact (Format<double>::direct)
constexpr double kSpread = 400.0;   // of the elements of a piece that share one power of two

// Whether a piece's terms are summed relative to the 2^N of its largest element, as pairs that are not normalised; else element
// by element. Of its finite elements the largest and the lowest; there is no NaN.
SUMEXP_FN bool share_a_power(double top, double low) {
  return top < kDirect && top > -kDirect && low > -kDirect && top - low <= kSpread;
}
// e^x 2^-N, 0 of -inf. lowest: 2 kSpread below the largest x
template <class V>
SUMEXP_FN DD<V> direct_term(V x, V lowest, V N) {
  const V v = at_least(lowest, x);
  const V n = nearest(v * V(ExpConstants<double>::log2e));
  const DD<V> p = Working<DD<V>>::expm1(remainder_wide(DD<V>{v, V(0.0)}, DD<V>{n, V(0.0)}));
  const DD<V> e = fast_two_sum(V(1.0), p.hi);
  const V power = clear(equal(x, V(-Limits<double>::infinity)), exact_pow2(at_least(V(-1022.0), n - N)));
  return {e.hi * power, (e.lo + p.lo) * power};
}
template <class V>
SUMEXP_FN DD<V> direct_product(DD<V> e, V f) {
  const DD<V> product = two_product(e.hi, f);
  return {product.hi, fma(e.lo, f, product.lo)};
}

SUMEXP_FN RunningSum weighted(RunningSum sum, double b) {
  sum.s = sum.s * DD<double>{b, 0.0};
  return sum;
}

// S of a row of which `special` is the sum of the weighted elements that are not finite (weigh): infinite, unless infinities of
// both signs meet.
SUMEXP_FN RunningSum with_special(const RunningSum& S, double special) {
  constexpr double inf = Limits<double>::infinity;
  if (special == 0.0 && S.m != inf) return S;
  const double c = S.m == inf ? S.s.hi : special;
  const bool nan = c != c || special != special || c == 0.0 || c * special < 0.0;
  return {inf, 0, {nan ? Limits<double>::nan() : c, 0.0}};
}

SUMEXP_FN double log_of_mean(const RunningSum& S, double count) {
  return count == 0.0 ? Limits<double>::nan() : log_of(S, count);  // the mean of nothing is NaN
}
SUMEXP_FN double sign_of(const RunningSum& S) { return S.s.hi > 0.0 ? 1.0 : S.s.hi < 0.0 ? -1.0 : S.s.hi; }

// 2^gap w for gaps of any sign
SUMEXP_FN double lifted(double w, std::int64_t gap) {
  gap = gap < -2040 ? -2040 : gap > 2040 ? 2040 : gap;
  return w * pow2<double>(gap / 2) * pow2<double>(gap - gap / 2);
}
SUMEXP_FN std::int64_t signed_gap(const RunningSum& a, const RunningSum& b) {
  return a.m <= b.m ? exponent_gap(a.m, a.N, b.m, b.N) : -exponent_gap(b.m, b.N, a.m, a.N);
}

// Of no element, or of such alone that are -inf or have the weight 0.
SUMEXP_FN bool is_nothing(const RunningSum& S) { return S.m == -Limits<double>::infinity && S.s.hi == 0.0; }

// up / low; 0 where both are sums of nothing
SUMEXP_FN double quotient(const RunningSum& up, const RunningSum& low) {
  if (is_nothing(up) && is_nothing(low)) return 0.0;
  if (is_nan(up.s) || is_nan(low.s) || low.s.hi == 0.0) return Limits<double>::nan();
  if (up.s.hi == 0.0) return 0.0;
  return lifted((up.s / low.s).hi, signed_gap(up, low));
}

// g b e^x / S, where it is wanted, and g e^x / S, scale = g / S.s.hi, both 0 where S and e^x are: four roundings, of e^x 2^-n,
// 1 / s, the product and the factor.
struct Gradients {
  double x, b;
};
SUMEXP_FN Gradients gradients(double x, double b, const RunningSum& S, double scale, bool wants_x) {
  const RunningSum one = element_sum(x);
  const double w = is_nan(one.s) || is_nan(S.s) ? Limits<double>::nan()
                   : one.s.hi == 0.0            ? (is_nothing(S) ? 0.0 : 0.0 * scale)
                                                : lifted(one.s.hi * scale, signed_gap(one, S));
  if (!wants_x) return {0.0, quiet(w)};
  double moved = x, f = b;
  if (is_finite(f) && f != 0.0) move_exponent(moved, f);
  const RunningSum other = moved == x ? one : element_sum(moved);
  // the power of two last: b may make a normal number of a w that is none
  const double product = f == 0.0                            ? 0.0
                         : is_finite(f) && other.s.hi != 0.0 ? lifted(other.s.hi * scale * f, signed_gap(other, S))
                                                             : w * f;
  return {quiet(product), quiet(w)};
}

}  // namespace sumexp::SUMEXP_NS
