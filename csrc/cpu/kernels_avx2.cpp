#define SUMEXP_NS avx2
#include "simd_avx2.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_avx2() { return sumexp::avx2::make_kernels("avx2"); }
}  // namespace sumexp::cpu
