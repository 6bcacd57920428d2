// The table of operations, in the order of sumexp::Op (include/sumexp/sumexp.hpp). A row: the public name, the op's struct,
// and its family (op.hpp). Dispatch, and the kernels of every instruction set and of GPUs, are made from it.
#pragma once

#include "cross_entropy.hpp"
#include "log_softmax.hpp"
#include "logsumexp.hpp"
#include "softmax.hpp"

#define SUMEXP_OPERATIONS(ROW)                         \
  ROW(softmax, Softmax, Logits)                        \
  ROW(log_softmax, LogSoftmax, Logits)                 \
  ROW(logsumexp, LogSumExp, Logits)                    \
  ROW(softmax_vjp, SoftmaxVjp, Sums)                   \
  ROW(log_softmax_vjp, LogSoftmaxVjp, Sums)            \
  ROW(log_softmax_jvp, LogSoftmaxJvp, Sums)            \
  ROW(logsumexp_vjp, LogSumExpVjp, Logits)             \
  ROW(logsumexp_jvp, LogSumExpJvp, Weighted)           \
  ROW(softmax_hvp, SoftmaxHvp, Sums)                   \
  ROW(log_softmax_hvp, LogSoftmaxHvp, Sums)            \
  ROW(weighted_logsumexp, WeightedLogSumExp, Weighted) \
  ROW(cross_entropy, CrossEntropy, Logits)             \
  ROW(cross_entropy_with_grad, CrossEntropyWithGrad, Logits)
