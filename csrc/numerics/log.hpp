// log1p(u) in the wide type, u > -1: the same algorithm for every machine; no libm.
//
//   1 + u = z = 2^k (1 + f),  1 + f in [sqrt(1/2), sqrt(2));  s = f / (2 + f)
//   log(1 + u) = k ln 2 + 2 s + s^3 w(s^2)
// When k = 0, f is u itself, so a tiny u keeps all its digits.
//
// Contract   u in (-0.9999, 2^1000); relative error 2^-51 (double), 2^-60 (pair of doubles).
//            log1p(0) = 0. Of a NaN it makes a number: callers look for NaN before.
// Source     the atanh series of fdlibm's log, coefficients refitted by generate_constants.py.
#pragma once

#include "exp.hpp"

namespace sumexp::SUMEXP_NS {

template <class D>
SUMEXP_FN D log1p_narrow(D u) {
  using C = LogConstants;
  D k;
  const D m = exponent_split(D(1.0) + u, k);
  const D f = pick(equal(k, D(0.0)), u, m - D(1.0));
  const D s = f / (D(2.0) + f), s2 = s * s;
  const D tail = fma(s * s2, polynomial<C::Narrow>(s2, s2 * s2), k * D(C::ln2_lo));
  return fma(k, D(C::ln2_hi), fma(D(2.0), s, tail));
}
SUMEXP_FN double log1p_wide(double u) { return log1p_narrow(u); }
template <class D>
SUMEXP_FN Twin<D> log1p_wide(Twin<D> u) {
  return {log1p_narrow(u.a), log1p_narrow(u.b)};
}

template <class D>
SUMEXP_FN DD<D> log1p_wide(DD<D> u) {
  using C = LogConstants;
  using Fmt = Format<double>;
  const DD<D> z = two_sum(D(1.0), u.hi);
  D k;
  const D m = exponent_split(z.hi, k);
  const D down = pow2_field(D(Fmt::magic) + (D(1.0 * Fmt::bias) - k));  // 2^-k
  const DD<D> scaled = two_sum(m - D(1.0), (z.lo + u.lo) * down);
  const auto whole = equal(k, D(0.0));
  const DD<D> f = {pick(whole, u.hi, scaled.hi), pick(whole, u.lo, scaled.lo)};
  const DD<D> s = f / (DD<D>{D(2.0), D(0.0)} + f);
  const D s2 = s.hi * s.hi;
  const D tail = fma(s.hi * s2, polynomial<C::Full>(s2, s2 * s2), k * D(C::ln2_lo));
  const DD<D> head = two_sum(k * D(C::ln2_hi), D(2.0) * s.hi);
  return fast_two_sum(head.hi, head.lo + fma(D(2.0), s.lo, tail));
}

}  // namespace sumexp::SUMEXP_NS
