// Kernels of the elementwise functions of the log domain: an instruction set's table. They compute in double, on pieces that
// lie in the first cache; `load` and `store` carry these between there and arrays of any dtype and stride.
#pragma once

#include <cstdint>

#include "../../include/sumexp/log_domain.hpp"
#include "../isa.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

inline constexpr int kPiece = 256;  // elements

struct ElementwiseKernels {
  // By dtype. stride: bytes.
  void (*load[4])(const char* from, std::int64_t stride, int count, double* to);
  void (*store[4])(char* to, std::int64_t stride, int count, const double* from);
  // By op and by whether results are of double.
  void (*map[kLogDomainOps][2])(const double* const* in, double* const* out, int count);
};

SUMEXP_DECLARE_TABLES(ElementwiseKernels, elementwise_kernels_)

}  // namespace sumexp::cpu
