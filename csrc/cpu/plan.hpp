// From a Call (shapes, byte strides, axes) to rows: which elements form row r, in which order, and how
// they lie in memory. Knows no instruction set; compiled once.
#pragma once

#include <cstdint>

#include "../include/sumexp/sumexp.hpp"

namespace sumexp::cpu {

// The operands of a call, in one list: up to three inputs, the mask, the result and its sign.
enum Operand { kIn0 = 0, kIn1, kIn2, kWhere, kOut, kSign, kOperands };

inline constexpr std::int64_t kColumnRun = 512;  // bytes of rows side by side that a driver takes together, at most

struct Offsets {
  std::int64_t at[kOperands];  // bytes from each operand's data
};

struct Dim {
  std::int64_t size;
  std::int64_t stride[kOperands];  // bytes
};

struct OpInfo {
  const char* name;
  int inputs;          // elementwise inputs that a kernel reads (b of logsumexp included when given)
  int row_input;       // the index of an input with one value a row, or -1
  bool row_output;     // one value a row
  bool logits;         // in[0] are logits: mask allowed
  int temperature;     // the power of 1/T its result is multiplied by; -1: x is divided by T first; 0: none
};
const OpInfo& op_info(Op op);
std::int64_t item_size(DType dtype);

struct Plan {
  Op op;
  DType dtype;
  bool weighted;  // logsumexp with b
  double temperature;
  void* data[kOperands];  // nullptr: absent
  int batch_dims, row_dims;
  Dim batch[kMaxDims], row[kMaxDims];  // outermost first, coalesced, none of size 1
  std::int64_t rows, n;
  bool direct;    // every elementwise operand is contiguous along the row, and nothing happens to it on the way in
  bool columns;   // rows lie side by side: consecutive rows are consecutive in memory (axis not last)
  bool stream;    // the result leaves the cache: non-temporal stores
  std::int64_t kept_bytes;  // what a thread may leave in the cache that all share

  Offsets row_offsets(std::int64_t r) const;
  // Rows from r on until the result (of one value a row: the input) is at a multiple of `bytes` in memory.
  std::int64_t rows_to_boundary(std::int64_t r, std::int64_t bytes) const;
};

// Checks the call and lays out its rows.
Status make_plan(const Call& call, Plan& plan);

}  // namespace sumexp::cpu
