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

// The sums of one pass over a chunk, each to one group of lanes. kAhead: what lies `ahead` elements on is prefetched. False
// where there are none but the last (kWinnersApart).
template <class V, class Op, int pass, bool kAhead = false, class E>
SUMEXP_FN bool sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars,
                         V (&sums)[Op::kSums][Geometry<ElementOf<V>>::kGroup / V::W], std::int64_t ahead = 0) {
  const auto load = [&](V* v, int i, auto memory) SUMEXP_INLINE {
#pragma GCC unroll 3
    for (int k = 0; k < Op::kInputs; ++k) {
      v[k] = memory.template load<V>(in[k] + i, absent<V, Op>(k));
      if (kAhead) __builtin_prefetch(in[k] + i + ahead, 0, 2);
    }
  };
  if constexpr (Op::kWinnersApart) {
    V(&last)
    [1][Geometry<ElementOf<V>>::kGroup / V::W] =
        reinterpret_cast<V(&)[1][Geometry<ElementOf<V>>::kGroup / V::W]>(sums[Op::kSums - 1]);
    bool winners = false;
    lane_sweep<V, 1>(count, last, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
      V v[Op::kInputs];
      load(v, i, memory);
      if (any(wins(v[Op::kLog]))) winners = true;
      acc[0] = Op::usual(acc[0], v);
    });
    if (!winners) return false;
  }
  if constexpr (Op::kExponentials) {
    // Of long rows; of short ones the branch would be guessed wrong as often as it saves something.
    if (count >= Geometry<ElementOf<V>>::kLanes) {
      lane_loop<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        V v[Op::kInputs];
        load(v, i, memory);
        add_any<Op, pass>(acc, v, scalars);
      });
      return true;
    }
  }
  lane_sweep<V, Op::kSums, Op::kExponentials>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
    load(v, i, memory);
    Op::template add<pass>(acc, v, scalars);
  });
  return true;
}

}  // namespace sumexp::SUMEXP_NS
