#define SUMEXP_NS neon
#include "simd_neon.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_neon() { return sumexp::neon::kKernels; }
}  // namespace sumexp::cpu
