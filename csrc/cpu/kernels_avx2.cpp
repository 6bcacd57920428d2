#define SUMEXP_NS avx2
#include "simd_avx2.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_avx2() { return sumexp::avx2::kKernels; }
}  // namespace sumexp::cpu
