#define SUMEXP_NS avx512
#include "simd_avx512.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_avx512() { return sumexp::avx512::kKernels; }
}  // namespace sumexp::cpu
