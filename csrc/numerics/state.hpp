// The state of a sum of exponentials: what a chunk, a block, a piece of a stream or a whole row is
// reduced to, and how two of them merge.
//
//   S = sum_j e^(x_j) = 2^N ( c e^rho + R 2^-carry ),    N = rint(m log2 e),  rho = m - N ln 2
//
// m is the maximum, c how many elements equal it (a sum of weights with logsumexp's b), R all the other
// terms. Because the maximum is not in R, log(S) - m = log1p((c - 1) + R 2^-carry / e^rho) is exact near
// 0, where c + R would have rounded R away. softmax does not need that and counts the maximum in R (c = 0).
// Rescaling to another maximum is a change of N, a power of two: exact.
#pragma once

#include "log.hpp"

namespace sumexp::SUMEXP_NS {

template <class T>
struct ExpState {
  T m;  // never NaN: a NaN anywhere is in R
  std::int64_t N;
  Wide<T> c, R;

  SUMEXP_FN static ExpState empty() { return {-Limits<T>::infinity, 0, WideOf<T>::constant(0), WideOf<T>::constant(0)}; }
};

// A finite maximum as base: how to reduce the chunk's elements, and what its terms are relative to.
template <class T>
struct Base {
  T anchor;  // subtracted from every element first: 0, or m when m is large (then exact)
  Reduction<T> reduce;
  std::int64_t N;
  Wide<T> rho;  // m - N ln 2
};

template <class T>
SUMEXP_FN Base<T> base_of(T m) {
  using F = Format<T>;
  using O = WideOf<T>;
  if (m < F::direct && m > -F::direct) {
    const T N = exponent_of(m);
    return {T(0), reduction_to(N), static_cast<std::int64_t>(N), remainder_wide(O::from(m), O::from(N))};
  }
  const Reduction<T> reduce = reduction_to(T(0));
  if (m >= F::isolated || m <= -F::isolated) return {m, reduce, 0, O::constant(0)};
  // m = (N1 + n2) ln 2 + rho. N1 is even, which keeps nearest_integer within its range up to 2^52; beyond, it may
  // be off by some units, which n2 takes.
  const double N1 = 2.0 * nearest_integer(0.5 * static_cast<double>(m) * ExpConstants<double>::log2e);
  const Wide<T> rest = remainder_wide(O::from(m), O::constant(N1));
  const double n2 = nearest_integer(head(rest) * ExpConstants<double>::log2e);
  const Wide<T> rho = rest + O::constant(-n2 * LogConstants::ln2_hi) + O::constant(-n2 * LogConstants::ln2_lo);
  return {m, reduce, static_cast<std::int64_t>(N1) + static_cast<std::int64_t>(n2), rho};
}

// Terms of an anchored chunk are relative to e^m; this factor makes them relative to 2^N.
template <class T>
SUMEXP_FN Wide<T> anchor_factor(const Base<T>& base) {
  return base.anchor == T(0) ? WideOf<T>::constant(1) : exp_wide(base.rho);
}

// 2^e = (base of `lower`) / (base of `upper`), m_lower <= m_upper; far below, -infinity is this:
inline constexpr std::int64_t kFarBelow = -100000;

template <class T>
SUMEXP_FN std::int64_t exponent_gap(T m_lower, std::int64_t N_lower, T m_upper, std::int64_t N_upper) {
  if (m_lower == m_upper) return 0;
  const T limit = Format<T>::isolated;
  const bool near = m_lower < limit && m_lower > -limit && m_upper < limit && m_upper > -limit;
  const std::int64_t gap = N_lower - N_upper;
  return near && gap > kFarBelow ? gap : kFarBelow;
}

template <class T>
inline constexpr double kCarryUp = sizeof(T) == 4 ? 0x1p72 : 0x1p300;
template <class T>
inline constexpr double kCarryDown = sizeof(T) == 4 ? 0x1p-72 : 0x1p-300;

// w 2^gap, in two steps so that no factor underflows where the product does not.
template <class T>
SUMEXP_FN Wide<T> shifted(Wide<T> w, std::int64_t gap) {
  gap = gap < -2040 ? -2040 : gap;
  const std::int64_t half = gap / 2;
  return WideOf<T>::scaled(WideOf<T>::scaled(w, pow2<double>(half)), pow2<double>(gap - half));
}

// S 2^(carry - N): all terms, the maximum included
template <class T>
SUMEXP_FN Wide<T> total(const ExpState<T>& a) {
  using O = WideOf<T>;
  if (head(a.c) == 0.0 || !is_finite(a.m)) return a.R;
  return a.R + O::scaled(a.c * exp_wide(base_of(a.m).rho), kCarryUp<T>);
}

// A chunk whose other terms are all far below its maximum would leave them to the low part of TermSum: they
// are summed once more, relative to the largest of them. (Not for R = 0, nor for NaN.)
template <class T>
SUMEXP_FN bool needs_refinement(const ExpState<T>& chunk) {
  return head(chunk.R) > 0.0 && head(chunk.R) < kCarryUp<T> * 0x1p-8;
}

// a or b, member by member: a GPU keeps states in registers, which have no address to choose.
template <class T>
SUMEXP_FN ExpState<T> pick(bool mask, const ExpState<T>& a, const ExpState<T>& b) {
  return {mask ? a.m : b.m, mask ? a.N : b.N, pick(mask, a.c, b.c), pick(mask, a.R, b.R)};
}

template <class T>
SUMEXP_MERGE_FN ExpState<T> merge(const ExpState<T>& a, const ExpState<T>& b) {
  const bool a_upper = a.m >= b.m;
  const ExpState<T> upper = pick(a_upper, a, b), lower = pick(a_upper, b, a);
  if (a.m == b.m) return {a.m, a.N, a.c + b.c, a.R + b.R};
  const std::int64_t gap = exponent_gap(lower.m, lower.N, upper.m, upper.N);
  return {upper.m, upper.N, upper.c, upper.R + shifted<T>(total(lower), gap)};
}

// The sum and a weighted sum, relative to the same power of two; but the latter without the carry, which would take large
// factors past the largest number.
template <class T>
struct ExpDotState {
  ExpState<T> sum;
  Wide<T> dot;

  SUMEXP_FN static ExpDotState empty() { return {ExpState<T>::empty(), WideOf<T>::constant(0)}; }
};

template <class T>
SUMEXP_MERGE_FN ExpDotState<T> merge(const ExpDotState<T>& a, const ExpDotState<T>& b) {
  const bool a_upper = a.sum.m >= b.sum.m;
  const ExpState<T> upper = pick(a_upper, a.sum, b.sum), lower = pick(a_upper, b.sum, a.sum);
  const std::int64_t gap = exponent_gap(lower.m, lower.N, upper.m, upper.N);
  return {merge(a.sum, b.sum), pick(a_upper, a.dot, b.dot) + shifted<T>(pick(a_upper, b.dot, a.dot), gap)};
}

// R 2^-carry / e^rho: S / e^m without the maxima, for a finite m; V a T or a vector of rows
template <class V>
SUMEXP_FN Wide<V> others_over_max(Wide<V> R, Wide<V> rho) {
  return WideOf<V>::scaled(R / exp_wide(rho), kCarryDown<ElementOf<V>>);
}
// log(S) - m = log1p((c - 1) + R 2^-carry / e^rho)
template <class V>
SUMEXP_FN Wide<V> log_over_max(Wide<V> c, Wide<V> R, Wide<V> rho) {
  return log1p_wide((c + WideOf<V>::constant(-1)) + others_over_max<V>(R, rho));
}
template <class T>
SUMEXP_FN Wide<T> log_over_max(const ExpState<T>& a) {
  return log_over_max<T>(a.c, a.R, base_of(a.m).rho);
}

}  // namespace sumexp::SUMEXP_NS
