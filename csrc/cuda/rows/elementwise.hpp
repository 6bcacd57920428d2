// Elementwise functions of the log domain on a GPU, as host and kernels see them.
#pragma once

#include "../../cpu/log_domain/elementwise.hpp"
#include "../arch/arch.hpp"

#ifndef SUMEXP_NS
#error "csrc/cuda is compiled with SUMEXP_NS, a namespace of its own (see numerics/platform.hpp)"
#endif

namespace sumexp::SUMEXP_NS {

template <class S>
struct ElementwiseMap {
  static cudaError_t run(LogDomain op, const cpu::ElementwiseArrays& arrays, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
