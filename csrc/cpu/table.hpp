// What one instruction set offers: the same table from every kernels_<isa>.cpp.
#pragma once

#include "plan.hpp"
#include "workspace.hpp"

namespace sumexp::cpu {

struct Kernels {
  const char* isa;
  // rows [begin, end), one after the other
  void (*rows[kOpCount][4])(const Plan&, std::int64_t begin, std::int64_t end, Workspace&);
  // every row split over `threads` threads
  void (*split[kOpCount][4])(const Plan&, int threads);
  // logsumexp with weights
  void (*weighted_rows[4])(const Plan&, std::int64_t begin, std::int64_t end, Workspace&);
  void (*weighted_split[4])(const Plan&, int threads);
};

const Kernels& kernels_scalar();
const Kernels& kernels_scalar_fma();  // the same source, compiled for CPUs with an FMA instruction
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

}  // namespace sumexp::cpu
