// A sum of exponentials that elements and other sums are added to one after the other: logcumsumexp, its derivatives, and sums
// with weights and counts. Whatever the arrays' dtype, it is a pair of doubles times a power of two.
//
//   y_i  = log sum_{j <= i} e^(x_j)
//   VJP    dx_j = sum_{i >= j} g_i e^(x_j - y_i) = (e^(x_j) 2^-N_j) H_j,  H_j = g_j / s_j + 2^(N_j - N_(j+1)) H_(j+1)
//   JVP    dy_i = sum_{j <= i} t_j e^(x_j - y_i) = D_i / s_i,             D_i = 2^(N_(i-1) - N_i) D_(i-1) + t_i e^(x_i) 2^-N_i
//
// with sum_{j <= i} e^(x_j) = 2^N_i s_i and N_i the exponent of the largest x so far: 2^N_i / s_i and e^(x_j) 2^-N_j are below
// 1.42, and every change of base is a power of two, exact. So nothing overflows, and nothing is added up but the terms of the
// results themselves.
#pragma once

#include "../numerics/log_domain.hpp"
#include "logsumexp.hpp"

namespace sumexp::SUMEXP_NS {

struct RunningSum {  // 2^N s
  double m;          // the largest element; N is that of base_of(m)
  std::int64_t N;
  DD<double> s;

  SUMEXP_FN static RunningSum empty() { return {-Limits<double>::infinity, 0, {0.0, 0.0}}; }
};

// e^rho in pairs, within 2^-59
template <class D>
SUMEXP_FN DD<D> exp_of_remainder(DD<D> rho) {
  const DD<D> p = Working<DD<D>>::expm1(rho), sum = fast_two_sum(D(1.0), p.hi);
  return fast_two_sum(sum.hi, sum.lo + p.lo);
}

// e^x. Of +inf a sum of its own; of NaN one that makes every other NaN.
SUMEXP_FN RunningSum element_sum(double x) {
  if (x != x) return {-Limits<double>::infinity, 0, {x, 0.0}};
  if (x == -Limits<double>::infinity) return RunningSum::empty();
  if (x == Limits<double>::infinity) return {x, 0, {1.0, 0.0}};
  const Base<double> base = base_of(x);
  return {x, base.N, exp_of_remainder(base.rho)};
}

// w relative to 2^N of m from relative to 2^from_N of from_m <= m
SUMEXP_FN DD<double> rebased(DD<double> w, double from_m, std::int64_t from_N, double m, std::int64_t N) {
  const std::int64_t gap = exponent_gap(from_m, from_N, m, N);
  if (gap == 0) return w;
  // 0, with its sign, which CPUs take some 150 cycles for when it comes of a product
  if (gap < -1180 && absolute(w.hi) < 0x1p100) return {w.hi * 0.0, w.lo * 0.0};
  return shifted<double>(w, gap);
}

SUMEXP_FN RunningSum join_below(const RunningSum& up, const RunningSum& low) {
  return {up.m, up.N, up.s + rebased(low.s, low.m, low.N, up.m, up.N)};
}
// By calls, not by references that are chosen: a GPU keeps sums in registers, which have no address to choose.
SUMEXP_FN RunningSum join(const RunningSum& a, const RunningSum& b) { return a.m >= b.m ? join_below(a, b) : join_below(b, a); }

// log(|sum| / count)
SUMEXP_FN double log_of(const RunningSum& a, double count = 1.0) {
  if (is_nan(a.s)) return Limits<double>::nan();
  if (!is_finite(a.m)) return a.m;
  DD<double> z = a.s / exp_of_remainder(base_of(a.m).rho);
  if (count != 1.0) z = z / DD<double>{count, 0.0};
  if (z.hi == 0.0) return -Limits<double>::infinity;
  if (z.hi < 0.0) z = {-z.hi, -z.lo};
  const DD<double> L = z.hi < 0.5 ? log_of_small(z) : log1p_wide(z + DD<double>{-1.0, 0.0});
  return plus_narrow(a.m, L);
}

}  // namespace sumexp::SUMEXP_NS
