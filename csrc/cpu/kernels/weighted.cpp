#include SUMEXP_SIMD
//
#include "weighted.hpp"
#include "instances.hpp"

namespace sumexp::SUMEXP_NS {

#define SUMEXP_DEFINE_Logits SUMEXP_ELSEWHERE
#define SUMEXP_DEFINE_Weighted SUMEXP_ELSEWHERE
#define SUMEXP_DEFINE_Sums SUMEXP_ELSEWHERE
#undef SUMEXP_DEFINE_Weighted
#define SUMEXP_DEFINE_Weighted(Op) SUMEXP_INSTANCES(Op, weighted_kernel)
#define SUMEXP_DEFINE(name, Op, Family) SUMEXP_DEFINE_##Family(Op)
SUMEXP_OPERATIONS(SUMEXP_DEFINE)

}  // namespace sumexp::SUMEXP_NS
