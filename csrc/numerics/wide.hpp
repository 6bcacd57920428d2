// The wider type W in which sums are folded, merged and finished: double for float rows, a pair of
// doubles (DD) for double rows. Twin is what a SIMD vector of floats widens to: two vectors of doubles.
// All operations are error-free transformations or single IEEE operations: same bits everywhere.
//
// DD follows Dekker (1971) and Knuth (TAOCP 2, 4.2.2): x = hi + lo, |lo| <= ulp(hi)/2. Relative errors:
// add of equal signs 2^-104, mul 2^-102, div 2^-101.
#pragma once

#include "vocabulary.hpp"

namespace sumexp::SUMEXP_NS {

template <class D>
struct DD {
  D hi, lo;
};

template <class D>
SUMEXP_FN DD<D> two_sum(D a, D b) {
  const D s = a + b, bb = s - a;
  return {s, (a - (s - bb)) + (b - bb)};
}
template <class D>
SUMEXP_FN DD<D> fast_two_sum(D a, D b) {  // |a| >= |b|, or a = 0
  const D s = a + b;
  return {s, b - (s - a)};
}
template <class D>
SUMEXP_FN DD<D> two_product(D a, D b) {
  const D p = a * b;
  return {p, fma(a, b, D(0.0) - p)};
}
template <class D>
SUMEXP_FN DD<D> operator+(DD<D> a, DD<D> b) {
  const DD<D> s = two_sum(a.hi, b.hi);
  return fast_two_sum(s.hi, s.lo + (a.lo + b.lo));
}
template <class D>
SUMEXP_FN DD<D> operator*(DD<D> a, DD<D> b) {
  const DD<D> p = two_product(a.hi, b.hi);
  return fast_two_sum(p.hi, fma(a.hi, b.lo, fma(a.lo, b.hi, p.lo)));
}
template <class D>
SUMEXP_FN DD<D> operator/(DD<D> a, DD<D> b) {
  const D q = a.hi / b.hi;
  const D rest = fma(D(0.0) - q, b.hi, a.hi) + fma(D(0.0) - q, b.lo, a.lo);
  return fast_two_sum(q, rest / b.hi);
}

// Two vectors of doubles that act as one: the wide form of a vector of floats.
template <class D>
struct Twin {
  D a, b;
};
template <class D>
SUMEXP_FN Twin<D> operator+(Twin<D> x, Twin<D> y) {
  return {x.a + y.a, x.b + y.b};
}
template <class D>
SUMEXP_FN Twin<D> operator*(Twin<D> x, Twin<D> y) {
  return {x.a * y.a, x.b * y.b};
}
template <class D>
SUMEXP_FN Twin<D> operator/(Twin<D> x, Twin<D> y) {
  return {x.a / y.a, x.b / y.b};
}

// w rounded to float. GCC 12 vectorises two neighbouring float(w) and then takes double(float(w)) for w, so
// that w - double(float(w)) becomes 0: the barrier keeps the rounded value opaque.
SUMEXP_FN float rounded(double w) {
  float h = static_cast<float>(w);
#if defined(__GNUC__) && !defined(__CUDA_ARCH__)
  asm volatile("" : "+m"(h));
#endif
  return h;
}

// WideOf<V>: the wide type of V, with
//   from(v)              exact
//   from(a, b)           a + b
//   constant(d)          a double
//   scaled(w, d)         w * d, d a power of two
//   narrow(w)            w rounded to a V
//   split(w, h, l)       w rounded to the V h, and the rest rounded to l
template <class V>
struct WideOf;

template <>
struct WideOf<float> {
  using W = double;
  SUMEXP_FN static W from(float v) { return v; }
  SUMEXP_FN static W from(float a, float b) { return static_cast<double>(a) + static_cast<double>(b); }
  SUMEXP_FN static W constant(double d) { return d; }
  SUMEXP_FN static W scaled(W w, double d) { return w * d; }
  SUMEXP_FN static float narrow(W w) { return static_cast<float>(w); }
  SUMEXP_FN static void split(W w, float& h, float& l) {
    h = rounded(w);
    l = static_cast<float>(w - static_cast<double>(h));
  }
};

// V is double or a vector of doubles: a pair of them.
template <class V>
struct WidePair {
  using W = DD<V>;
  SUMEXP_FN static W from(V v) { return {v, V(0.0)}; }
  SUMEXP_FN static W from(V a, V b) { return two_sum(a, b); }
  SUMEXP_FN static W constant(double d) { return {V(d), V(0.0)}; }
  SUMEXP_FN static W scaled(W w, double d) { return {w.hi * V(d), w.lo * V(d)}; }
  SUMEXP_FN static V narrow(W w) { return w.hi; }
  SUMEXP_FN static void split(W w, V& h, V& l) { h = w.hi, l = w.lo; }
};
template <>
struct WideOf<double> : WidePair<double> {};

template <class V>
using Wide = typename WideOf<V>::W;

SUMEXP_FN DD<double> pick(bool mask, DD<double> a, DD<double> b) { return {pick(mask, a.hi, b.hi), pick(mask, a.lo, b.lo)}; }
SUMEXP_FN bool is_nan(double w) { return w != w; }
SUMEXP_FN bool is_nan(DD<double> w) { return w.hi != w.hi; }
SUMEXP_FN double head(double w) { return w; }
SUMEXP_FN double head(DD<double> w) { return w.hi; }

}  // namespace sumexp::SUMEXP_NS
