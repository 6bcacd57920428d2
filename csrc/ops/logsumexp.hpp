// logsumexp and its derivatives. With s = softmax(x):
//
//   forward    l = m + log1p((c - 1) + R / e^m)
//   weighted   l = log |sum_j b_j e^(x_j)|, with its sign: c is the sum of the weights of the maxima, R that
//              of the other weighted terms; a sum below half its maximum's term is first scaled up, exactly
//   VJP        dx = g s            (g one number a row)
//   JVP        dl = <s, t>
// The Hessian is the Jacobian of softmax (jacobians.hpp).
#pragma once

#include "probability.hpp"

namespace sumexp::SUMEXP_NS {

SUMEXP_FN float plus_narrow(float m, double L) { return static_cast<float>(static_cast<double>(m) + L); }
SUMEXP_FN double plus_narrow(double m, DD<double> L) {
  const DD<double> sum = two_sum(m, L.hi);
  return sum.hi + (sum.lo + L.lo);
}

struct LogSumExp : LogitsOp {
  static constexpr bool kApart = true, kProbability = false, kRowOutput = true, kMask = true;
  template <class V>
  struct Row {
    V value;
  };
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>& sum, V) {
    return {plus_narrow(sum.m, log_over_max(sum))};
  }
  template <class V>
  static SUMEXP_FN V emit(const Row<V>& row) {
    return row.value;
  }
  template <class T>
  static SUMEXP_FN T special(T m, bool nan) {
    return nan ? Limits<T>::nan() : m;
  }
};

// in: x; g, one number a row
struct LogSumExpVjp : LogitsOp {
  static constexpr bool kApart = false, kProbability = true;
  static constexpr int kRowInput = 1;
  template <class V>
  struct Row {
    V g;
  };
  template <class V>
  static SUMEXP_FN Row<V> finish(const RowSum<V>&, V g) {
    return {g};
  }
  template <class V>
  static SUMEXP_FN V map(V p, const Row<V>& row) {
    return quiet(p * row.g);
  }
};

// log z for 0 < z < 1/2: k ln 2 + log1p(z 2^-k - 1)
SUMEXP_FN double log_of_small(double z) {
  double k;
  const double m = exponent_split(z * 0x1p200, k);  // which a subnormal z becomes normal by
  return log1p_wide(m - 1.0) + (k - 200.0) * ExpConstants<double>::ln2_hi;
}
SUMEXP_FN DD<double> log_of_small(DD<double> z) {
  double k;
  z = WideOf<double>::scaled(z, 0x1p200);
  const double m = exponent_split(z.hi, k);
  const DD<double> log_m = log1p_wide(two_sum(m - 1.0, z.lo * pow2<double>(static_cast<std::int64_t>(-k))));
  k = k - 200.0;
  const DD<double> head = two_sum(k * LogConstants::ln2_hi, log_m.hi);
  return fast_two_sum(head.hi, head.lo + fma(k, LogConstants::ln2_lo, log_m.lo));
}

// log |sum_j b_j e^(x_j)| and the sign of the sum. in: x, b. The weighted sum over its maximum term, c + R / e^m, may have any
// sign; log|.| of it is log1p near 1.
struct WeightedLogSumExp : WeightedOp {
  static constexpr bool kExact = true, kMask = true, kExtra = true;
  template <class T>
  using State = ExpState<T>;
  template <class T>
  struct Row {
    T value, sign;
  };
  template <class T>
  static SUMEXP_FN Row<T> finish(const ExpState<T>& row) {
    using O = WideOf<T>;
    if (is_nan(row.R) || is_nan(row.c)) return {Limits<T>::nan(), Limits<T>::nan()};
    if (!is_finite(row.m)) {
      if (row.m < T(0)) return {row.m, T(0)};  // an empty sum
      const double c = head(row.c);            // +inf, with the sign of its weights; inf - inf when they cancel
      if (c == 0.0) return {Limits<T>::nan(), Limits<T>::nan()};
      return {row.m, T(c > 0.0 ? 1 : -1)};
    }
    const Wide<T> others = O::scaled(row.R / exp_wide(base_of(row.m).rho), kCarryDown<T>);
    const double sum = head(row.c + others);
    if (sum == 0.0) return {-Limits<T>::infinity, T(0)};
    const Wide<T> flip = O::constant(sum < 0.0 ? -1.0 : 1.0);
    const Wide<T> L = sum > -0.5 && sum < 0.5 ? log_of_small(flip * row.c + flip * others)
                                              : log1p_wide((flip * row.c + O::constant(-1)) + flip * others);
    const T value = plus_narrow(row.m, L);
    return {value == value ? value : Limits<T>::nan(), T(head(flip))};  // weights near the largest number
  }
  // Without a place for the sign, a negative sum has no logarithm.
  template <class T>
  static SUMEXP_FN T emit(const Row<T>& row, T* sign) {
    if (sign) *sign = row.sign;
    return !sign && row.sign < T(0) ? Limits<T>::nan() : row.value;
  }
};

// in: x, t
struct LogSumExpJvp : WeightedOp {
  static constexpr bool kExact = false;
  template <class T>
  using State = ExpDotState<T>;
  template <class T>
  struct Row {
    T value;
  };
  template <class T>
  static SUMEXP_FN Row<T> finish(const ExpDotState<T>& row) {
    const Wide<T> S = WideOf<T>::scaled(total(row.sum), kCarryDown<T>);
    if (is_nan(S) || !is_finite(row.sum.m) || is_nan(row.dot)) return {Limits<T>::nan()};
    const T value = WideOf<T>::narrow(row.dot / S);
    return {value == value ? value : Limits<T>::nan()};
  }
  template <class T>
  static SUMEXP_FN T emit(const Row<T>& row, T*) {
    return row.value;
  }
};

}  // namespace sumexp::SUMEXP_NS
