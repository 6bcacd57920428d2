// Cross-entropy of logits x against a target t, the index of one of them, and its gradient. With p = softmax(x), m the maximum,
// c the number of elements that equal it, R' the others' sum over e^m, and so S = e^m (c + R'):
//
//   forward    loss = -log p_t = (m - x_t) + L,  L = log(S) - m = log1p((c - 1) + R')
//   gradient   dx_j = p_j           for j != t
//              dx_t = -(1 - p_t) = ((e^(x_t - m) - c) - R') / (c + R')
//
// The loss is a sum of two numbers >= 0 in the wide type, rounded once: no digits cancel, whatever the offset of x, also as
// p_t -> 1. (log S - x_t would lose them.) Error: that of L (numerics/README.md, section 7) and half an ulp.
// dx_t is the sum of the others over S. When x_t is the maximum, e^0 - c is exact, and as p_t -> 1 what is left is R', which
// keeps its digits as the maximum is apart. When it is not, p_t <= 1/2 and its error, 1.3 * 2^-24 of it and |x_t - m| 2^-24 of
// it from the difference, is less than an ulp of the result.
// x_t = -inf: the loss is +inf and dx_t = -1. A row with a NaN or +inf, or nothing above -inf: NaN everywhere.
#pragma once

#include "probability.hpp"

namespace sumexp::SUMEXP_NS {

template <class V>
SUMEXP_FN V cross_entropy(V m, Wide<V> L, V x_t) {
  using O = WideOf<V>;
  const V zero = V(ElementOf<V>(0)), infinity = V(Limits<ElementOf<V>>::infinity);
  return pick(equal(m - x_t, infinity), infinity, O::narrow(O::from(m, zero - x_t) + L));
}

// A loss of the above times the weights of its class and row. Weight 0 leaves nothing, of an infinite loss too.
template <class T>
SUMEXP_FN T weighted_loss(T loss, double factor) {
  using O = WideOf<T>;
  if (factor == 1.0 || loss != loss) return loss;
  if (factor == 0.0) return T(0);
  if (!is_finite(loss)) return static_cast<T>(static_cast<double>(loss) * factor);
  return O::narrow(O::from(loss) * O::constant(factor));
}

// in: x; t, the target. The loss
struct CrossEntropy : LogitsOp {
  static constexpr bool kApart = true, kProbability = false, kRowOutput = true, kIndex = true;
  static constexpr int kRowInput = 1;
  template <class V>
  struct Row {
    V loss;
  };
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>& sum, V x_t) {
    return {cross_entropy(sum.m, log_over_max(sum), x_t)};
  }
  template <class V>
  static SUMEXP_FN V emit(const Row<V>& row) {
    return row.loss;
  }
  template <class T>
  static SUMEXP_FN T special(T, bool) {
    return Limits<T>::nan();
  }
};

// in: x; t, the target. The gradient times a factor of the row (1), and the loss as second result
struct CrossEntropyWithGrad : LogitsOp {
  static constexpr bool kApart = true, kProbability = true, kIndex = true, kExtra = true;
  static constexpr int kRowInput = 1;
  template <class V>
  struct Row {
    V at_target, loss, factor;
  };
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>& sum, V x_t) {
    using O = WideOf<V>;
    const Wide<V> others = others_over_max(sum), minus_others = O::scaled(others, -1.0);
    const Wide<V> numerator = (O::from(probability_of_log(x_t - sum.m).value) + O::scaled(sum.c, -1.0)) + minus_others;
    return {O::narrow(numerator / (sum.c + others)), cross_entropy(sum.m, log_over_max(sum), x_t), V(ElementOf<V>(1))};
  }
  template <class V>
  static SUMEXP_FN V map(V p, const Row<V>& row) {
    return row.factor * p;
  }
  template <class V>
  static SUMEXP_FN V at_index(const Row<V>& row) {
    return row.at_target * row.factor;
  }
  template <class V>
  static SUMEXP_FN V extra(const Row<V>& row) {
    return row.loss;
  }
};

}  // namespace sumexp::SUMEXP_NS
