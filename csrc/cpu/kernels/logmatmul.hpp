// Products in the log domain: what an instruction set offers to logmatmul/logmatmul.cpp. One function makes a tile of a
// product.
#pragma once

#include <cstdint>

namespace sumexp::cpu {

inline constexpr int kTileRows = 128, kTileColumns = 128;  // at most

// One product of a batch; strides are in bytes.
struct Product {
  const char *a, *b;
  char* out;
  std::int64_t k;
  std::int64_t a_row, a_k, b_k, b_column, out_row, out_column;
};

struct LogMatmulKernels {
  // Results (row .. row + rows) x (column .. column + columns), by dtype.
  void (*tile[4])(const Product&, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch);
  std::int64_t (*scratch_bytes)(bool f64, int rows, int columns);
};

const LogMatmulKernels& log_matmul_kernels_scalar();
const LogMatmulKernels& log_matmul_kernels_scalar_fma();
const LogMatmulKernels& log_matmul_kernels_avx2();
const LogMatmulKernels& log_matmul_kernels_avx512();
const LogMatmulKernels& log_matmul_kernels_neon();

}  // namespace sumexp::cpu
