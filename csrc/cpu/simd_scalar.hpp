// The vocabulary in portable C++, for any architecture: a vector is a small array, a word a loop over the
// scalar word of numerics/. Loops this short are unrolled and, where the target has vectors, vectorised.
// fma is one instruction where the target has it and a correctly rounded library call elsewhere.
// See csrc/README.md for what each word means.
#pragma once

#include <type_traits>

#include "../numerics/formats.hpp"
#include "../numerics/wide.hpp"

namespace sumexp::SUMEXP_NS {

SUMEXP_FN float element(float x) { return x; }
SUMEXP_FN double element(double x) { return x; }
SUMEXP_FN float element(f16 h) { return to_float(h); }
SUMEXP_FN float element(bf16 h) { return to_float(h); }
SUMEXP_FN void convert(float x, float& to) { to = x; }
SUMEXP_FN void convert(double x, double& to) { to = x; }
SUMEXP_FN void convert(float x, f16& to) { to = to_f16(x); }
SUMEXP_FN void convert(float x, bf16& to) { to = to_bf16(x); }

// Arrays may lie at any address, also between the multiples of their element.
template <class S>
SUMEXP_FN auto get(const S* p) {
  S stored;
  memcpy(&stored, p, sizeof(S));
  return element(stored);
}
template <class S, class T>
SUMEXP_FN void put(S* p, T x) {
  S stored;
  convert(x, stored);
  memcpy(p, &stored, sizeof(S));
}

template <class T_, int W_>
struct Vector {
  using T = T_;
  static constexpr int W = W_;
  static constexpr bool kRegister = false;
  static constexpr int kAbreast = 1;
  struct Mask {
    std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> v[W];  // -1 or 0
  };
  T v[W];
  Vector() = default;
  SUMEXP_FN explicit Vector(T x) {
    for (int i = 0; i < W; ++i) v[i] = x;
  }

  template <class S>  // S: T or a 16-bit format
  static SUMEXP_FN Vector load(const S* p) {
    Vector x;
    for (int i = 0; i < W; ++i) x.v[i] = get(p + i);
    return x;
  }
  static SUMEXP_FN Vector load_part(const T* p, int n, T fill) {
    Vector x(fill);
    for (int i = 0; i < n; ++i) x.v[i] = get(p + i);
    return x;
  }
  template <class S>
  static SUMEXP_FN void store(S* p, const Vector& x) {
    for (int i = 0; i < W; ++i) put(p + i, x.v[i]);
  }
  static SUMEXP_FN void store_part(T* p, const Vector& x, int n) {
    for (int i = 0; i < n; ++i) put(p + i, x.v[i]);
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, const Vector& x) {
    store(p, x);
  }
};

using F32 = Vector<float, 8>;
using F64 = Vector<double, 4>;

// f on every lane
template <class T, int W, class F>
SUMEXP_FN Vector<T, W> each_lane(F f) {
  Vector<T, W> y;
  for (int i = 0; i < W; ++i) y.v[i] = f(i);
  return y;
}
template <class T, int W, class F>
SUMEXP_FN typename Vector<T, W>::Mask each_mask(F f) {
  typename Vector<T, W>::Mask m;
  for (int i = 0; i < W; ++i) m.v[i] = f(i) ? -1 : 0;
  return m;
}

template <class T, int W>
SUMEXP_FN Vector<T, W> operator+(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return a.v[i] + b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> operator-(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return a.v[i] - b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> operator*(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return a.v[i] * b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> operator/(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return a.v[i] / b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> fma(const Vector<T, W>& a, const Vector<T, W>& b, const Vector<T, W>& c) {
  return each_lane<T, W>([&](int i) { return fma(a.v[i], b.v[i], c.v[i]); });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> larger(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> at_least(const Vector<T, W>& floor, const Vector<T, W>& x) {
  return each_lane<T, W>([&](int i) { return at_least(floor.v[i], x.v[i]); });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> pow2_field(const Vector<T, W>& t) {
  return each_lane<T, W>([&](int i) { return pow2_field(t.v[i]); });
}
template <class T, int W>
SUMEXP_FN auto equal(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_mask<T, W>([&](int i) { return a.v[i] == b.v[i]; });
}
template <class T, int W>
SUMEXP_FN auto unordered(const Vector<T, W>& a) {
  return each_mask<T, W>([&](int i) { return a.v[i] != a.v[i]; });
}
template <class T, int W>
SUMEXP_FN auto at_or_above(const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_mask<T, W>([&](int i) { return a.v[i] >= b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> clear(const typename Vector<T, W>::Mask& m, const Vector<T, W>& x) {
  return each_lane<T, W>([&](int i) { return m.v[i] ? T(0) : x.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> pick(const typename Vector<T, W>::Mask& m, const Vector<T, W>& a, const Vector<T, W>& b) {
  return each_lane<T, W>([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
}
template <class T, int W>
SUMEXP_FN Vector<T, W> quiet(const Vector<T, W>& x) {
  return each_lane<T, W>([&](int i) { return x.v[i] == x.v[i] ? x.v[i] : Limits<T>::nan(); });
}
template <class T, int W>
SUMEXP_FN T largest(const Vector<T, W>& x) {
  T m = x.v[0];
  for (int i = 1; i < W; ++i) m = x.v[i] > m ? x.v[i] : m;
  return m;
}
template <class M, class = decltype(M::v)>
SUMEXP_FN int count(const M& m) {
  int set = 0;
  for (const auto lane : m.v) set -= static_cast<int>(lane);
  return set;
}
SUMEXP_FN double lane0(const F64& x) { return x.v[0]; }
template <int h>
SUMEXP_FN F64 slide_down(const F64& x) {  // lane i takes lane i + h
  F64 y = x;
  for (int i = 0; i + h < F64::W; ++i) y.v[i] = x.v[i + h];
  return y;
}
SUMEXP_FN F64 exponent_split(const F64& z, F64& k) {
  return each_lane<double, F64::W>([&](int i) { return exponent_split(z.v[i], k.v[i]); });
}

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = Twin<F64>;
  static SUMEXP_FN W from(const F32& v) {
    W w;
    for (int i = 0; i < F64::W; ++i) w.a.v[i] = v.v[i], w.b.v[i] = v.v[F64::W + i];
    return w;
  }
  static SUMEXP_FN W from(const F32& a, const F32& b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return {F64(d), F64(d)}; }
  static SUMEXP_FN W scaled(const W& w, double d) { return {w.a * F64(d), w.b * F64(d)}; }
  static SUMEXP_FN F32 narrow(const W& w) {
    F32 v;
    for (int i = 0; i < F64::W; ++i)
      v.v[i] = rounded(w.a.v[i]), v.v[F64::W + i] = rounded(w.b.v[i]);
    return v;
  }
  static SUMEXP_FN void split(const W& w, F32& h, F32& l) {
    h = narrow(w);
    const W back = from(h);
    l = narrow({w.a - back.a, w.b - back.b});
  }
};

// Of each 2h lanes the lower and the upper h: a's, then b's, in every 128 bits (h > 64 bits: in the whole vector).
template <int h, class T, int W>
SUMEXP_FN void halves(const Vector<T, W>& a, const Vector<T, W>& b, Vector<T, W>& low, Vector<T, W>& high) {
  constexpr int quad = 16 / sizeof(T), block = h < quad ? quad : W;
  for (int i = 0; i < W; ++i) {
    const int at = i % (block / 2), lane = i / block * block + at / h * 2 * h + at % h;
    const Vector<T, W>& from = i % block < block / 2 ? a : b;
    low.v[i] = from.v[lane], high.v[i] = from.v[lane + h];
  }
}

// r[i] lane j <-> r[j] lane i
template <class T, int W>
SUMEXP_FN void transpose(Vector<T, W> (&r)[W]) {
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < i; ++j) {
      const T t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
}

}  // namespace sumexp::SUMEXP_NS
