// The sums of an op of ops/sums.hpp over a chunk.
#pragma once

#include "../../ops/sums.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

// The sums of one pass over a chunk, each to one group of lanes.
template <class V, class Op, int pass, class E>
SUMEXP_FN void sum_lanes(const E* const* in, int count, const RowScalars<V>& scalars,
                         V (&sums)[Op::kSums][Geometry<ElementOf<V>>::kGroup / V::W]) {
  lane_sweep<V, Op::kSums>(count, sums, [&](V* acc, int i, auto memory) {
    V v[Op::kInputs];
#pragma GCC unroll 3
    for (int k = 0; k < Op::kInputs; ++k) v[k] = memory.template load<V>(in[k] + i, ElementOf<V>(0));
    Op::template add<pass>(acc, v, scalars);
  });
}

}  // namespace sumexp::SUMEXP_NS
