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

// The winner w of a row is its element with s_w of 0.57 or more, where there is one. There 1 - s cancels, and with it
// what is left of the derivatives; so they are taken as
//
//   VJP        dx_w = g_w (1 - s_w) - s_w sum_{j != w} g_j
//   JVP        dy_i = (t_i - t_w) + (t_w (1 - s_w) - sum_{j != w} s_j t_j)       i = w has the second part alone
//
// 1 - s_w is -expm1(y_w), and the sums without w are sums of their own: w's share in a common one would leave its rounding
// (numerics/README.md, section 8). A y that is no log-probability may have several winners: the formulas hold for them too.

// in: g, y
struct LogSoftmaxVjp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 2, kLog = 1;
  static constexpr bool kWinnersApart = true;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    const auto winner = wins(in[1]);
    acc[0] = acc[0] + pick(winner, in[0], V(ElementOf<V>(0)));  // one number, so that it is exact
    acc[1] = acc[1] + clear(winner, in[0]);
  }
  template <class V>
  static SUMEXP_FN V usual(V sum, const V* in) {
    return sum + in[0];
  }
  // s of the element, others: the sum of all g but this
  template <class V>
  static SUMEXP_FN V at_winner(V g, const Probability<V>& s, V others) {
    return fma(g, s.rest, V(ElementOf<V>(0)) - s.value * others);
  }
  template <class V>
  static SUMEXP_FN V at_other(V g, const Probability<V>& s, const RowScalars<V>& row) {
    return fma(s.value, row.h[2], g);
  }
  template <class V>
  static SUMEXP_FN void prepare(RowScalars<V>& row) {
    row.h[2] = V(ElementOf<V>(0)) - row.plus(1, row.h[0]);
  }
  template <class V>
  static SUMEXP_FN void prepare_winner(RowScalars<V>& row, V y) {
    row.h[3] = at_winner(row.h[0], probability_of_log(y), row.plus(1, row.h[0] - row.h[0]));
  }
  template <class V>
  static SUMEXP_FN V map_usual(const V* in, const RowScalars<V>& row) {
    return at_other(in[0], probability_of_log(in[1]), row);
  }
  template <class V>
  static SUMEXP_FN V map_winner(const V* in, const RowScalars<V>& row) {
    return pick(wins(in[1]), row.h[3], map_usual(in, row));
  }
  template <class V>
  static SUMEXP_FN V map_any(const V* in, const RowScalars<V>& row) {
    const auto winner = wins(in[1]);
    const Probability<V> s = probability_of_log(in[1]);
    const V others = row.plus(1, row.h[0] - pick(winner, in[0], V(ElementOf<V>(0))));
    return pick(winner, at_winner(in[0], s, others), at_other(in[0], s, row));
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, RowScalars<V> row) {
    prepare(row);
    return map_any(in, row);
  }
};

// in: t, y
struct LogSoftmaxJvp : SumsOp {
  static constexpr int kInputs = 2, kPasses = 1, kSums = 2, kLog = 1;
  static constexpr bool kExponentials = true, kMapAdds = true;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>&) {
    const V zero = V(ElementOf<V>(0));
    const auto winner = wins(in[1]);
    const Probability<V> s = probability_of_log(in[1]);
    acc[0] = acc[0] + pick(winner, in[0], zero);
    acc[1] = fma(pick(winner, s.rest, zero - s.value), in[0], acc[1]);
  }
  template <class V>
  static SUMEXP_FN void add_usual(V* acc, const V* in) {
    acc[1] = fma(V(ElementOf<V>(0)) - probability_of_log(in[1]).value, in[0], acc[1]);
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    return row.plus(1, in[0] - row.h[0]);
  }
};

// in: g, v, y
struct LogSoftmaxHvp : SumsOp {
  static constexpr int kInputs = 3, kPasses = 1, kSums = 3, kLog = 2, kTemperature = 2;
  static constexpr bool kExponentials = true;
  template <int pass, class V>
  static SUMEXP_FN void add(V* acc, const V* in, const RowScalars<V>& row) {
    LogSoftmaxJvp::add<pass>(acc, in + 1, row);
    acc[2] = acc[2] + in[0];
  }
  template <class V>
  static SUMEXP_FN void add_usual(V* acc, const V* in) {
    LogSoftmaxJvp::add_usual(acc, in + 1);
    acc[2] = acc[2] + in[0];
  }
  template <class V>
  static SUMEXP_FN V map(const V* in, const RowScalars<V>& row) {
    const V s = probability_of_log(in[2]).value;
    return V(ElementOf<V>(0)) - row.times(2, s * LogSoftmaxJvp::map(in + 1, row));
  }
};

}  // namespace sumexp::SUMEXP_NS
