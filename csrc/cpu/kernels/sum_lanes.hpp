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

// The last sum alone (kWinnersApart), as it is where no element wins; look(y) sees each y.
template <class V, class Op, bool kAhead = false, class E, class Look>
SUMEXP_FN void usual_lanes(const E* const* in, int count, LaneGroup<V>& sum, Look look, std::int64_t ahead = 0) {
  lane_sweep<V, 1>(count, reinterpret_cast<LaneGroup<V>(&)[1]>(sum), [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
    look(v[Op::kLog]);
    acc[0] = Op::usual(acc[0], v);
  });
}

// All sums of one pass. False where there are none but the last (kWinnersApart).
template <class V, class Op, int pass, bool kAhead = false, class E>
SUMEXP_FN bool sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars, LaneGroup<V> (&sums)[Op::kSums],
                         std::int64_t ahead = 0) {
  if constexpr (Op::kWinnersApart) {
    bool winners = false;
    const auto look = [&](V y) SUMEXP_INLINE {
      if (any(wins(y))) winners = true;
    };
    usual_lanes<V, Op, kAhead>(in, count, sums[Op::kSums - 1], look, ahead);
    if (!winners) return false;
  }
  if constexpr (Op::kExponentials) {
    // Of long rows; of short ones the branch would be guessed wrong as often as it saves something.
    if (count >= Geometry<ElementOf<V>>::kLanes) {
      lane_loop<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        V v[Op::kInputs];
        load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
        add_any<Op, pass>(acc, v, scalars);
      });
      return true;
    }
  }
  lane_sweep<V, Op::kSums, Op::kExponentials>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load_inputs<V, Op, kAhead>(in, i, memory, v, ahead);
    Op::template add<pass>(acc, v, scalars);
  });
  return true;
}

}  // namespace sumexp::SUMEXP_NS
