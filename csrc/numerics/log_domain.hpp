// Functions of single elements in the log domain: log(e^a + e^b), log(e^a - e^b), log(1 - e^-|x|), log(1 + e^x), and the
// weights e^a / (e^a + e^b) of their derivatives. README.md, "Elementwise functions and running sums".
//
// Everything is computed in double. W, the type of what is between the inputs and the one rounding at the end, is D itself for
// results of float and the 16-bit formats, and a pair DD<D> for those of double. D: double or a vector of doubles.
#pragma once

#include "state.hpp"

namespace sumexp::SUMEXP_NS {

// e^r = 1 + r + r^2/2 + r^3 c(r), |r| < 0.3466: the Taylor coefficients 1/k! from k = 3; what follows is below 2^-63.
struct ExpTail {
  static constexpr int size = 12;
  static constexpr double value[12] = {1.0 / 6,        1.0 / 24,        1.0 / 120,        1.0 / 720,
                                       1.0 / 5040,     1.0 / 40320,     1.0 / 362880,     1.0 / 3628800,
                                       1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800, 1.0 / 87178291200};
};

template <class D>
SUMEXP_FN D absolute(D x) {
  return at_least(D(0.0) - x, x);
}
template <class D>
SUMEXP_FN D exact_pow2(D n) {  // n: integers from -1022 to 1023
  return pow2_field(D(Format<double>::magic) + (D(1.0 * Format<double>::bias) + n));
}
template <class D>
SUMEXP_FN D nearest(D x) {  // the nearest integer, |x| < 2^51
  return (x + D(Format<double>::magic)) - D(Format<double>::magic);
}
template <class D, class M>
SUMEXP_FN DD<D> pick_pair(M mask, DD<D> a, DD<D> b) {
  return {pick(mask, a.hi, b.hi), pick(mask, a.lo, b.lo)};
}

// -- the words that D and DD<D> share ----------------------------------------------------------------------

template <class W>
struct Working;
template <class D>
struct Working<DD<D>> {
  static SUMEXP_FN DD<D> from(D x) { return {x, D(0.0)}; }
  static SUMEXP_FN DD<D> difference(D a, D b) { return two_sum(a, D(0.0) - b); }
  static SUMEXP_FN DD<D> scaled(DD<D> w, D power) { return {w.hi * power, w.lo * power}; }
  static SUMEXP_FN DD<D> minus(DD<D> w) { return {D(0.0) - w.hi, D(0.0) - w.lo}; }
  static SUMEXP_FN D times(DD<D> w, D g) {
    const DD<D> p = two_product(w.hi, g);
    return pick(equal(p.hi - p.hi, D(0.0)), p.hi + fma(w.lo, g, p.lo), p.hi);  // infinity has no rest
  }
  static SUMEXP_FN D head(DD<D> w) { return w.hi; }
  static SUMEXP_FN D plus(D m, DD<D> w) {
    const DD<D> sum = two_sum(m, w.hi);
    return sum.hi + (sum.lo + w.lo);
  }
  template <class M>
  static SUMEXP_FN DD<D> choose(M mask, DD<D> a, DD<D> b) {
    return pick_pair(mask, a, b);
  }
  // w where |w| < 800, else the end that it is beyond; t <= 0 or NaN
  static SUMEXP_FN DD<D> above_floor(DD<D> t) {
    return {at_least(D(-800.0), t.hi), pick(at_or_above(t.hi, D(-800.0)), t.lo, D(0.0))};
  }
  static SUMEXP_FN DD<D> remainder(DD<D> t, D n) {
    const DD<D> r = remainder_wide(DD<D>{t.hi, D(0.0)}, DD<D>{n, D(0.0)});
    return fast_two_sum(r.hi, r.lo + t.lo);
  }
  static SUMEXP_FN DD<D> expm1(DD<D> r) {
    const D x = r.hi, x2 = x * x;
    const DD<D> half = two_product(x * D(0.5), x);  // r^2 / 2; what r.lo adds to it, r.lo x, is below
    const DD<D> sum = fast_two_sum(x, half.hi);
    const D rest = fma(x2 * x, polynomial<ExpTail>(x, x2), fma(r.lo, x, half.lo) + r.lo);
    return fast_two_sum(sum.hi, sum.lo + rest);
  }
  static SUMEXP_FN DD<D> log1p(DD<D> f) { return log1p_wide(f); }
  // f = m - 1 of z = 2^k m
  static SUMEXP_FN DD<D> mantissa(D m, DD<D> z, D down) { return two_sum(m - D(1.0), z.lo * down); }
  static SUMEXP_FN DD<D> times_ln2(D k) {
    const DD<D> p = two_product(k, D(ExpConstants<double>::ln2_hi));
    return fast_two_sum(p.hi, fma(k, D(ExpConstants<double>::ln2_lo), p.lo));
  }
  static constexpr double kCancelled = 0x1p-6;  // a sum this much smaller than its first operand is computed another way
};
// D itself
template <class D>
struct Working {
  static SUMEXP_FN D from(D x) { return x; }
  static SUMEXP_FN D difference(D a, D b) { return a - b; }
  static SUMEXP_FN D scaled(D w, D power) { return w * power; }
  static SUMEXP_FN D minus(D w) { return D(0.0) - w; }
  static SUMEXP_FN D times(D w, D g) { return w * g; }
  static SUMEXP_FN D head(D w) { return w; }
  static SUMEXP_FN D plus(D m, D w) { return m + w; }
  template <class M>
  static SUMEXP_FN D choose(M mask, D a, D b) {
    return pick(mask, a, b);
  }
  static SUMEXP_FN D above_floor(D t) { return at_least(D(-800.0), t); }
  static SUMEXP_FN D remainder(D t, D n) {
    using C = ExpConstants<double>;
    return fma(n, D(-C::ln2_lo), fma(n, D(-C::ln2_hi), t));
  }
  static SUMEXP_FN D expm1(D r) { return expm1_reduced(r); }
  static SUMEXP_FN D log1p(D f) { return log1p_narrow(f); }
  static SUMEXP_FN D mantissa(D m, D, D) { return m - D(1.0); }
  static SUMEXP_FN D times_ln2(D k) { return fma(k, D(ExpConstants<double>::ln2_hi), k * D(ExpConstants<double>::ln2_lo)); }
  static constexpr double kCancelled = 0x1p-20;
};

// e^t = 2^n (1 + p), for t <= 0, or NaN, which p then is. Below -800 it is e^-800, and that is 0.
//   error of p    2^-52 (D), 2^-59 (DD<D>), relative
template <class D, class W>
struct Exponential {
  D n, half;  // half: n / 2, rounded to an integer
  W p;

  // 2^n w, in two steps, so that no factor underflows where the product does not
  SUMEXP_FN W lifted(W w) const {
    using O = Working<W>;
    return O::scaled(O::scaled(w, exact_pow2(half)), exact_pow2(n - half));
  }
  SUMEXP_FN W one_plus_p() const { return Working<W>::from(D(1.0)) + p; }
  SUMEXP_FN W value() const { return lifted(one_plus_p()); }
  // 1 - e^t: 1 - 2^n - 2^n p, where n = 0 nothing but -p
  SUMEXP_FN W complement() const {
    using O = Working<W>;
    const D power = exact_pow2(at_least(D(-200.0), n));
    return O::from(D(1.0) - power) + O::scaled(O::minus(p), power);
  }
};
template <class D, class W>
SUMEXP_FN Exponential<D, W> exponential(W t) {
  using O = Working<W>;
  t = O::above_floor(t);
  const D n = nearest(O::head(t) * D(ExpConstants<double>::log2e));
  return {n, nearest(n * D(0.5)), O::expm1(O::remainder(t, n))};
}

// log1p; a number so small that it is its own logarithm stays as it is, subnormal ones too
template <class D, class W>
SUMEXP_FN W log1p_or_itself(W u) {
  using O = Working<W>;
  return O::choose(at_or_above(D(0x1p-60), absolute(O::head(u))), u, O::log1p(u));
}

// log(1 - e^t) of e^t: near 1 it is log1p(-e^t), else k ln 2 + log m of 1 - e^t = 2^k m
template <class D, class W>
SUMEXP_FN W log_of_complement(const Exponential<D, W>& e) {
  using O = Working<W>;
  const W rest = O::scaled(e.complement(), D(0x1p200));  // never subnormal
  D k;
  const D m = exponent_split(O::head(rest), k);
  const D down = exact_pow2(D(0.0) - k);
  k = k - D(200.0);
  const auto near_one = equal(k, D(0.0));
  const W f = O::choose(near_one, O::minus(e.value()), O::mantissa(m, rest, down));
  return O::times_ln2(k) + log1p_or_itself<D>(f);
}

// log(2^N v) of a pair v > 0 that is normal, |N| < 2^41: k ln 2 + log m of 2^N v = 2^k m, k = 0 where the result is below 0.35.
template <class D>
SUMEXP_FN DD<D> log_of_scaled(DD<D> v, D N) {
  using O = Working<DD<D>>;
  D k;
  const D m = exponent_split(v.hi, k);
  const DD<D> f = two_sum(m - D(1.0), v.lo * exact_pow2(D(0.0) - k)), s = f / (DD<D>{D(2.0), D(0.0)} + f);
  const D s2 = s.hi * s.hi;
  const DD<D> whole = O::times_ln2(k + N), head = two_sum(whole.hi, D(2.0) * s.hi);
  const D tail = fma(s.hi * s2, polynomial<LogConstants::Full>(s2, s2 * s2), fma(D(2.0), s.lo, whole.lo));
  return fast_two_sum(head.hi, head.lo + tail);
}

// -- results next to 0 ---------------------------------------------------------------------------------------

// e^x = 2^n (1 + p), p within 2^-97, |x| < 800: the series at r / 256, doubled eight times. From its sixth term on, which is
// 2^-57 of it, the series is in double.
struct ExpSixth {
  static constexpr int size = 4;
  static constexpr double value[4] = {1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880};
};
template <class D>
SUMEXP_FN Exponential<D, DD<D>> exponential_accurate(DD<D> x) {
  using L = LogConstants;
  const D n = nearest(x.hi * D(ExpConstants<double>::log2e)), back = D(0.0) - n;
  const DD<D> low = two_product(back, D(L::ln2_lo));  // n ln2_hi has no more than 53 bits
  DD<D> r = ((DD<D>{back * D(L::ln2_hi), D(0.0)} + x) + low) + DD<D>{back * D(L::ln2_tail), D(0.0)};
  r = {r.hi * D(0x1p-8), r.lo * D(0x1p-8)};
  DD<D> p = {r.hi * polynomial<ExpSixth>(r.hi, r.hi * r.hi), D(0.0)};
  p = r * (p + DD<D>{D(0x1.1111111111111p-7), D(0x1.1111111111111p-63)});  // 1/120
  p = r * (p + DD<D>{D(0x1.5555555555555p-5), D(0x1.5555555555555p-59)});  // 1/24
  p = r * (p + DD<D>{D(0x1.5555555555555p-3), D(0x1.5555555555555p-57)});  // 1/6
  p = r * (p + DD<D>{D(0.5), D(0.0)});
  p = r * (p + DD<D>{D(1.0), D(0.0)});
#pragma GCC unroll 1
  for (int i = 0; i < 8; ++i) p = p * (DD<D>{D(2.0), D(0.0)} + p);
  p = pick_pair(at_or_above(absolute(x.hi), D(0x1p-200)), p, x);  // r / 256 of the smallest is subnormal
  return {n, nearest(n * D(0.5)), p};
}
// e^x - 1 within 2^-97 (e^x + 1)
template <class D>
SUMEXP_FN DD<D> expm1_accurate(DD<D> x) {
  const Exponential<D, DD<D>> e = exponential_accurate(x);
  const D power = exact_pow2(at_least(D(-1000.0), e.n));
  return pick_pair(equal(e.n, D(0.0)), e.p, two_sum(power, D(-1.0)) + DD<D>{e.p.hi * power, e.p.lo * power});
}

// m + log(1 + e^t), or with `minus` m + log(1 - e^t), which is next to 0: the logarithm of e^m (1 +- e^t), whose distance from
// 1 is within 2^-96. t <= 0, |m| < 50.
template <class D>
SUMEXP_FN D log_next_to_zero(D m, DD<D> t, bool minus) {
  const DD<D> e = expm1_accurate(Working<DD<D>>::above_floor(t));
  const DD<D> factor = minus ? Working<DD<D>>::minus(e) : DD<D>{D(2.0), D(0.0)} + e;
  const DD<D> grown = expm1_accurate(DD<D>{m, D(0.0)});
  const DD<D> log = log1p_wide((factor + DD<D>{D(-1.0), D(0.0)}) + grown * factor);  // of e^m f - 1
  return log.hi + log.lo;
}

}  // namespace sumexp::SUMEXP_NS
