// The sums of an op of ops/sums.hpp over a chunk.
#pragma once

#include "../../ops/sums.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// What an input of an element that is not there counts as.
template <class V, class Op>
SUMEXP_FN constexpr ElementOf<V> absent(int k) {
  return k == Op::kLog ? -Limits<ElementOf<V>>::infinity : ElementOf<V>(0);
}

// add, or add_usual where that does. A branch, guessed right where winners are rare.
template <class Op, int pass, class V>
SUMEXP_FN void add_any(V* acc, const V* in, const RowScalars<V>& scalars) {
  if constexpr (Op::kExponentials)
    if (!any(wins(in[Op::kLog]))) return Op::add_usual(acc, in);
  Op::template add<pass>(acc, in, scalars);
}

// The vectors of all inputs at element i. kAhead: what lies `ahead` elements on is prefetched.
template <class V, class Op, bool kAhead = false, class E, class Memory>
SUMEXP_FN void load_inputs(const E* const* in, int i, Memory memory, V* v, std::int64_t ahead = 0) {
#pragma GCC unroll 3
  for (int k = 0; k < Op::kInputs; ++k) {
    v[k] = memory.template load<V>(in[k] + i, absent<V, Op>(k));
    if (kAhead) __builtin_prefetch(in[k] + i + ahead, 0, 2);
  }
}

// One group of lanes, in vectors: what a sum over a chunk comes to.
template <class V>
using LaneGroup = V[Geometry<ElementOf<V>>::kGroup / V::W];

// The second sum alone (kWinnersApart), as it is where no element wins; see(y) gets each y.
template <class V, class Op, class E, class See>
SUMEXP_FN void usual_lanes(const E* const* in, int count, LaneGroup<V>& sum, See see) {
  lane_sweep<V, 1>(count, reinterpret_cast<LaneGroup<V>(&)[1]>(sum), [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load_inputs<V, Op>(in, i, memory, v);
    see(v[Op::kLog]);
    acc[0] = Op::usual(acc[0], v);
  });
}

// The second sum and what is left of an element beside winners.
template <class Op, class V, class Mask>
SUMEXP_FN V add_left(V sum, Mask winner, const V* in) {
  V left[Op::kInputs];
#pragma GCC unroll 3
  for (int k = 0; k < Op::kInputs; ++k) left[k] = clear(winner, in[k]);
  return Op::usual(sum, left);
}

// What the first sum (kWinnersApart) comes to where no row has several winners, and their y; 0 where there is none. Of a row in
// several lanes, in one of them, beside 0.
template <class V>
struct SumsWinner {
  V own = V(ElementOf<V>(0)), y = own;

  // Adds to the second sum what is left of an element. Returns which lanes win.
  template <class Op>
  SUMEXP_FN auto add(V& sum, const V* in) {
    const auto winner = wins(in[Op::kLog]);
    sum = add_left<Op>(sum, winner, in);
    own = pick(winner, in[0], own);
    y = pick(winner, in[Op::kLog], y);
    return winner;
  }
};
// ... and the second sum. How many winners there are.
template <class V, class Op, bool kAhead = false, class E>
SUMEXP_FN int winner_lanes(const E* const* in, int count, SumsWinner<V>& winner, LaneGroup<V>& sum, std::int64_t ahead = 0) {
  int winners = 0;
  lane_sweep<V, 1>(count, reinterpret_cast<LaneGroup<V>(&)[1]>(sum), [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
    winners += ::sumexp::SUMEXP_NS::count(winner.template add<Op>(acc[0], v));
  });
  return winners;
}

// All sums of one pass.
template <class V, class Op, int pass, bool kAhead = false, class E>
SUMEXP_FN void sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars, LaneGroup<V> (&sums)[Op::kSums],
                         std::int64_t ahead = 0) {
  if constexpr (Op::kExponentials || Op::kWinnersApart) {
    // Of exponentials in long rows, as in short ones the branch would be guessed wrong as often as it saves something; and of
    // rows with several winners, which are rare.
    if (Op::kWinnersApart || count >= Geometry<ElementOf<V>>::kLanes) {
      lane_loop<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        V v[Op::kInputs];
        load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
        add_any<Op, pass>(acc, v, scalars);
      });
      return;
    }
  }
  lane_sweep<V, Op::kSums, Op::kExponentials>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
    Op::template add<pass>(acc, v, scalars);
  });
}

}  // namespace sumexp::SUMEXP_NS
