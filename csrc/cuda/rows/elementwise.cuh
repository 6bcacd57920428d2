// Elementwise functions of the log domain: a thread an element, in double, whatever is stored.
//
// One kernel has the functions and one their derivatives, since what they share is most of them: which it is, all threads
// decide alike.
#pragma once

#include "../formats.cuh"
#include "elementwise.hpp"

namespace sumexp::SUMEXP_NS {

// What ops/elementwise.hpp asks of a number.
SUMEXP_FN bool unordered(double x) { return x != x; }
SUMEXP_FN int count(bool mask) { return mask; }

}  // namespace sumexp::SUMEXP_NS

#if defined(__CUDACC__)
#pragma nv_diag_suppress 1675  // pragmas of GCC, for the CPU
#endif
#include "../../ops/elementwise.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr int kElementThreads = 128;

SUMEXP_DEVICE void place_element(const cpu::Walk& walk, std::int64_t i, std::int64_t (&offset)[cpu::Walk::kMost]) {
#pragma unroll
  for (int k = 0; k < cpu::Walk::kMost; ++k) offset[k] = 0;
#pragma unroll 1
  for (int d = walk.ndim - 1; d >= 0; --d) {
    const std::int64_t outer = d > 0 ? i / walk.extent[d] : 0, at = i - outer * walk.extent[d];
#pragma unroll
    for (int k = 0; k < cpu::Walk::kMost; ++k)
      if (k < walk.operands) offset[k] += at * walk.stride[k][d];
    i = outer;
  }
}

template <class Op, class S, int inputs, int outputs>
SUMEXP_DEVICE void map_element(const cpu::ElementwiseArrays& arrays, const std::int64_t (&offset)[cpu::Walk::kMost]) {
  using W = std::conditional_t<sizeof(S) == 8, DD<double>, double>;
  double x[inputs], y[outputs];
#pragma unroll
  for (int k = 0; k < inputs; ++k) x[k] = widen(*reinterpret_cast<const S*>(arrays.data[k] + offset[k]));
  Op::template apply<W>(x, y);
#pragma unroll
  for (int k = 0; k < outputs; ++k)
    if (char* const to = arrays.data[inputs + k])
      *reinterpret_cast<S*>(to + offset[inputs + k]) = Narrow<S>::from(quiet(static_cast<Compute<S>>(quiet(y[k]))));
}

template <class S, bool kDerivatives>
__global__ void __launch_bounds__(kElementThreads) map_elements(SUMEXP_PARAMETER cpu::ElementwiseArrays arrays, LogDomain op) {
  namespace e = elementwise;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kElementThreads + threadIdx.x; i < arrays.walk.size;
       i += std::int64_t(gridDim.x) * kElementThreads) {
    std::int64_t offset[cpu::Walk::kMost];
    place_element(arrays.walk, i, offset);
    if constexpr (!kDerivatives) {
      switch (op) {
        case LogDomain::logaddexp: map_element<e::LogAddExp, S, 2, 1>(arrays, offset); break;
        case LogDomain::logsubexp: map_element<e::LogSubExp, S, 2, 1>(arrays, offset); break;
        case LogDomain::log1mexp: map_element<e::Log1mExp, S, 1, 1>(arrays, offset); break;
        default: map_element<e::Softplus, S, 1, 1>(arrays, offset);
      }
    } else {
      switch (op) {
        case LogDomain::logaddexp_vjp: map_element<e::LogAddExpVjp, S, 3, 2>(arrays, offset); break;
        case LogDomain::logsubexp_vjp: map_element<e::LogSubExpVjp, S, 3, 2>(arrays, offset); break;
        case LogDomain::log1mexp_vjp: map_element<e::Log1mExpVjp, S, 2, 1>(arrays, offset); break;
        case LogDomain::softplus_vjp: map_element<e::SoftplusVjp, S, 2, 1>(arrays, offset); break;
        case LogDomain::logaddexp_jvp: map_element<e::LogAddExpJvp, S, 4, 1>(arrays, offset); break;
        default: map_element<e::LogSubExpJvp, S, 4, 1>(arrays, offset);
      }
    }
  }
}

template <class S>
cudaError_t ElementwiseMap<S>::run(LogDomain op, const cpu::ElementwiseArrays& arrays, cudaStream_t stream) {
  const std::int64_t blocks = (arrays.walk.size + kElementThreads - 1) / kElementThreads;
  arch::Launch how;
  how.stream = stream;
  how.grid = dim3(unsigned(blocks < 0x7fffffff ? blocks : 0x7fffffff));
  how.block = dim3(kElementThreads);
  return op < LogDomain::logaddexp_vjp ? arch::launch(map_elements<S, false>, how, arrays, op)
                                       : arch::launch(map_elements<S, true>, how, arrays, op);
}

}  // namespace sumexp::SUMEXP_NS
