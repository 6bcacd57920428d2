#define SUMEXP_FLATTEN
#include SUMEXP_SIMD
//
#include "sums.hpp"
#include "instances.hpp"

namespace sumexp::SUMEXP_NS {

#define SUMEXP_DEFINE_Logits SUMEXP_ELSEWHERE
#define SUMEXP_DEFINE_Weighted SUMEXP_ELSEWHERE
#define SUMEXP_DEFINE_Sums SUMEXP_ELSEWHERE
#undef SUMEXP_DEFINE_Sums
#define SUMEXP_DEFINE_Sums(Op) SUMEXP_INSTANCES(Op, sums_kernel)
#define SUMEXP_DEFINE(name, Op, Family) SUMEXP_DEFINE_##Family(Op)
SUMEXP_OPERATIONS(SUMEXP_DEFINE)

}  // namespace sumexp::SUMEXP_NS
