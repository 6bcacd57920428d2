// The body of every kernels_<isa>.cpp: one row per op of csrc/ops, in the order of sumexp::Op.
// Included after the simd_<isa>.hpp that defines F32 and F64.
#pragma once

#include "columns.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

// An op is a row kernel and, for rows that go V::W at a time, a tile kernel.
template <class V, class S, class Kernel, class Tile>
inline constexpr cpu::OpKernels kWithTile = {run_any<V, S, Kernel, Tile>, run_any_split<V, S, Kernel, Tile>};
template <class V, class S, class Kernel>
inline constexpr cpu::OpKernels kRowsOnly = {run_rows<V, S, Kernel>, run_split<V, S, Kernel>};

#define SUMEXP_LOGITS(V, S, Kernel, Tile) kWithTile<V, S, Kernel<V, TermsOf<S>>, Tile<V, TermsOf<S>>>
#define SUMEXP_DTYPES(Kernel, Tile)                                                         \
  {                                                                                         \
    SUMEXP_LOGITS(F32, f16, Kernel, Tile), SUMEXP_LOGITS(F32, bf16, Kernel, Tile),          \
        SUMEXP_LOGITS(F32, float, Kernel, Tile), SUMEXP_LOGITS(F64, double, Kernel, Tile)   \
  }
#define SUMEXP_LOGITS_ROWS(V, S, Kernel) kRowsOnly<V, S, Kernel<V, TermsOf<S>>>
#define SUMEXP_DTYPES_ROWS(Kernel)                                                          \
  {                                                                                         \
    SUMEXP_LOGITS_ROWS(F32, f16, Kernel), SUMEXP_LOGITS_ROWS(F32, bf16, Kernel),            \
        SUMEXP_LOGITS_ROWS(F32, float, Kernel), SUMEXP_LOGITS_ROWS(F64, double, Kernel)     \
  }
#define SUMEXP_DTYPES_SUMS(Op)                                                                      \
  {                                                                                                 \
    kWithTile<F32, f16, SumsKernel<F32, Op>, SumsTile<F32, Op>>,                                    \
        kWithTile<F32, bf16, SumsKernel<F32, Op>, SumsTile<F32, Op>>,                               \
        kWithTile<F32, float, SumsKernel<F32, Op>, SumsTile<F32, Op>>,                              \
        kWithTile<F64, double, SumsKernel<F64, Op>, SumsTile<F64, Op>>                              \
  }

inline constexpr cpu::Kernels kKernels = {
    {SUMEXP_DTYPES(SoftmaxKernel, SoftmaxTile), SUMEXP_DTYPES(LogSoftmaxKernel, LogSoftmaxTile),
     SUMEXP_DTYPES(LogSumExpKernel, LogSumExpTile), SUMEXP_DTYPES_SUMS(SoftmaxVjp), SUMEXP_DTYPES_SUMS(LogSoftmaxVjp),
     SUMEXP_DTYPES_SUMS(LogSoftmaxJvp), SUMEXP_DTYPES(LogSumExpVjpKernel, LogSumExpVjpTile),
     SUMEXP_DTYPES_ROWS(LogSumExpJvpKernel), SUMEXP_DTYPES_SUMS(SoftmaxHvp), SUMEXP_DTYPES_SUMS(LogSoftmaxHvp)},
    SUMEXP_DTYPES_ROWS(WeightedLogSumExpKernel)};

}  // namespace sumexp::SUMEXP_NS
