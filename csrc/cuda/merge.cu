// The instances of merge.cuh: the Finish of every op, for both compute types. A table, since ops may share one: each entry
// makes an instance where there is none yet.
#include "merge.cuh"

namespace sumexp::SUMEXP_NS {

using MergeRun = cudaError_t (*)(const Job&, int, void*, cudaStream_t);
extern const MergeRun kMerges[];

#define SUMEXP_BOTH_TYPES(name, Op, Family) \
  Merge<Family##Of<float, Op>::Finish>::run, Merge<Family##Of<double, Op>::Finish>::run,
const MergeRun kMerges[] = {SUMEXP_OPERATIONS(SUMEXP_BOTH_TYPES)};

}  // namespace sumexp::SUMEXP_NS
