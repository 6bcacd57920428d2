// The vocabulary in portable C++, for any architecture: a vector is one number, and its words are the scalar ones of numerics/.
// fma is one instruction where the target has it and a correctly rounded library call elsewhere.
// See csrc/README.md for what each word means.
#pragma once

#include <type_traits>

#include "../../numerics/formats.hpp"
#include "../../numerics/wide.hpp"

#define SUMEXP_REGISTERS 0  // rows go one by one: no panels, no tiles

namespace sumexp::SUMEXP_NS {

SUMEXP_FN float element(float x) { return x; }
SUMEXP_FN double element(double x) { return x; }
SUMEXP_FN float element(f16 h) { return to_float(h); }
SUMEXP_FN float element(bf16 h) { return to_float(h); }
SUMEXP_FN void convert(float x, float& to) { to = x; }
SUMEXP_FN void convert(double x, double& to) { to = x; }
SUMEXP_FN void convert(float x, f16& to) { to = to_f16(x); }
SUMEXP_FN void convert(float x, bf16& to) { to = to_bf16(x); }

template <class T_>
struct Single {
  using T = T_;
  static constexpr int W = 1;
  static constexpr bool kRegister = false;
  static constexpr int kUnroll = 1;
  using Mask = bool;
  T v;
  Single() = default;
  SUMEXP_FN explicit Single(T x) : v(x) {}

  // Arrays may lie at any address, also between the multiples of their element. S: T or a 16-bit format.
  template <class S>
  static SUMEXP_FN Single load(const S* p) {
    S stored;
    memcpy(&stored, p, sizeof(S));
    return Single(element(stored));
  }
  static SUMEXP_FN Single load_part(const T* p, int n, T fill) { return n ? load(p) : Single(fill); }
  template <class S>
  static SUMEXP_FN void store(S* p, Single x) {
    S stored;
    convert(x.v, stored);
    memcpy(p, &stored, sizeof(S));
  }
  static SUMEXP_FN void store_part(T* p, Single x, int n) {
    if (n) store(p, x);
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, Single x) {
    store(p, x);
  }
};

using F32 = Single<float>;
using F64 = Single<double>;

template <class T>
SUMEXP_FN Single<T> operator+(Single<T> a, Single<T> b) {
  return Single<T>(a.v + b.v);
}
template <class T>
SUMEXP_FN Single<T> operator-(Single<T> a, Single<T> b) {
  return Single<T>(a.v - b.v);
}
template <class T>
SUMEXP_FN Single<T> operator*(Single<T> a, Single<T> b) {
  return Single<T>(a.v * b.v);
}
template <class T>
SUMEXP_FN Single<T> operator/(Single<T> a, Single<T> b) {
  return Single<T>(a.v / b.v);
}
template <class T>
SUMEXP_FN Single<T> fma(Single<T> a, Single<T> b, Single<T> c) {
  return Single<T>(fma(a.v, b.v, c.v));
}
template <class T>
SUMEXP_FN Single<T> larger(Single<T> a, Single<T> b) {
  return a.v > b.v ? a : b;
}
template <class T>
SUMEXP_FN Single<T> at_least(Single<T> floor, Single<T> x) {
  return Single<T>(at_least(floor.v, x.v));
}
template <class T>
SUMEXP_FN Single<T> pow2_field(Single<T> t) {
  return Single<T>(pow2_field(t.v));
}
template <class T>
SUMEXP_FN bool equal(Single<T> a, Single<T> b) {
  return a.v == b.v;
}
template <class T>
SUMEXP_FN bool unordered(Single<T> a) {
  return a.v != a.v;
}
template <class T>
SUMEXP_FN bool at_or_above(Single<T> a, Single<T> b) {
  return a.v >= b.v;
}
template <class T>
SUMEXP_FN Single<T> clear(bool mask, Single<T> x) {
  return mask ? Single<T>(T(0)) : x;
}
template <class T>
SUMEXP_FN Single<T> pick(bool mask, Single<T> a, Single<T> b) {
  return mask ? a : b;
}
template <class T>
SUMEXP_FN Single<T> quiet(Single<T> x) {
  return x.v == x.v ? x : Single<T>(Limits<T>::nan());
}
template <class T>
SUMEXP_FN T largest(Single<T> x) {
  return x.v;
}
SUMEXP_FN int count(bool mask) { return mask; }
SUMEXP_FN double lane0(F64 x) { return x.v; }
SUMEXP_FN F64 exponent_split(F64 z, F64& k) { return F64(exponent_split(z.v, k.v)); }

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = F64;
  static SUMEXP_FN W from(F32 v) { return F64(v.v); }
  static SUMEXP_FN W from(F32 a, F32 b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return F64(d); }
  static SUMEXP_FN W scaled(W w, double d) { return w * F64(d); }
  static SUMEXP_FN F32 narrow(W w) { return F32(rounded(w.v)); }
  static SUMEXP_FN void split(W w, F32& h, F32& l) { WideOf<float>::split(w.v, h.v, l.v); }
};

}  // namespace sumexp::SUMEXP_NS
