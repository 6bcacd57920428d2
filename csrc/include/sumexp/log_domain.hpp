// Functions of the log domain: elementwise ones, running sums of exponentials along an axis, means, and derivatives of sums
// with weights. Of the CPU. Arrays are described as in sumexp.hpp; all arrays of a call have one dtype. A result may be exactly
// one of the inputs of its own shape and strides, and is else apart from them.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

// Elementwise. in and out as listed, all of one shape (a stride of 0 broadcasts).
//   error   of the forward functions 2 ulp of the result, however close to 0 it is: but of double results below 2^-44 that are
//           the difference of larger numbers, 2^-96. Of the derivatives 2 ulp; of the JVPs 1 ulp (f64: 2) of the sum
//           of the two |terms|.
enum class LogDomain : std::int32_t {
  logaddexp = 0,      // a, b          -> log(e^a + e^b); both -inf: -inf
  logsubexp = 1,      // a, b          -> log(e^a - e^b); NaN where a < b or both are +inf, -inf where else a = b
  log1mexp = 2,       // x             -> log(1 - e^-|x|)
  softplus = 3,       // x             -> log(1 + e^x)
  logaddexp_vjp = 4,  // g, a, b       -> da, db: 0 where both are -inf, g / 2 each where they are equal otherwise
  logsubexp_vjp = 5,  // g, a, b       -> da, db: 0 where both are -inf
  log1mexp_vjp = 6,   // g, x          -> dx
  softplus_vjp = 7,   // g, x          -> dx
  logaddexp_jvp = 8,  // ta, tb, a, b  -> the derivative along (ta, tb)
  logsubexp_jvp = 9,  // ta, tb, a, b  -> the derivative along (ta, tb)
};
inline constexpr int kLogDomainOps = 10, kLogDomainInputs = 4, kLogDomainOutputs = 2;
struct LogDomainArity {
  int inputs, outputs;
};
SUMEXP_API LogDomainArity arity(LogDomain op) noexcept;

SUMEXP_API Status elementwise(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in,
                              const View* out) noexcept;

// Along one axis, 0 .. ndim - 1. y_i = log sum_{j <= i} e^(x_j); reverse: j >= i; exclusive: j < i (j > i), -inf for none.
struct Running {
  DType dtype = DType::f32;
  int ndim = 0;
  const std::int64_t* shape = nullptr;
  int axis = 0;
  bool reverse = false, exclusive = false;
};
SUMEXP_API Status logcumsumexp(const Running& call, View x, View out) noexcept;
// dx_j = sum_i g_i e^(x_j - y_i) over the i whose sums have x_j; 0 where x_j is -inf.
SUMEXP_API Status logcumsumexp_vjp(const Running& call, View g, View x, View out) noexcept;
// dy_i = sum_j t_j e^(x_j - y_i) over the j in its sum; 0 where y_i is -inf.
SUMEXP_API Status logcumsumexp_jvp(const Running& call, View t, View x, View out) noexcept;

// Over the last axis, of rows: S = sum_j b_j e^(x_j). A `b` without data is 1 everywhere. Row results, and g, are of the shape
// without the last dimension; those without data are not written.
struct WeightedRows {
  DType dtype = DType::f32;
  int ndim = 1;  // >= 1
  const std::int64_t* shape = nullptr;
  View x, b;
};
// value = log(|S| / count), rounded once; sign = -1, 0, 1 or NaN. count (row): how many elements the mean is over, of the dtype
// double whatever the others'; without data, all of the row.
SUMEXP_API Status logmeanexp(const WeightedRows& rows, View count, View value, View sign) noexcept;
// dx_j = g b_j e^(x_j) / S, db_j = g e^(x_j) / S
SUMEXP_API Status weighted_logsumexp_vjp(const WeightedRows& rows, View g, View dx, View db) noexcept;
// sum_j (t_j b_j + tb_j) e^(x_j) / S; without data, t or tb is 0
SUMEXP_API Status weighted_logsumexp_jvp(const WeightedRows& rows, View t, View tb, View out) noexcept;

}  // namespace sumexp
