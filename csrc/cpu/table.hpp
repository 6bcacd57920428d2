// What one instruction set offers: the same table from every kernels_<isa>.cpp.
#pragma once

#include "plan.hpp"
#include "workspace.hpp"

namespace sumexp::cpu {

struct OpKernels {
  void (*rows)(const Plan&, std::int64_t begin, std::int64_t end, Workspace&);  // rows [begin, end)
  void (*split)(const Plan&, int threads);                                      // every row over the threads
};

struct Kernels {
  OpKernels ops[kOpCount][4];  // op x dtype
  OpKernels weighted[4];       // logsumexp with b
};

const Kernels& kernels_scalar();
const Kernels& kernels_scalar_fma();  // the same source, compiled for CPUs with an FMA instruction
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

}  // namespace sumexp::cpu
