// Log-probabilities of chosen classes, entropies, and the Kullback-Leibler divergence of rows of logits, with their gradients:
// what is computed per token in distillation and reinforcement learning. Of the rules of sumexp.hpp all hold: plain pointers,
// byte strides, nothing thrown, and a row's result depends on that row's values alone.
//
//   log_prob   log p_i for chosen indices i, p = softmax(x / T)                          within 1 ulp
//   entropy    sum_j p_j (log S - x_j / T); elements of probability 0 count 0            within 4 ulp
//   kl_div     sum_j p_j (log p_j - log q_j), p = softmax(x), q = softmax(y)             within 20 eps of it, and (eps / 8)^2
//
// A row with NaN or +inf, or nothing above -inf, is NaN. The entropy of rows of no elements is 0, and so is their divergence.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

// Rows along `axis` of arrays of this shape; a negative axis counts from the last. Every array has ndim strides. For arrays of
// one value a row that of `axis` is of no account, but for arrays with a value for each of a row's indices (`picks` of them)
// it is the step from one to the next.
struct LogitsRows {
  DType dtype = DType::f32;  // of every array but indices
  int ndim = 0;              // from 1
  const std::int64_t* shape = nullptr;
  int axis = -1;
  double temperature = 1.0;  // > 0, may be infinite; of log_prob and entropy
  std::int64_t picks = 1;    // indices of a row
};

// index: std::int64_t, each from 0 below the row's length. `index` and `log_prob` are both given or both absent, and so is
// `entropy` if it is not wanted; from one sweep over the logits. Absent is a View{}.
SUMEXP_API Status log_prob_and_entropy(const LogitsRows& rows, const View& logits, const View& index, const View& log_prob,
                                       const View& entropy) noexcept;
// The gradient of <g_log_prob, log_prob> + <g_entropy, entropy> with respect to the logits. out may be exactly the logits.
SUMEXP_API Status log_prob_and_entropy_vjp(const LogitsRows& rows, const View& g_log_prob, const View& g_entropy,
                                           const View& logits, const View& index, const View& out) noexcept;

SUMEXP_API Status kl_div(const LogitsRows& rows, const View& p_logits, const View& q_logits, const View& out) noexcept;
// The gradient of <g, kl_div> with respect to both. Each may be exactly its logits. Where the divergence is infinite, that of
// p_logits is NaN wherever p > 0.
SUMEXP_API Status kl_div_vjp(const LogitsRows& rows, const View& g, const View& p_logits, const View& q_logits,
                             const View& out_p, const View& out_q) noexcept;

}  // namespace sumexp
