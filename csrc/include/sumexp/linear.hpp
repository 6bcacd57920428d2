// sumexp: the softmax layer. Cross-entropy of logits z = x W^T + bias that never exist whole, and its gradients.
//
//   dx = G W    dW = G^T x    dbias = sum of the rows of G,    G the gradient of the logits (losses.hpp), without its subnormal
//                                                              numbers
//
// Tokens go in chunks: a product makes the logits of one, one sweep its losses, with the gradient over the logits, two products
// dx and its share of dW. Products are the caller's. Rows that are ignored are left out before the first.
#pragma once

#include "losses.hpp"

namespace sumexp {

// c = a' b', or c += a' b' with `add`; a' is a or its transpose, m x k, and b' k x n. Rows of a matrix lie `step` elements
// apart, without gaps inside. As BLAS's gemm for row-major matrices. It may not throw, and runs in the floating-point mode of
// the caller, which all else here does not depend on.
struct Gemm {
  using Multiply = void (*)(void* context, DType dtype, bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n,
                            std::int64_t k, const void* a, std::int64_t a_step, const void* b, std::int64_t b_step, bool add,
                            void* c, std::int64_t c_step);
  Multiply multiply = nullptr;
  void* context = nullptr;
};

// chunk: tokens whose logits exist at a time. 0 chooses: about a 24th of them; at least as many as have 2^20 logits, and at
// most that or 512, whichever is more.
struct LinearCrossEntropyCall {
  std::int64_t tokens = 0, width = 0, classes = 0;  // N, D, V
  const void* x = nullptr;                          // (N, D), rows x_step elements apart
  std::int64_t x_step = 0;
  const void* w = nullptr;  // (V, D)
  std::int64_t w_step = 0;
  const void* bias = nullptr;  // (V,); absent: none
  // The loss of logits of shape (N, V), classes along axis 1, of f32 or f64, and what is to be told of each token. logits,
  // dlogits, ndim, shape and axis are not looked at; views have strides for two dimensions.
  CrossEntropyCall loss;
  // Gradients, (N, D), (V, D) and (V,), contiguous; absent: not wanted, and not computed. add_dw: dW is added to.
  void *dx = nullptr, *dw = nullptr, *dbias = nullptr;
  bool add_dw = false;
  std::int64_t chunk = 0;
  Gemm gemm;
};

// A token's loss has the bytes of cross_entropy on the same logits. Everything is checked before anything is written.
SUMEXP_API Status linear_cross_entropy(const LinearCrossEntropyCall& call) noexcept;

}  // namespace sumexp
