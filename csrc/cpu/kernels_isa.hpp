// The body of every kernels_<isa>.cpp: one row per op of csrc/ops, in the order of sumexp::Op.
// Included after the simd_<isa>.hpp that defines F32 and F64.
#pragma once

#include "rows.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

template <class V> using SoftmaxVjpKernel = SumsKernel<V, SoftmaxVjp>;
template <class V> using SoftmaxHvpKernel = SumsKernel<V, SoftmaxHvp>;
template <class V> using LogSoftmaxVjpKernel = SumsKernel<V, LogSoftmaxVjp>;
template <class V> using LogSoftmaxJvpKernel = SumsKernel<V, LogSoftmaxJvp>;
template <class V> using LogSoftmaxHvpKernel = SumsKernel<V, LogSoftmaxHvp>;

#define SUMEXP_DTYPES(run, Kernel) \
  { run<F32, f16, Kernel<F32>>, run<F32, bf16, Kernel<F32>>, run<F32, float, Kernel<F32>>, run<F64, double, Kernel<F64>> }

#define SUMEXP_OPS(run)                                                                          \
  {                                                                                              \
    SUMEXP_DTYPES(run, SoftmaxKernel), SUMEXP_DTYPES(run, LogSoftmaxKernel),                     \
    SUMEXP_DTYPES(run, LogSumExpKernel), SUMEXP_DTYPES(run, SoftmaxVjpKernel),                   \
    SUMEXP_DTYPES(run, LogSoftmaxVjpKernel), SUMEXP_DTYPES(run, LogSoftmaxJvpKernel),            \
    SUMEXP_DTYPES(run, LogSumExpVjpKernel), SUMEXP_DTYPES(run, LogSumExpJvpKernel),              \
    SUMEXP_DTYPES(run, SoftmaxHvpKernel), SUMEXP_DTYPES(run, LogSoftmaxHvpKernel)                \
  }

inline const cpu::Kernels& make_kernels(const char* isa) {
  static const cpu::Kernels kernels = {isa, SUMEXP_OPS(run_rows), SUMEXP_OPS(run_split),
                                       SUMEXP_DTYPES(run_rows, WeightedLogSumExpKernel),
                                       SUMEXP_DTYPES(run_split, WeightedLogSumExpKernel)};
  return kernels;
}

}  // namespace sumexp::SUMEXP_NS
