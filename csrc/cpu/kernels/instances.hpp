// The kernels of every op and dtype: InstancesOf<Op>::by_dtype, defined in the file of the op's family from the table in
// ops/table.hpp.
#pragma once

#include "../../ops/table.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

template <class Op>
struct InstancesOf {
  static const cpu::Kernel by_dtype[4];
};
#define SUMEXP_DECLARE(name, Op, Family) \
  template <>                            \
  const cpu::Kernel InstancesOf<Op>::by_dtype[4];
SUMEXP_OPERATIONS(SUMEXP_DECLARE)
#undef SUMEXP_DECLARE

// An op's definition, where make<V, S, Op>() makes a Kernel.
#define SUMEXP_INSTANCES(Op, make)                                                                                       \
  template <>                                                                                                            \
  const cpu::Kernel InstancesOf<Op>::by_dtype[4] = {make<F32, f16, Op>(), make<F32, bf16, Op>(), make<F32, float, Op>(), \
                                                    make<F64, double, Op>()};
// Of the other families, in the file of one.
#define SUMEXP_ELSEWHERE(Op)

}  // namespace sumexp::SUMEXP_NS
