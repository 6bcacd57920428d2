// exp(x) in parts: e^x = (1 + r + u) * 2^n.
//
// x itself is reduced, never x - max, so that no rounding of a difference enters the exponent:
//   n = rint(x log2 e)
//   r = x - n ln2_hi                     exact
//   u = r'^2 q(r') + c                   c = -n ln2_lo, r' = r + c; |u| < 0.066: its rounding is small
// The shift by the row's maximum happens in n, where it is exact: a kernel receives s = 2^(n - N + carry),
// N = rint(max * log2 e), and a term of its sum is s + r s + u s, each product exact. Kept in parts, a term can
// be added to a sum without ever being rounded to one T (TermSum below). Rounding r + u first would cost the
// sum 0.35 * 2^-24, and with it logsumexp's bound of 1 ulp.
//
// Contract of exp_parts
//   range     any x; below `floor` (and for -inf) s = +0 exactly; NaN gives r = NaN
//   error     |(1 + r + u) 2^n / e^x - 1| <= 0.12 * 2^-24 (float), 2^-53 (double); rounded to T, as term() does,
//             1.15 * 2^-24 (2^-53)
//   source    minimax coefficients by generate_constants.py
//
// How a row's terms are made and added is chosen by what its results are stored in, TermsOf<S>: FullTerms for float and
// double, ShortTerms for the 16-bit formats, whose results have 8 or 11 bits of the 24 that they are computed in.
#pragma once

#include "constants.hpp"
#include "geometry.hpp"

namespace sumexp::SUMEXP_NS {

template <class T>
struct Format;

template <>
struct Format<float> {
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int bias = 127;
  static constexpr int carry = 72;            // terms are kept times 2^carry: none is subnormal
  static constexpr float direct = 65536.0f;   // |max| below: x is reduced itself
  static constexpr float isolated = 0x1p32f;  // |max| from here: neighbours are > 2^7 apart
  static constexpr float nearest_factor = 0x1p-118f;
};
template <>
struct Format<double> {
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int bias = 1023;
  static constexpr int carry = 300;
  static constexpr double direct = 0x1p40;
  static constexpr double isolated = 0x1p62;
  static constexpr double nearest_factor = 0x1p-960;
};

// The polynomial with coefficients Table::value[i], ... at x, FMA only: Horner's rule in x^2 over
// pairs value[i] + value[i + 1] x. As many operations as Horner's own, half the latency.
template <class Table, int i = 0, class V>
SUMEXP_FN V polynomial(V x, V x2) {
  constexpr auto even = Table::value[i];  // literals: device code may not name the array itself
  if constexpr (i == Table::size - 1) {
    return V(even);
  } else {
    constexpr auto odd = Table::value[i + 1];
    const V pair = fma(x, V(odd), V(even));
    if constexpr (i == Table::size - 2) return pair;
    else return fma(polynomial<Table, i + 2>(x, x2), x2, pair);
  }
}

// The same, by Horner's rule in x.
template <class Table, int i = 0, class V>
SUMEXP_FN V horner(V x) {
  if constexpr (i == Table::size - 1) return V(Table::value[i]);
  else return fma(horner<Table, i + 1>(x), x, V(Table::value[i]));
}

// e^r - 1 for a reduced r
template <class V>
SUMEXP_FN V expm1_reduced(V r) {
  using C = ExpConstants<ElementOf<V>>;
  const V r2 = r * r;
  return fma(r2, polynomial<typename C::Q>(r, r2), r);
}

template <class V>
struct ExpParts {
  V r, u;  // e^x = (1 + r + u) * 2^n
  V s;     // 2^(n - N + carry), or +0
};

// How the elements of one chunk are reduced: everything follows from the chunk's maximum.
template <class V>
struct Reduction {
  V shift;  // magic + carry + bias - N
  V floor;  // elements below count as exp = 0
};

template <class V>
SUMEXP_FN ExpParts<V> exp_parts(V x, const Reduction<V>& to) {
  using T = ElementOf<V>;
  using C = ExpConstants<T>;
  x = at_least(to.floor, x);
  const V t = fma(x, V(C::log2e), to.shift);
  const V n = t - to.shift;  // exact: an integer below 2^22 (2^51)
  const V r = fma(n, V(-C::ln2_hi), x);
  const V c = n * V(-C::ln2_lo);
  const V reduced = r + c, square = reduced * reduced;
  const V u = fma(square, polynomial<typename C::Q>(reduced, square), c);
  return {r, u, pow2_field(t)};
}

// The term rounded to T.
template <class V>
SUMEXP_FN V term(const ExpParts<V>& e) {
  return fma(e.r + e.u, e.s, e.s);
}

// A running sum of terms as hi + lo. hi starts at kStart, so large that adding a term rounds it to a grid on
// which all sums of a chunk are exact (also across lanes, once kStart is taken off); what the grid cuts off,
// (s - d) + r s + u s with d the part that went into hi, is below 2^-14 of the largest term and goes to lo.
template <class V>
struct TermSum {
  using T = ElementOf<V>;
  static constexpr T kStart = sizeof(T) == 4 ? T(0x1.8p81) : T(0x1.8p308);  // 1.5 * 2^(carry + 9), 2^(carry + 8)

  static SUMEXP_FN void accumulate(V& hi, V& lo, const ExpParts<V>& e, V rounded) {
    const V next = hi + rounded;
    const V d = next - hi;
    lo = lo + fma(e.u, e.s, fma(e.r, e.s, e.s - d));  // s - d is exact
    hi = next;
  }
};

// Terms of which no bit is lost: made in parts, added as hi + lo.
struct FullTerms {
  static constexpr bool kShort = false;
  static constexpr int kSums = 2;
  template <class T>
  static SUMEXP_FN constexpr T start() {
    return TermSum<T>::kStart;
  }
  template <class V>
  static SUMEXP_FN ExpParts<V> parts(V x, const Reduction<V>& to) {
    return exp_parts(x, to);
  }
  template <class V>
  static SUMEXP_FN V term(const ExpParts<V>& e) {
    return ::sumexp::SUMEXP_NS::term(e);
  }
  template <class V>
  static SUMEXP_FN void add(V* acc, const ExpParts<V>& e, V term) {
    TermSum<V>::accumulate(acc[0], acc[1], e, term);
  }
};

// Terms for 16-bit results: e^r = p rounded to T, p s exact, one plain sum. Error 2^-22.5 of a term, at most 2^-20.5 of a
// sum (7 additions in a lane and 4 of the fold), where half an ulp of the result is 2^-12 of it or more. Whatever is far
// below the maximum is added to others of its size, as an element that equals the maximum is not in the sum: no refinement.
struct ShortTerms {
  static constexpr bool kShort = true;
  static constexpr int kSums = 1;
  template <class T>
  static SUMEXP_FN constexpr T start() {
    return T(0);
  }
  template <class V>
  struct Parts {
    V p, s;  // e^x = p * 2^n; s as in ExpParts
  };
  template <class V>
  static SUMEXP_FN Parts<V> parts(V x, const Reduction<V>& to) {
    using C = ExpConstants<ElementOf<V>>;
    x = at_least(to.floor, x);
    const V t = fma(x, V(C::log2e), to.shift), n = t - to.shift;
    const V r = fma(n, V(-C::ln2_lo), fma(n, V(-C::ln2_hi), x));
    const V one = V(ElementOf<V>(1));
    return {fma(fma(horner<typename C::Short>(r), r, one), r, one), pow2_field(t)};
  }
  template <class V>
  static SUMEXP_FN V term(const Parts<V>& e) {
    return e.p * e.s;
  }
  template <class V>
  static SUMEXP_FN void add(V* acc, const Parts<V>&, V term) {
    acc[0] = acc[0] + term;
  }
};

template <int kBytes>
struct TermsOfBytes {
  using Type = FullTerms;
};
template <>
struct TermsOfBytes<2> {
  using Type = ShortTerms;
};
template <class S>
using TermsOf = typename TermsOfBytes<int(sizeof(S))>::Type;

// rint(m * log2 e), rounded as exp_parts rounds; |m| < Format::direct
template <class V>
SUMEXP_FN V exponent_of(V m) {
  using T = ElementOf<V>;
  return fma(m, V(ExpConstants<T>::log2e), V(Format<T>::magic)) - V(Format<T>::magic);
}

// The Reduction for terms relative to 2^N.
template <class V>
SUMEXP_FN Reduction<V> reduction_to(V N) {
  using T = ElementOf<V>;
  constexpr T lift = Format<T>::carry + Format<T>::bias;
  return {(V(Format<T>::magic) + V(lift)) - N, (N - V(lift)) * V(ExpConstants<T>::ln2_hi)};
}

// e^y and 1 - e^y = -expm1(y) of a log-probability y.
//   range     [-inf, 0]; NaN gives NaN in both
//   error     e^y within 1.3 * 2^-24 (2^-53), gradual underflow included; 1 - e^y within 1.5 * 2^-24 (2^-53), relative
// With e^y = (1 + r + u) 2^n, 1 - e^y = (1 - 2^n) - (r + u) 2^n: where n = 0, this is -(y + u), r being y itself. The carry
// of 24 (54) keeps the power of two of e^y normal down to the smallest subnormal result.
template <class V>
struct Probability {
  V value, rest;  // e^y, 1 - e^y
};
template <class V>
SUMEXP_FN Probability<V> probability_of_log(V y) {
  using T = ElementOf<V>;
  constexpr bool single = sizeof(T) == 4;
  constexpr T lift = Format<T>::bias + (single ? 24 : 54);
  const Reduction<V> reduce = {V(Format<T>::magic + lift), V(-lift * ExpConstants<T>::ln2_hi)};
  const ExpParts<V> e = exp_parts(y, reduce);
  const V down = V(single ? T(0x1p-24) : T(0x1p-54)), power = e.s * down;
  return {term(e) * down, fma(V(T(0)) - power, e.r + e.u, V(T(1)) - power)};
}

// e^rho in the wide type, |rho| < 0.36. Relative error 2^-52.4 (double), 2^-57 (pair).
SUMEXP_FN double exp_wide(double rho) { return 1.0 + expm1_reduced(rho); }
template <class D>
SUMEXP_FN Twin<D> exp_wide(Twin<D> rho) {
  return {D(1.0) + expm1_reduced(rho.a), D(1.0) + expm1_reduced(rho.b)};
}
template <class D>
SUMEXP_FN DD<D> exp_wide(DD<D> rho) {
  const D r = rho.hi, r2 = r * r, q = polynomial<ExpConstants<double>::Q>(r, r2);
  const DD<D> sum = fast_two_sum(D(1.0), r);
  return fast_two_sum(sum.hi, sum.lo + fma(r2, q, fma(rho.lo, r, rho.lo)));
}

// rho = m - N ln 2 in the wide type, for |N| < 2^33 (float) and 2^41 (double).
SUMEXP_FN double remainder_wide(double m, double N) {
  using C = ExpConstants<double>;
  return fma(N, -C::ln2_lo, fma(N, -C::ln2_hi, m));
}
template <class D>
SUMEXP_FN Twin<D> remainder_wide(Twin<D> m, Twin<D> N) {
  using C = ExpConstants<double>;
  return {fma(N.a, D(-C::ln2_lo), fma(N.a, D(-C::ln2_hi), m.a)), fma(N.b, D(-C::ln2_lo), fma(N.b, D(-C::ln2_hi), m.b))};
}
template <class D>
SUMEXP_FN DD<D> remainder_wide(DD<D> m, DD<D> N) {
  using C = ExpConstants<double>;
  const DD<D> low = two_product(N.hi, D(-C::ln2_lo));
  const DD<D> rho = two_sum(fma(N.hi, D(-C::ln2_hi), m.hi), low.hi);
  return fast_two_sum(rho.hi, rho.lo + low.lo);
}

}  // namespace sumexp::SUMEXP_NS
