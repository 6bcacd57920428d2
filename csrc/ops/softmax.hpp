// softmax and its derivatives. With s = softmax(x / T):
//
//   forward    y_i = e^(x_i) / S
//   VJP = JVP  dx = s (g - <s, g>) / T                            (the Jacobian diag(s) - s s^T is symmetric)
//   HVP        d/dx <g, s> along v:
//              s ( (v - <s,v>)(g - <s,g>) - <s, (v - <s,v>)(g - <s,g>)> ) / T^2
//
// The forward is the probability itself (probability.hpp).
#pragma once

#include "probability.hpp"
#include "sums.hpp"

namespace sumexp::SUMEXP_NS {

struct Softmax : LogitsOp {
  static constexpr bool kApart = false, kProbability = true, kMask = true;
  static constexpr int kTemperature = kOfLogits;
  template <class V>
  struct Row {};
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>&, V) {
    return {};
  }
  template <class V>
  static SUMEXP_FN V map(V p, const Row<V>&) {
    return p;
  }
};

// in: g, y
struct SoftmaxVjp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 1;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    acc[0] = fma(in[1], in[0], acc[0]);
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return in[1] * row.minus(0, in[0]);
  }
};

// in: g, v, y
struct SoftmaxHvp : SumsOp {
  static constexpr int kInputs = 3, kPasses = 2, kSums = 2, kTemperature = 2;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>& row) {
    if constexpr (pass == 0) {
      acc[0] = fma(in[2], in[0], acc[0]);
      acc[1] = fma(in[2], in[1], acc[1]);
    } else {
      // y first: an absent element adds 0 whatever the sums are
      acc[0] = fma(in[2] * row.minus(0, in[0]), row.minus(1, in[1]), acc[0]);
    }
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return in[2] * row.minus(2, row.minus(0, in[0]) * row.minus(1, in[1]));
  }
};

}  // namespace sumexp::SUMEXP_NS
