// log_softmax and its derivatives. With y = log_softmax(x / T), s = e^y:
//
//   forward    y_i = (x_i - m) - L,  L = log(S) - m = log1p((c - 1) + R / e^m)
//   VJP        dx = (g - s sum(g)) / T                   (Jacobian I - 1 s^T: not symmetric,
//   JVP        dy = (t - <s, t>) / T                      so that the two differ)
//   HVP        d/dx <g, y> along v:  -s (v - <s, v>) sum(g) / T^2
//
// Forward in T: x - m is within half an ulp of itself, L and the last subtraction likewise, and x - m and -L,
// which add up to y, cannot both lie in y's binade: 1.25 ulp and the 0.12 eps that L carries. At the winner
// x - m = 0 and y = -L; a subnormal L of double rows is within 1.5 ulp (numerics/README.md, section 7).
#pragma once

#include "op.hpp"
#include "sums.hpp"

namespace sumexp::SUMEXP_NS {

struct LogSoftmax : LogitsOp {
  static constexpr bool kApart = true, kProbability = false, kMask = true;
  static constexpr int kTemperature = kOfLogits;
  template <class V>
  struct Row {
    V m, L;
  };
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>& sum, V) {
    return {sum.m, WideOf<V>::narrow(log_over_max(sum))};
  }
  template <class V>
  static SUMEXP_FN V map(V x, const Row<V>& row) {
    return (x - row.m) - row.L;
  }
};

// in: g, y
struct LogSoftmaxVjp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 1;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    acc[0] = acc[0] + in[0];
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return in[0] - row.times(0, exp_probability(in[1]));
  }
};

// in: t, y
struct LogSoftmaxJvp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 1;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    acc[0] = fma(exp_probability(in[1]), in[0], acc[0]);
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return row.minus(0, in[0]);
  }
};

// in: g, v, y
struct LogSoftmaxHvp : SumsOp {
  static constexpr int kInputs = 3, kPasses = 1, kSums = 2, kTemperature = 2;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    acc[0] = acc[0] + in[0];
    acc[1] = fma(exp_probability(in[2]), in[1], acc[1]);
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    const V s = exp_probability(in[2]);
    return V(ElementOf<V>(0)) - row.times(0, s * row.minus(1, in[1]));
  }
};

}  // namespace sumexp::SUMEXP_NS
