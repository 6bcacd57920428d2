// The product of matrices in the log domain: out_ij = log sum_k e^(a_ik + b_kj), of a batch of them.
//
// Right for every finite input, however far apart: within 2 ulp of max(|result|, |largest a_ik + b_kj|); float16 and bfloat16
// within 0.51 ulp. -inf is a term that is 0; +inf and NaN are those of the terms' sum. No array of batch x M x K x N is formed:
// scratch is some MB a thread. A result depends on its row of a and its column of b alone.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

struct LogMatmul {
  DType dtype = DType::f32;
  int batch_dims = 0;  // 0 .. kMaxDims - 2
  const std::int64_t* batch_shape = nullptr;
  std::int64_t m = 0, k = 0, n = 0;
  // Strides of the batch, then of both dimensions of a matrix, in bytes. a: (batch, m, k), b: (batch, k, n), out: (batch, m,
  // n), apart from a and b.
  View a, b, out;
};

SUMEXP_API Status logmatmulexp(const LogMatmul& call) noexcept;

// Gradients of a and b from g, that of out, whose place it has: `call.out`. da: (batch, m, k), db: (batch, k, n), apart from
// the inputs; either may be absent. Scratch is a double and a byte for each element of out, of one product of the batch or of
// 2^20 elements. Of a sum of nothing (-inf) gradients are 0; of one with a NaN or +inf among its terms NaN.
SUMEXP_API Status logmatmulexp_vjp(const LogMatmul& call, View da, View db) noexcept;
// The derivative of out along ta (batch, m, k) and tb (batch, k, n), to `call.out`.
SUMEXP_API Status logmatmulexp_jvp(const LogMatmul& call, View ta, View tb) noexcept;

}  // namespace sumexp
