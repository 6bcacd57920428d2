// How an operation is described, once, for every machine. Each op is a struct in the file of its function, forward beside
// derivatives; its row in table.hpp gives it a number and a name. Adapters make the kernels of it: csrc/cpu/kernels for rows,
// panels and tiles, csrc/cuda for warps.
//
// Every op has
//   kInputs, kRowInput    elementwise inputs; the index of the input with one value a row, or -1
//   kRowOutput            the result is one value a row, not one an element
//   kExtra                there is a second result, one value a row
//   kTemperature          what a temperature T does: divides x (kOfLogits), or multiplies the result by 1 / T^k (k > 0)
//   kMask                 takes a mask
//
// and is of one of three families.
//
// LogitsOp: starts from logits x, which are reduced to the state of their sum of exponentials.
//   kApart                the maximum is kept out of the sum, for logarithms and for what the others are when it has nearly
//                         all; else it is in it, for probabilities
//   kProbability          map starts from the probability of an element; else from the logit
//   Row<V>                what a finished row holds: nothing but V, which is a row's number or a vector of rows' numbers
//   finish(sum, input)    the Row from the row's RowSum and its row input
//   map(v, row)           one element of the result; of rows with a NaN or +inf, or nothing above -inf, all are NaN
//   emit(row), special(m, nan)    or one value a row; special: where a NaN is in the row, or its maximum m is not finite
//   kZeroOfNothing        of rows with nothing above -inf the probabilities that map starts from are 0 instead, and the row
//                         is one like others
//   kIndex                the row input is the index of an element, a std::int64_t: finish gets that logit for it
//   at_index(row)         of ops with kIndex and map: what the result is at the index, in place of map's
//   extra(row)            of ops with kExtra: the second result; NaN where map's are
//
// WeightedOp: one value a row from logits x, in[0], and factors f, in[1]: sums of e^(x_j) f_j.
//   kExact                products and their sums in the wide type, for factors that cancel; the maxima's factors are summed
//                         apart (c), the others' terms in R. Else in T, relative to the sum of e^(x_j).
//   finish(state)         as above, for numbers only
//   emit(row, extra)      the result, and, if there is a place, the second one
//
// SumsOp (sums.hpp): starts from saved outputs; kSums plain sums over the row in each of kPasses readings, then a map.
#pragma once

#include "../numerics/state.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr int kNoTemperature = 0, kOfLogits = -1;

struct LogitsOp {
  static constexpr int kInputs = 1, kRowInput = -1, kPasses = 1, kTemperature = kNoTemperature;
  static constexpr bool kRowOutput = false, kMask = false, kLogits = true, kIndex = false, kExtra = false;
  static constexpr bool kZeroOfNothing = false;
};
struct WeightedOp {
  static constexpr int kInputs = 2, kRowInput = -1, kPasses = 1, kTemperature = kNoTemperature;
  static constexpr bool kRowOutput = true, kMask = false, kLogits = true, kProbability = false;
  static constexpr bool kApart = false, kIndex = false, kExtra = false;
};

// The sum of a row, S = 2^N (c e^rho + R 2^-carry) as in numerics/state.hpp, with a finite maximum m. V: float or double, or a
// vector with one row a lane.
template <class V>
struct RowSum {
  V m;
  Wide<V> c, R, rho;
};
template <class T>
SUMEXP_FN RowSum<T> row_sum(const ExpState<T>& state) {
  return {state.m, state.c, state.R, base_of(state.m).rho};
}

// Whether a row of this sum, an ExpState or a RowSum of numbers, is a special one.
template <class Op, class Sum>
SUMEXP_FN bool is_special(const Sum& sum) {
  using T = decltype(sum.m + sum.m);
  return is_nan(sum.R) || !(is_finite(sum.m) || (Op::kZeroOfNothing && sum.m == -Limits<T>::infinity));
}

// S 2^(carry - N): all terms, the maximum included
template <class V>
SUMEXP_FN Wide<V> total(const RowSum<V>& sum) {
  using O = WideOf<V>;
  return sum.R + O::scaled(sum.c * exp_wide(sum.rho), kCarryUp<ElementOf<V>>);
}
// S / e^m without the maxima, which are c of it
template <class V>
SUMEXP_FN Wide<V> others_over_max(const RowSum<V>& sum) {
  return others_over_max<V>(sum.R, sum.rho);
}
// log S - m
template <class V>
SUMEXP_FN Wide<V> log_over_max(const RowSum<V>& sum) {
  return log_over_max<V>(sum.c, sum.R, sum.rho);
}

}  // namespace sumexp::SUMEXP_NS
