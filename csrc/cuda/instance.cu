// One operation on one storage type, named by the build: SUMEXP_CUDA_OP, SUMEXP_CUDA_TYPE.
#include "run.cuh"

namespace sumexp::SUMEXP_NS {
template struct Run<SUMEXP_CUDA_TYPE, SUMEXP_CUDA_OP<SUMEXP_CUDA_TYPE>>;
}
