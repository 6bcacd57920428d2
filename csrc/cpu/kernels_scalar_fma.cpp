#define SUMEXP_NS scalar_fma
#include "simd_scalar.hpp"
//
#include "kernels_isa.hpp"

namespace sumexp::cpu {
const Kernels& kernels_scalar_fma() { return sumexp::scalar_fma::kKernels; }
}  // namespace sumexp::cpu
