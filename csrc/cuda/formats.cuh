// Storage types and the type they are computed in; the GPU's own conversions where it has them. They are
// the same functions as numerics/formats.hpp's: exact up, to nearest even down, one NaN.
#pragma once

#include "../numerics/formats.hpp"
#include "../numerics/geometry.hpp"
#include "arch/arch.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sumexp::SUMEXP_NS {

template <class S>
struct ComputeOf {
  using T = float;
};
template <>
struct ComputeOf<double> {
  using T = double;
};
template <class S>
using Compute = typename ComputeOf<S>::T;

SUMEXP_DEVICE float widen(float x) { return x; }
SUMEXP_DEVICE double widen(double x) { return x; }
SUMEXP_DEVICE float widen(bf16 h) { return to_float(h); }
SUMEXP_DEVICE float widen(f16 h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h.bits));
#else
  return to_float(h);
#endif
}

// Two floats as 16-bit neighbours, the first one low, in the one instruction that there is for it; of a NaN some NaN.
#if defined(__CUDA_ARCH__)
SUMEXP_DEVICE std::uint32_t rounded_pair(float a, float b, bf16) {
  return bit_cast<std::uint32_t>(__floats2bfloat162_rn(a, b));
}
SUMEXP_DEVICE std::uint32_t rounded_pair(float a, float b, f16) { return bit_cast<std::uint32_t>(__floats2half2_rn(a, b)); }
#else
SUMEXP_DEVICE std::uint32_t rounded(float x, bf16) { return x == x ? to_bf16(x).bits : 0x7fffu; }  // the instruction's NaN
SUMEXP_DEVICE std::uint32_t rounded(float x, f16) { return x == x ? to_f16(x).bits : 0x7fffu; }
template <class S>
SUMEXP_DEVICE std::uint32_t rounded_pair(float a, float b, S type) {
  return rounded(a, type) + rounded(b, type) * 0x10000u;
}
#endif
SUMEXP_DEVICE bf16 nan_as(bf16) { return {0x7fc0}; }
SUMEXP_DEVICE f16 nan_as(f16) { return {0x7e00}; }

// From the compute type to storage, and the words in which stored elements are held in registers: 16-bit ones two by two,
// or the compiler takes them apart and puts them together again at every branch.
//
//   from(x)         any value
//   word(a, b)      neighbours; b is not used where a word has one element. kNumbers: neither is NaN
//   element(w, e),  replace(w, e, x)
template <class S, bool kHalf = sizeof(S) == 2>
struct Narrow {
  using Word = S;
  static constexpr int kPerWord = 1;
  SUMEXP_DEVICE static S from(S x) { return x; }
  template <bool kNumbers>
  SUMEXP_DEVICE static Word word(S a, S) {
    return a;
  }
  SUMEXP_DEVICE static S element(Word w, int) { return w; }
  SUMEXP_DEVICE static Word replace(Word, int, S x) { return x; }
};
template <class S>
struct Narrow<S, true> {
  using Word = std::uint32_t;
  static constexpr int kPerWord = 2;
  SUMEXP_DEVICE static S from(float x) {
    const S rounded = {static_cast<std::uint16_t>(rounded_pair(x, x, S{}))};
    return x == x ? rounded : nan_as(S{});
  }
  template <bool kNumbers>
  SUMEXP_DEVICE static Word word(float a, float b) {
    if constexpr (kNumbers) return rounded_pair(a, b, S{});
    else return from(a).bits | std::uint32_t(from(b).bits) << 16;
  }
  SUMEXP_DEVICE static S element(Word w, int e) { return {static_cast<std::uint16_t>(w >> (16 * e))}; }
  SUMEXP_DEVICE static Word replace(Word w, int e, S x) {
    return (w & ~(0xffffu << (16 * e))) | std::uint32_t(x.bits) << (16 * e);
  }
};

// What becomes of a row's logits. A quotient by the temperature that overflows is NaN, and so then is the row's state: it is
// reduced as it is, for its maximum, and again less that (`Retry` in kernels.cuh).
enum class Division : int { quotient, none, apart };

// A logit over a temperature, rounded once; of an infinite temperature 0, or x if that is not finite. top: of rows that are
// divided apart, their maximum.
template <class T>
SUMEXP_DEVICE T over_temperature(T x, T t, Division how = Division::quotient, T top = T(0)) {
  if (how == Division::none) return x;
  if (how == Division::apart) return T(2) * ((x * T(0.5) - top * T(0.5)) / t);
  if (t == Limits<T>::infinity) return is_finite(x) ? T(0) : x;
  const T quotient = x / t;
  return is_finite(quotient) || !is_finite(x) ? quotient : Limits<T>::nan();
}

// What a temperature multiplies a derivative by: first late^2 (cpu::Plan).
template <class T>
struct TemperatureFactor {
  T first, late;
};

// How a warp holds a lane row of numerics/geometry.hpp: kPack neighbours a thread and span, all of a span
// by one 16-byte load of each thread. Value k of thread t is element at(k) of the lane row.
template <class S>
struct Tile {
  using T = Compute<S>;
  using G = Geometry<T>;
  static constexpr int kPack = 16 / int(sizeof(S));             // 8 (f16, bf16), 4 (f32), 2 (f64)
  static constexpr int kSpan = arch::lane_count * kPack;        // 256, 128, 64
  static constexpr int kSpans = G::kLanes / kSpan;              // 1, 2, 1
  static constexpr int kValues = G::kLanes / arch::lane_count;  // of a lane row, per thread: 8, 8, 2
  SUMEXP_DEVICE static int at(int k) { return k / kPack * kSpan + arch::lane() * kPack + k % kPack; }
};

// Where a warp's elements wait in shared memory between global memory, of which neighbouring threads take neighbours, and
// a Tile, of which they take what is kPack apart: one place stays free after every line of the 32 banks, or 4, 8 or 16
// threads would meet in a bank where now each has its own. The next warp's elements begin so much further on that threads
// of a warp which take neighbours across a block's warps do not meet either.
template <class T>
struct Stage {
  static constexpr int kLine = 128 / int(sizeof(T));
  SUMEXP_FN static constexpr int place(int i) { return i + i / kLine; }
  SUMEXP_FN static constexpr int pitch(int elements, int warps) {
    return (place(elements) + kLine - 1) / kLine * kLine + kLine / warps;
  }
};

}  // namespace sumexp::SUMEXP_NS
