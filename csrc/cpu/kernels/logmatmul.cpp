// out_ij = log sum_k e^(a_ik + b_kj), a tile at a time, everything in double.
//
//   e^(a_ik) = A_ik 2^(N_i - 300),  e^(b_kj) = B_kj 2^(M_j - 300),   N_i = rint(max_k a_ik log2 e), M_j likewise
//   out_ij = (N_i + M_j - 600) ln 2 + log P_ij,                      P = A B
//
// The shifts are in the exponents, as everywhere here (numerics/exp.hpp), so that no difference is rounded. What a row's and a
// column's maximum leave out: an A or B that underflows is below 2^-1322 of its largest, its terms are below 2^-722, and a P
// of 2^-600 or more does not see 2^60 of them. Below that, which is 831 from the sum of both maxima, and where out is so near
// 0 that the error of P counts (with all its terms), the result is made from the terms a_ik + b_kj themselves, as logsumexp
// makes it.
//
// float and 16 bits: A and B rounded to double, their product a chain of FMAs for every 256 k, added in order. P is within
//   (256 + K / 256 + 4) 2^-53, which is 2^-24 |out| or less where |out| is not below `least`.
// double: A and B as pairs, within 0.14 2^-53, and P with what its additions round off:
//   next = fma(A, B, P);  rest += A B - (next - P)
// next - P is exact unless next is more than twice P; what it then loses is 2^-53 of next, and as P doubles each time, all
// these are 2 2^-53 of the last P. So |out| >= 1 is within 2.3 2^-53, one ulp, and half of one for rounding it.
//
// Derivatives are made of plain products. The weight of a term is e^(a_ik + b_kj - out_ij) = A_ik B_kj / P_ij:
//
//   da_ik = A_ik sum_j (g_ij / P_ij) B_kj,  db_kj = B_kj sum_i A_ik (g_ij / P_ij)
//   dout_ij = sum_k (A_ik ta_ik B_kj + A_ik B_kj tb_kj) / P_ij
//
// within (256 + n / 256 + 8) 2^-53 of the sum of the absolute terms, n being how many are summed (K, and N or M). Where P is
// below 2^-100, which is 485 from both maxima, they are made from the terms themselves, whose weights then are within |out_ij|
// 2^-52.
//
// A chain's order is that of k. Tiles change nothing: a result depends on row i of a and column j of b alone.
#include SUMEXP_SIMD
//
#include "logmatmul.hpp"

#include "logmatmul_tile.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

template <class S>
void tile(const Product& product, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch) {
  Tile<S, std::is_same_v<S, double>>(product, row, rows, column, columns, scratch).run();
}
template <class S>
void jvp(const Product& product, const cpu::Tangents& tangents, std::int64_t row, int rows, std::int64_t column, int columns,
         void* scratch) {
  Tile<S, false, true>(product, row, rows, column, columns, scratch).tangents(tangents, row, column);
}
template <class S>
void weigh(const Product& product, const cpu::Weights& weights, std::int64_t row, int rows, std::int64_t column, int columns,
           void* scratch) {
  Tile<S, false>(product, row, rows, column, columns, scratch).weigh(weights, row, column);
}

// -- gradients -----------------------------------------------------------------------------------------------

template <class S>
void gradient(const cpu::Gradient& g, std::int64_t row, int rows, std::int64_t first_k, int count, void* scratch) {
  char* free = static_cast<char*>(scratch);
  const std::int64_t width = padded(count);
  double *const panels = cut<double>(free, kDepth * width), *const weights = cut<double>(free, rows * kPitch);
  double *const sums = cut<double>(free, rows * width), *const x = cut<double>(free, width),
                *const y = cut<double>(free, width);
  const char *const left = g.left + row * g.left_row + first_k * g.left_k, *const right = g.right + first_k * g.right_k;
  const double* const weight = g.weight + row * g.weight_row;
  const char* const far = g.far + row * g.weight_row;

  bool some = false;
  for (std::int64_t i = 0; i < rows * width; ++i) sums[i] = 0.0;
  for (std::int64_t c0 = 0; c0 < g.columns; c0 += kDepth) {
    const int block = static_cast<int>(g.columns - c0 < kDepth ? g.columns - c0 : kDepth);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < block; ++c) {
        const std::int64_t at = r * g.weight_row + (c0 + c) * g.weight_column;
        some |= far[at];
        weights[r * kPitch + c] = far[at] ? 0.0 : weight[at];
      }
    for (int c = 0; c < block; ++c) {
      const Line& line = g.right_lines[c0 + c];
      if (line.kind == kNumbers) {
        load<S>(right + (c0 + c) * g.right_column, g.right_k, count, x);
        row_factors<false>(x, count, line, y, nullptr);
      }
      for (std::int64_t k = 0; k < width; ++k)
        panels[k / kPanel * kPanel * kDepth + c * kPanel + k % kPanel] = line.kind == kNumbers && k < count ? y[k] : 0.0;
    }
    for (std::int64_t k = 0; k < width; k += kPanel) {
      const auto multiply_rows = [&](auto step, int r) SUMEXP_INLINE {
        multiply<decltype(step)::value>(weights + r * kPitch, panels + k * kDepth, block, sums + r * width + k, width, c0 == 0);
      };
      int r = 0;
      for (; r + kStep <= rows; r += kStep) multiply_rows(std::integral_constant<int, kStep>(), r);
      for (; r < rows; ++r) multiply_rows(std::integral_constant<int, 1>(), r);
    }
  }
  for (int r = 0; r < rows; ++r) {
    const Line& line = g.left_lines[row + r];
    double* const sum = sums + r * width;
    load<S>(left + r * g.left_row, g.left_k, count, x);
    if (line.kind == kNumbers) {
      row_factors<false>(x, count, line, y, nullptr);
      for (int k = 0; k < count; ++k) sum[k] = sum[k] * y[k];
    }
    for (std::int64_t c = 0; some && c < g.columns; ++c) {
      if (!far[r * g.weight_row + c * g.weight_column]) continue;
      const double value = weight[r * g.weight_row + c * g.weight_column];
      const double gradient = widened(read<S>(g.g + (row + r) * g.g_row + c * g.g_column));
      if (value == -Limits<double>::infinity) continue;
      if (is_nan(value)) {
        for (int k = 0; k < count; ++k) sum[k] = value;
        continue;
      }
      if (!is_finite(value)) {
        const WeigherOfHalves<S> weigher(g.left + (row + r) * g.left_row, g.left_k, g.right + c * g.right_column, g.right_k,
                                         g.k);
        load<S>(right + c * g.right_column, g.right_k, count, y);
        for (int k = 0; k < count; ++k) sum[k] += weigher(x[k], y[k]) * gradient;
        continue;
      }
      const Weigher weigher(value);
      load<S>(right + c * g.right_column, g.right_k, count, y);
      each_vector<F64>(count, [&](std::int64_t k, auto memory) SUMEXP_INLINE {
        const F64 t = memory.template load<F64>(x + k, -Limits<double>::infinity) + memory.template load<F64>(y + k, 0.0);
        memory.store(sum + k, fma(weigher(t), F64(gradient), memory.template load<F64>(sum + k, 0.0)));
      });
    }
    char* const out = g.out + (row + r) * g.out_row + first_k * g.out_k;
    for (int k = 0; k < count; ++k) write<S>(out + k * g.out_k, narrowed(quiet(sum[k]), static_cast<S*>(nullptr)));
  }
}

const cpu::LogMatmulKernels kTable = {{tile<f16>, tile<bf16>, tile<float>, tile<double>},
                                      {jvp<f16>, jvp<bf16>, jvp<float>, jvp<double>},
                                      {weigh<f16>, weigh<bf16>, weigh<float>, weigh<double>},
                                      {gradient<f16>, gradient<bf16>, gradient<float>, gradient<double>},
                                      scratch_bytes};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(LogMatmulKernels, log_matmul_kernels_, SUMEXP_NS::kTable)
