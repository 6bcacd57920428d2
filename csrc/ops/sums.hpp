// Operations that are plain sums over a row followed by a map: the derivatives that start from a saved
// output y. An op names its inputs in order and gives two functions on values (V: float, double or a
// vector of them):
//
//   kPasses, kSums            how often the row is read for sums, and how many each time
//   add<pass>(acc, in, row)   adds one element's contributions to acc[0 .. kSums)
//   map(in, row)              one element of the result, before the temperature factor
//   kLog                      the input of log-probabilities y, or -1: y of no element is -inf
//   kExponentials             add takes an e^y: much arithmetic, of which there is less where no element wins:
//   add_usual(acc, in)        add, then
//   kMapAdds                  map does no more than add, so that the next row is prefetched under the sums
//   kWinnersApart             the first of two sums is of winners (wins(y)) alone. A row of log-probabilities has one or none:
//   usual(sum, in)            what add makes of the second sum for any other element; all of `in` is 0 for a winner
//   prepare(row)              what map makes of the row's sums alone is made once, at free places among them; and
//   prepare_winner(row, y)    the result at the row's one winner, from its part of the first sum, in[0] of it, and its y
//   map_usual(in, row)        then map of an element that does not win,
//   map_winner(in, row)       of any element of a row with one winner at most,
//   map_any(in, row)          of any element
//
// Sums are carried out in the order of numerics/geometry.hpp and reach `row` as (h, l) pairs: those of
// pass 0 at 0 .. kSums-1, those of pass 1 after them.
#pragma once

#include "../numerics/exp.hpp"

namespace sumexp::SUMEXP_NS {

struct SumsOp {
  static constexpr int kRowInput = -1, kTemperature = 1;
  static constexpr bool kRowOutput = false, kMask = false, kLogits = false, kProbability = false;
  static constexpr bool kApart = false, kIndex = false, kExtra = false;
  static constexpr int kLog = -1;
  static constexpr bool kExponentials = false, kMapAdds = false, kWinnersApart = false;
};

// An element with a probability e^y of 0.57 or more, next to which 1 - e^y and sums of the others keep their digits
// (log_softmax.hpp)
template <class V>
SUMEXP_FN auto wins(V y) {
  return at_or_above(y, V(ElementOf<V>(-0.5625)));
}

template <class V>
struct RowScalars {
  static constexpr int kMax = 4;
  V h[kMax], l[kMax];

  SUMEXP_FN V minus(int k, V x) const { return (x - h[k]) - l[k]; }       // x - sum_k
  SUMEXP_FN V plus(int k, V x) const { return (x + h[k]) + l[k]; }        // x + sum_k
  SUMEXP_FN V times(int k, V x) const { return fma(x, h[k], x * l[k]); }  // x * sum_k
};

}  // namespace sumexp::SUMEXP_NS
