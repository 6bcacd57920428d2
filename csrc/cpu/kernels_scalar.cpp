#define SUMEXP_NS scalar
#include "simd_scalar.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_scalar() { return sumexp::scalar::kKernels; }
}  // namespace sumexp::cpu
