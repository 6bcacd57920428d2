// The explicit K x K matrices, one row at a time, for those who ask for them by name:
//
//   softmax      J_ij = y_i (delta_ij - y_j) = diag(y) - y y^T      also the Hessian of logsumexp
//   log_softmax  J_ij = delta_ij - s_j,  s = e^y
#pragma once

#include "sums.hpp"

namespace sumexp::SUMEXP_NS {

template <class T>
SUMEXP_FN T softmax_jacobian(T y_i, T y_j, bool diagonal) {
  return diagonal ? fma(T(0) - y_i, y_i, y_i) : T(0) - y_i * y_j;
}
template <class T>
SUMEXP_FN T log_softmax_jacobian(T s_j, bool diagonal) {
  return diagonal ? T(1) - s_j : T(0) - s_j;
}

}  // namespace sumexp::SUMEXP_NS
