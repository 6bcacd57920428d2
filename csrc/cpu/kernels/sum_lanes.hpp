// The sums of an op of ops/sums.hpp over a chunk.
#pragma once

#include "../../ops/sums.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// The sums of one pass over a chunk, each to one group of lanes. kAhead: what lies `ahead` elements on is prefetched.
template <class V, class Op, int pass, bool kAhead = false, class E>
SUMEXP_FN void sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars,
                         V (&sums)[Op::kSums][Geometry<ElementOf<V>>::kGroup / V::W], std::int64_t ahead = 0) {
  lane_sweep<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    V v[Op::kInputs];
#pragma GCC unroll 3
    for (int k = 0; k < Op::kInputs; ++k) {
      v[k] = memory.template load<V>(in[k] + i, ElementOf<V>(0));
      if (kAhead) __builtin_prefetch(in[k] + i + ahead, 0, 2);
    }
    Op::template add<pass>(acc, v, scalars);
  });
}

}  // namespace sumexp::SUMEXP_NS
