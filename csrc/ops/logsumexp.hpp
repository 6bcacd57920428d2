// logsumexp and its derivatives. With s = softmax(x):
//
//   forward    l = m + log1p((c - 1) + R / e^m)
//   weighted   l = log |sum_j b_j e^(x_j)|, with its sign: c is the sum of the weights of the maxima, R that
//              of the other weighted terms; a sum below half its maximum's term is first scaled up, exactly
//   VJP        dx = g s            (g one number a row)
//   JVP        dl = <s, t>
// A sum of nothing, of a row of -inf alone, is a constant: its derivatives are 0, not those of s, which is NaN there.
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
  static constexpr bool kApart = false, kProbability = true, kZeroOfNothing = true;
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

// The state of a sum with weights: c and R are sums of weights and of weighted terms; infinite and NaN weights are summed
// apart, as IEEE has it, a pair of doubles being no place for them.
template <class T>
struct WeightedState {
  ExpState<T> sum;
  double special;

  SUMEXP_FN static WeightedState empty() { return {ExpState<T>::empty(), 0.0}; }
};
template <class T>
SUMEXP_FN WeightedState<T> merge(const WeightedState<T>& a, const WeightedState<T>& b) {
  return {merge(a.sum, b.sum), a.special + b.special};
}

// b e^x = b' e^(x') with a b' of moderate size: b = w 2^k, x' = x + k ln 2 as far as x has digits for it, and what is left of
// it goes to w. So the terms of all elements are relative to the largest b e^x, and none is lost or overflows for its weight.
template <class T>
SUMEXP_FN void move_exponent(T& x, T& b) {
  constexpr double moderate = sizeof(T) == 4 ? 0x1p64 : 0x1p256;
  const double size = static_cast<double>(b < T(0) ? -b : b);
  if ((size < moderate && size * moderate > 1.0) || !is_finite(x)) return;
  const double normal = size * 0x1p100;  // no subnormal number; above 2^600 not needed
  const std::uint64_t bits = bit_cast<std::uint64_t>(size > 0x1p600 ? size : normal);
  const std::int64_t k = static_cast<std::int64_t>(bits >> 52) - 1023 - (size > 0x1p600 ? 0 : 100);
  const double w = bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  const DD<double> shift = two_product(static_cast<double>(k), LogConstants::ln2_hi);
  const DD<double> sum = two_sum(static_cast<double>(x), shift.hi);
  x = static_cast<T>(sum.hi);
  const double rest = (sum.hi - static_cast<double>(x)) + (sum.lo + (shift.lo + static_cast<double>(k) * LogConstants::ln2_lo));
  const double n = nearest_integer(rest * ExpConstants<double>::log2e);
  const double left = exp_wide(remainder_wide(rest, n)) * pow2<double>(static_cast<std::int64_t>(n));
  b = static_cast<T>((b < T(0) ? -w : w) * left);
}

// One element before it is summed. A weight of 0 leaves it out, whatever it is; so does one that is not finite, which becomes
// what it gives to the sum (b e^x, infinite or NaN) and is to go to WeightedState::special.
template <class T>
SUMEXP_FN void weigh(T& x, T& b) {
  if (is_finite(b) && b != T(0)) return move_exponent(x, b);
  if (b != T(0)) b = b * (x == -Limits<T>::infinity ? T(0) : x == x ? T(1) : x);
  x = -Limits<T>::infinity;
}

// log |sum_j b_j e^(x_j)| and the sign of the sum. in: x, b. The weighted sum over its maximum term, c + R / e^m, may have any
// sign; log|.| of it is log1p near 1.
struct WeightedLogSumExp : WeightedOp {
  static constexpr bool kExact = true, kMask = true, kExtra = true;
  template <class T>
  using State = WeightedState<T>;
  template <class T>
  struct Row {
    T value, sign;
  };
  template <class T>
  static SUMEXP_FN Row<T> finish(const WeightedState<T>& state) {
    using O = WideOf<T>;
    const ExpState<T>& row = state.sum;
    if (is_nan(row.R) || is_nan(row.c) || is_nan(state.special)) return {Limits<T>::nan(), Limits<T>::nan()};
    if (state.special != 0.0 || row.m == Limits<T>::infinity) {
      const double c = row.m == Limits<T>::infinity ? head(row.c) : state.special;  // +inf, with the sign of its weights
      // inf - inf: weights of +inf that cancel, or that meet infinite ones of the other sign
      if (c == 0.0 || c * state.special < 0.0) return {Limits<T>::nan(), Limits<T>::nan()};
      return {Limits<T>::infinity, T(c > 0.0 ? 1 : -1)};
    }
    if (!is_finite(row.m)) return {row.m, T(0)};  // an empty sum
    const Wide<T> others = O::scaled(row.R / exp_wide(base_of(row.m).rho), kCarryDown<T>);
    const double sum = head(row.c + others);
    if (sum == 0.0) return {-Limits<T>::infinity, T(0)};
    const Wide<T> flip = O::constant(sum < 0.0 ? -1.0 : 1.0);
    const Wide<T> L = sum > -0.5 && sum < 0.5 ? log_of_small(flip * row.c + flip * others)
                                              : log1p_wide((flip * row.c + O::constant(-1)) + flip * others);
    return {plus_narrow(row.m, L), T(head(flip))};
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
    const Wide<T> S = total(row.sum);
    if (row.sum.m == -Limits<T>::infinity && !is_nan(S)) return {T(0)};
    if (is_nan(S) || !is_finite(row.sum.m) || is_nan(row.dot)) return {Limits<T>::nan()};
    return {quiet(quotient<T>(row.dot, S))};
  }
  // <s, t> of a sum S 2^carry with a finite maximum; NaN of a NaN
  template <class V>
  static SUMEXP_FN V quotient(const Wide<V>& dot, const Wide<V>& S) {
    return WideOf<V>::narrow(dot / WideOf<V>::scaled(S, kCarryDown<ElementOf<V>>));
  }
  template <class T>
  static SUMEXP_FN T emit(const Row<T>& row, T*) {
    return row.value;
  }
};

}  // namespace sumexp::SUMEXP_NS
