// Kernels of the elementwise functions of the log domain: an instruction set's table. They compute in double, on pieces that
// lie in the first cache; `load` and `store` carry these between there and arrays of any dtype and stride.
#pragma once

#include <cstdint>

#include "../../include/sumexp/log_domain.hpp"
#include "../isa.hpp"

namespace sumexp::cpu {

inline constexpr int kPiece = 256;  // elements

struct ElementwiseKernels {
  // By dtype. stride: bytes.
  void (*load[4])(const char* from, std::int64_t stride, int count, double* to);
  void (*store[4])(char* to, std::int64_t stride, int count, const double* from);
  // By op and by whether results are of double.
  void (*map[kLogDomainOps][2])(const double* const* in, double* const* out, int count);
};

const ElementwiseKernels& elementwise_kernels_scalar();
const ElementwiseKernels& elementwise_kernels_scalar_fma();
const ElementwiseKernels& elementwise_kernels_avx2();
const ElementwiseKernels& elementwise_kernels_avx512();
const ElementwiseKernels& elementwise_kernels_neon();

}  // namespace sumexp::cpu
