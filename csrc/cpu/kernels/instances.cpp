// The table of one instruction set: cpu::kernels_<isa>().
#include SUMEXP_SIMD
//
#include "instances.hpp"
#include "moves.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

const cpu::Moves kMoves[4] = {moves_of<F32, f16>(), moves_of<F32, bf16>(), moves_of<F32, float>(), moves_of<F64, double>()};

#define SUMEXP_FOUR(name, Op, Family) \
  {&InstancesOf<Op>::by_dtype[0], &InstancesOf<Op>::by_dtype[1], &InstancesOf<Op>::by_dtype[2], &InstancesOf<Op>::by_dtype[3]},
const cpu::Kernels kKernels = {{&kMoves[0], &kMoves[1], &kMoves[2], &kMoves[3]}, {SUMEXP_OPERATIONS(SUMEXP_FOUR)}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(Kernels, kernels_, SUMEXP_NS::kKernels)
