// The one place that knows which compiler reads these headers.
//
// Every header below numerics/ and ops/ is compiled several times with different machine flags: once
// per instruction set and once by nvcc. All of it therefore lives in a namespace of that compilation,
// SUMEXP_NS, so that the linker can never pick an inline function compiled for another machine.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fast math takes away what is rounded off, NaN and infinity: compile sumexp with -fno-fast-math"
#endif

#ifndef SUMEXP_NS
#define SUMEXP_NS base
#endif

// SUMEXP_INLINE stands behind the parameters of a lambda, SUMEXP_KERNEL before a function that a table or another file calls.
// Everything is inlined into kernels. Where SUMEXP_FLATTEN is defined, by a file all of whose kernels are marked, GCC does so
// once, from the kernel down, and not at every level of calls: a third less work, but loops over a chunk may get slower by it.
// (clang's flatten goes one level down.) Nothing is forced in the portable variant, which is to be small, and under sanitizers
// (SUMEXP_CALLS), whose checks are then compiled once a function, not wherever it is called.
#if defined(SUMEXP_SMALL) || defined(SUMEXP_CALLS)
#define SUMEXP_INLINE
#define SUMEXP_KERNEL
#elif defined(SUMEXP_FLATTEN) && !defined(__clang__)
#define SUMEXP_INLINE
#define SUMEXP_KERNEL __attribute__((flatten))
#else
#define SUMEXP_INLINE __attribute__((always_inline))
#define SUMEXP_KERNEL
#endif

#if defined(__CUDACC__)
#define SUMEXP_FN __host__ __device__ __forceinline__
#define SUMEXP_LARGE_FN SUMEXP_FN
#define SUMEXP_MERGE_FN SUMEXP_FN
#else
#define SUMEXP_FN inline SUMEXP_INLINE
#define SUMEXP_LARGE_FN __attribute__((noinline))  // some KB, that would be at every place that calls it
#if defined(SUMEXP_SMALL)
#define SUMEXP_MERGE_FN SUMEXP_LARGE_FN  // in the portable variant, which is to be small
#else
#define SUMEXP_MERGE_FN SUMEXP_FN  // where a row of one chunk would wait for memory: 10 % of short rows
#endif
#endif

namespace sumexp::SUMEXP_NS {

template <class To, class From>
SUMEXP_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace sumexp::SUMEXP_NS
