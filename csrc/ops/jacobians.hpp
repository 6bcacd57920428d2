// The explicit K x K matrices, one row at a time, for those who ask for them by name:
//
//   softmax      J_ij = y_i (delta_ij - y_j) = diag(y) - y y^T      also the Hessian of logsumexp
//   log_softmax  J_ij = delta_ij - s_j,  s = e^y
#pragma once

#include "sums.hpp"

namespace sumexp::SUMEXP_NS {

// How far a probability above this is from 1 is said better by the others: 1 - y would have the rounding of y alone.
template <class T>
inline constexpr T kWinner = T(0.5625);

// The sum of all probabilities but a winner's.
template <class T>
SUMEXP_FN T sum_of_others(const T* y, std::int64_t n) {
  Wide<T> sum = WideOf<T>::constant(0);
  for (std::int64_t j = 0; j < n; ++j)
    if (!(y[j] >= kWinner<T>)) sum = sum + WideOf<T>::from(y[j]);
  return static_cast<T>(head(sum));
}
template <class T>
SUMEXP_FN T softmax_jacobian(T y_i, T y_j, T others, bool diagonal) {
  return diagonal ? y_i * (y_i >= kWinner<T> ? others : T(1) - y_i) : T(0) - y_i * y_j;
}
template <class T>
SUMEXP_FN T log_softmax_jacobian(T y_j, bool diagonal) {
  const Probability<T> s = probability_of_log(y_j);
  return diagonal ? s.rest : T(0) - s.value;
}

}  // namespace sumexp::SUMEXP_NS
