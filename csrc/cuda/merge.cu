// The instances of merge.cuh: the Finish of every operation, for both compute types.
#include "merge.cuh"

namespace sumexp::SUMEXP_NS {

#define SUMEXP_BOTH_TYPES(Finish, ...)             \
  template struct Merge<Finish<float, __VA_ARGS__>>; \
  template struct Merge<Finish<double, __VA_ARGS__>>

SUMEXP_BOTH_TYPES(LogitsFinish, SoftmaxBody);
SUMEXP_BOTH_TYPES(LogitsFinish, LogSoftmaxBody);
SUMEXP_BOTH_TYPES(LogitsFinish, LogSumExpBody);
SUMEXP_BOTH_TYPES(SumsFinish, 1, 1);
SUMEXP_BOTH_TYPES(SumsFinish, 2, 1);
SUMEXP_BOTH_TYPES(SumsFinish, 2, 2);
template struct Merge<WeightedLogSumExpFinish<float>>;
template struct Merge<WeightedLogSumExpFinish<double>>;
template struct Merge<LogSumExpJvpFinish<float>>;
template struct Merge<LogSumExpJvpFinish<double>>;

#undef SUMEXP_BOTH_TYPES

}  // namespace sumexp::SUMEXP_NS
