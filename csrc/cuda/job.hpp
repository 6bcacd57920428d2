// What a kernel is told: where the operands lie and how rows and chunks are laid out. Passed by value.
#pragma once

#include <cstdint>

namespace sumexp::cuda {

inline constexpr int kOperands = 6;  // in0 in1 in2 where out extra, as cpu::Operand
inline constexpr int kOut = 4, kWhere = 3, kExtra = 5;
inline constexpr int kJobDims = 6;  // dimensions left after coalescing, of the batch and of a row

// How elements get from global memory to registers and back.
enum class Access : int {
  packed,   // rows contiguous and 16-byte aligned: packs, straight to registers
  gather,   // any strides: element by element through shared memory, neighbours by neighbouring threads
  columns,  // rows lie side by side (the axis is not the last): a block takes neighbouring rows together
};

// What the type of results is, where kernels are shared by the types that are computed alike.
enum class Stored : int { own, f16, bf16 };

struct JobDim {
  std::int64_t size;
  std::int64_t stride[kOperands];  // bytes
};

struct Job {
  char* data[kOperands];  // nullptr: absent
  std::int64_t rows, n;
  std::int64_t chunks;  // of a row, at least 1
  int batch_dims, row_dims;
  JobDim batch[kJobDims], row[kJobDims];  // outermost first
  Access access;
  Stored stored;
  int row_input;    // the input with one value a row, or -1
  bool read_again;  // inputs are read once more after the reduction: they may stay in the cache
  bool divide;      // inputs are divided by the temperature first
  bool overflow;    // of which some quotients may overflow
  double temperature;
  double factor, late;  // what a sums op multiplies its result by, factor late^2: 1 / T or 1 / T^2
};

}  // namespace sumexp::cuda
