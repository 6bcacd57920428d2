// The vocabulary in portable C++ (with GCC's and Clang's vectors), for any architecture: vectors of 16 bytes, which the
// compiler makes of whatever the target has. fma is one instruction where the target has it; elsewhere of floats made in
// double, of doubles a correctly rounded library call. See csrc/README.md for what each word means.
#pragma once

#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

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

template <class T>
struct Lanes16;
template <>
struct Lanes16<float> {
  typedef float Vector __attribute__((vector_size(16)));
  typedef std::int32_t Mask __attribute__((vector_size(16)));  // lanes of all ones or all zeros
  static constexpr int kMantissa = 23;
};
template <>
struct Lanes16<double> {
  typedef double Vector __attribute__((vector_size(16)));
  typedef std::int64_t Mask __attribute__((vector_size(16)));
  static constexpr int kMantissa = 52;
};

template <class T_>
struct Portable {
  using T = T_;
  using Vector = typename Lanes16<T>::Vector;
  using Mask = typename Lanes16<T>::Mask;
  static constexpr int W = 16 / sizeof(T);
  static constexpr bool kRegister = false;
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
  static constexpr int kUnroll = 1;
#else
  static constexpr int kUnroll = 2;  // two chains of emulated fma hide behind each other
#endif
  Vector v;
  Portable() = default;
  SUMEXP_FN Portable(Vector x) : v(x) {}
  SUMEXP_FN explicit Portable(T x) : v(x - Vector{}) {}

  // Arrays may lie at any address, also between the multiples of their element. S: T or a 16-bit format.
  template <class S>
  static SUMEXP_FN Portable load(const S* p) {
    Portable x;
    if constexpr (std::is_same_v<S, T>) {
      memcpy(&x.v, p, sizeof(x.v));
    } else {
      S stored[W];
      memcpy(stored, p, sizeof(stored));
      for (int i = 0; i < W; ++i) x.v[i] = element(stored[i]);
    }
    return x;
  }
  static SUMEXP_FN Portable load_part(const T* p, int n, T fill) {
    Portable x(fill);
    for (int i = 0; i < n; ++i) {
      T one;
      memcpy(&one, p + i, sizeof(T));
      x.v[i] = one;
    }
    return x;
  }
  template <class S>
  static SUMEXP_FN void store(S* p, Portable x) {
    if constexpr (std::is_same_v<S, T>) {
      memcpy(p, &x.v, sizeof(x.v));
    } else {
      S stored[W];
      for (int i = 0; i < W; ++i) convert(x.v[i], stored[i]);
      memcpy(p, stored, sizeof(stored));
    }
  }
  static SUMEXP_FN void store_part(T* p, Portable x, int n) {
    for (int i = 0; i < n; ++i) {
      const T one = x.v[i];
      memcpy(p + i, &one, sizeof(T));
    }
  }
  template <class S>
  static SUMEXP_FN void stream(S* p, Portable x) {
    store(p, x);
  }
};

using F32 = Portable<float>;
using F64 = Portable<double>;
using Mask32 = F32::Mask;
using Mask64 = F64::Mask;

template <class T>
SUMEXP_FN Portable<T> operator+(Portable<T> a, Portable<T> b) {
  return a.v + b.v;
}
template <class T>
SUMEXP_FN Portable<T> operator-(Portable<T> a, Portable<T> b) {
  return a.v - b.v;
}
template <class T>
SUMEXP_FN Portable<T> operator*(Portable<T> a, Portable<T> b) {
  return a.v * b.v;
}
template <class T>
SUMEXP_FN Portable<T> operator/(Portable<T> a, Portable<T> b) {
  return a.v / b.v;
}

// Where the mask is set a, else b.
template <class T>
SUMEXP_FN Portable<T> choose(typename Portable<T>::Mask mask, Portable<T> a, Portable<T> b) {
  using M = typename Portable<T>::Mask;
  return typename Portable<T>::Vector((mask & M(a.v)) | (~mask & M(b.v)));
}
SUMEXP_FN F32 pick(Mask32 mask, F32 a, F32 b) { return choose<float>(mask, a, b); }
SUMEXP_FN F64 pick(Mask64 mask, F64 a, F64 b) { return choose<double>(mask, a, b); }
SUMEXP_FN F32 clear(Mask32 mask, F32 x) { return F32::Vector(~mask & Mask32(x.v)); }
SUMEXP_FN F64 clear(Mask64 mask, F64 x) { return F64::Vector(~mask & Mask64(x.v)); }
SUMEXP_FN int count(Mask32 m) { return -static_cast<int>(m[0] + m[1] + m[2] + m[3]); }
SUMEXP_FN bool any(Mask32 m) { return count(m) != 0; }
SUMEXP_FN int count(Mask64 m) { return -static_cast<int>(m[0] + m[1]); }
SUMEXP_FN bool any(Mask64 m) { return count(m) != 0; }

template <class T>
SUMEXP_FN Portable<T> larger(Portable<T> a, Portable<T> b) {
  return choose<T>(a.v > b.v, a, b);
}
template <class T>
SUMEXP_FN Portable<T> at_least(Portable<T> floor, Portable<T> x) {
  return choose<T>(x.v < floor.v, floor, x);
}
template <class T>
SUMEXP_FN Portable<T> pow2_field(Portable<T> t) {
  using M = typename Portable<T>::Mask;
  return typename Portable<T>::Vector(M(t.v) << Lanes16<T>::kMantissa);
}
template <class T>
SUMEXP_FN auto equal(Portable<T> a, Portable<T> b) {
  return typename Portable<T>::Mask(a.v == b.v);
}
template <class T>
SUMEXP_FN auto unordered(Portable<T> a) {
  return typename Portable<T>::Mask(a.v != a.v);
}
template <class T>
SUMEXP_FN auto at_or_above(Portable<T> a, Portable<T> b) {
  return typename Portable<T>::Mask(a.v >= b.v);
}
template <class T>
SUMEXP_FN Portable<T> quiet(Portable<T> x) {
  return choose<T>(x.v == x.v, x, Portable<T>(Limits<T>::nan()));
}
SUMEXP_FN float largest(F32 x) {
  const float a = x.v[0] > x.v[2] ? x.v[0] : x.v[2], b = x.v[1] > x.v[3] ? x.v[1] : x.v[3];
  return a > b ? a : b;
}
SUMEXP_FN double largest(F64 x) { return x.v[0] > x.v[1] ? x.v[0] : x.v[1]; }
SUMEXP_FN double lane0(F64 x) { return x.v[0]; }
template <int h>
SUMEXP_FN F64 slide_down(F64 x) {  // lane i < h takes lane i + h
  static_assert(h == 1);
  return F64::Vector{x.v[1], x.v[0]};
}
SUMEXP_FN F64 exponent_split(F64 z, F64& k) {
  constexpr std::int64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
  typedef std::uint64_t Bits __attribute__((vector_size(16)));
  const Bits i = Bits(z.v) + static_cast<std::uint64_t>(one - sqrt_half);
  // The 12 bits become the last of 2^52 + k + 1023.
  k = F64(F64::Vector((i >> 52) | Bits(F64(0x1p52).v))) - F64(0x1p52 + 1023);
  return F64::Vector((i & 0x000fffffffffffffu) + static_cast<std::uint64_t>(sqrt_half));
}

template <>
struct WideOf<F64> : WidePair<F64> {};
template <>
struct WideOf<F32> {
  using W = Twin<F64>;
#if defined(__SSE2__)  // of which GCC 12 does not think by itself
  static SUMEXP_FN W from(F32 x) { return {F64(_mm_cvtps_pd(x.v)), F64(_mm_cvtps_pd(_mm_movehl_ps(x.v, x.v)))}; }
  static SUMEXP_FN F32 narrow(W w) { return F32(_mm_movelh_ps(_mm_cvtpd_ps(w.a.v), _mm_cvtpd_ps(w.b.v))); }
#else
  static SUMEXP_FN W from(F32 x) { return {F64(F64::Vector{x.v[0], x.v[1]}), F64(F64::Vector{x.v[2], x.v[3]})}; }
  static SUMEXP_FN F32 narrow(W w) {
    return F32::Vector{static_cast<float>(w.a.v[0]), static_cast<float>(w.a.v[1]), static_cast<float>(w.b.v[0]),
                       static_cast<float>(w.b.v[1])};
  }
#endif
  static SUMEXP_FN W from(F32 a, F32 b) { return from(a) + from(b); }
  static SUMEXP_FN W constant(double d) { return {F64(d), F64(d)}; }
  static SUMEXP_FN W scaled(W w, double d) { return {w.a * F64(d), w.b * F64(d)}; }
  static SUMEXP_FN void split(W w, F32& h, F32& l) {
    for (int i = 0; i < 4; ++i) {
      float high, low;
      WideOf<float>::split(i < 2 ? w.a.v[i] : w.b.v[i - 2], high, low);
      h.v[i] = high, l.v[i] = low;
    }
  }
};

#if defined(__FMA__)
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) { return F32::Vector(_mm_fmadd_ps(a.v, b.v, c.v)); }
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return F64::Vector(_mm_fmadd_pd(a.v, b.v, c.v)); }
#elif defined(__FP_FAST_FMAF)
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) {
  for (int i = 0; i < 4; ++i) c.v[i] = fma(a.v[i], b.v[i], c.v[i]);
  return c;
}
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return F64::Vector{fma(a.v[0], b.v[0], c.v[0]), fma(a.v[1], b.v[1], c.v[1])}; }
#else
// a b is exact in double; the sum with c is rounded to odd there, so that rounding it once more to float is right (Boldo and
// Melquiond, Emulation of FMA and correctly rounded sums, 2008).
SUMEXP_FN F64 sum_to_odd(F64 p, F64 c) {
  const DD<F64> sum = two_sum(p, c);
  const Mask64 bits = Mask64(sum.hi.v), odd = bits & 1;
  const Mask64 below = sum.lo.v<F64(0.0).v, above = sum.lo.v> F64(0.0).v;  // of infinities and NaN: neither
  const Mask64 away = below ^ (sum.hi.v < F64(0.0).v);                     // it was rounded away from 0
  return F64::Vector(bits + ((odd - 1) & (below | above) & (away | 1)));
}
__attribute__((noinline, unused)) static F32::Vector fma_in_double(F32::Vector a, F32::Vector b, F32::Vector c) {
  using O = WideOf<F32>;
  const auto x = O::from(a), y = O::from(b), z = O::from(c);
  return O::narrow({sum_to_odd(x.a * y.a, z.a), sum_to_odd(x.b * y.b, z.b)}).v;
}
SUMEXP_FN F32 fma(F32 a, F32 b, F32 c) { return fma_in_double(a.v, b.v, c.v); }
SUMEXP_FN F64 fma(F64 a, F64 b, F64 c) { return F64::Vector{fma(a.v[0], b.v[0], c.v[0]), fma(a.v[1], b.v[1], c.v[1])}; }
#endif

template <int h>
SUMEXP_FN void halves(F32 a, F32 b, F32& low, F32& high) {
  if constexpr (h == 2) low = F32::Vector{a.v[0], a.v[1], b.v[0], b.v[1]}, high = F32::Vector{a.v[2], a.v[3], b.v[2], b.v[3]};
  if constexpr (h == 1) low = F32::Vector{a.v[0], a.v[2], b.v[0], b.v[2]}, high = F32::Vector{a.v[1], a.v[3], b.v[1], b.v[3]};
}
template <int h>
SUMEXP_FN void halves(F64 a, F64 b, F64& low, F64& high) {
  static_assert(h == 1);
  low = F64::Vector{a.v[0], b.v[0]}, high = F64::Vector{a.v[1], b.v[1]};
}

// r[i] lane j <-> r[j] lane i
template <class T, int n>
SUMEXP_FN void transpose(Portable<T> (&r)[n]) {
  static_assert(n == Portable<T>::W);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) {
      const T lane = r[i].v[j];
      r[i].v[j] = r[j].v[i], r[j].v[i] = lane;
    }
}

}  // namespace sumexp::SUMEXP_NS
