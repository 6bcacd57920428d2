// Products in the log domain: what an instruction set offers to logmatmul/logmatmul.cpp. One function makes a tile of a
// product.
#pragma once

#include "tables.hpp"

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

enum LineKind : int { kNumbers, kNothing, kSpecial };  // finite maximum, all -inf, NaN or +inf

// How the elements of a row of a, or of a column of b, become factors.
struct Line {
  double shift, floor, anchor, exponent;
  int kind;
};

// For the gradients: g, and for each result i, j, at i * pitch + j, g_ij / P_ij; or, where `far` is 1, the result itself.
struct Weights {
  const char* g;
  std::int64_t g_row, g_column;
  double* weight;
  char* far;
  std::int64_t pitch;
  Line *rows, *columns;  // of all of them
};

// left_rk' sum_c w_rc right_kc': the gradient of a, or, with rows and columns exchanged, of b.
struct Gradient {
  const char *left, *right, *g;
  char* out;
  std::int64_t left_row, left_k, right_k, right_column, g_row, g_column, out_row, out_k;
  std::int64_t k, columns, weight_row, weight_column;  // weights in elements
  const double* weight;
  const char* far;
  const Line *left_lines, *right_lines;
};

// Tangents of a and b.
struct Tangents {
  const char *a, *b;
  std::int64_t a_row, a_k, b_k, b_column;
};

struct LogMatmulKernels {
  // By dtype, results (row .. row + rows) x (column .. column + columns): of the product; of its JVP; and their weights.
  void (*tile[4])(const Product&, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch);
  void (*jvp[4])(const Product&, const Tangents&, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch);
  void (*weigh[4])(const Product&, const Weights&, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch);
  // The gradient's elements (row .. row + rows) x (k .. k + count).
  void (*gradient[4])(const Gradient&, std::int64_t row, int rows, std::int64_t k, int count, void* scratch);
  std::int64_t (*scratch_bytes)(int rows, int columns);
};

SUMEXP_DECLARE_TABLES(LogMatmulKernels, log_matmul_kernels_)

}  // namespace sumexp::cpu
