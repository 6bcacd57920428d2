// From a Call (shapes, byte strides, axes) to rows: which elements form row r, in which order, and how
// they lie in memory. Knows no instruction set; compiled once.
#pragma once

#include <cstdint>

#include "../include/sumexp/sumexp.hpp"

namespace sumexp::cpu {

// The operands of a call, in one list: up to three inputs, the mask, the result and the second one.
enum Operand { kIn0 = 0, kIn1, kIn2, kWhere, kOut, kExtra, kOperands };

inline constexpr std::int64_t kColumnRun = 512;  // bytes of rows side by side that a driver takes together, at most

struct Offsets {
  std::int64_t at[kOperands];  // bytes from each operand's data
};

struct Dim {
  std::int64_t size;
  std::int64_t stride[kOperands];  // bytes
};
inline constexpr Dim kOneRow = {1, {}};

// What an op's description says (ops/op.hpp), for those who know it by number.
struct OpInfo {
  const char* name;
  int inputs;          // elementwise inputs that a kernel reads
  int row_input;       // the index of an input with one value a row, or -1
  int passes;          // reductions before the result
  bool row_output;     // one value a row
  bool logits;         // in[0] are logits
  bool probabilities;  // results are made of a row's terms, which are kept where there is a place for them
  bool mask;           // where is allowed
  int temperature;     // the power of 1/T its result is multiplied by; -1: x is divided by T first; 0: none
  bool extra;          // a second result, one value a row, may be asked for
  bool index;          // the row input is an index: of an element of in[0]
  bool apart;          // the maximum is kept out of the sum: logits may be read again when their terms are there already
  unsigned row_like;   // bit k: operand k has one value a row
};
const OpInfo& op_info(Op op);
std::int64_t item_size(DType dtype);

struct Plan {
  Op op;
  DType dtype;
  double temperature;
  double factor, late;    // what the temperature multiplies a derivative by: factor late^2
  void* data[kOperands];  // nullptr: absent
  int batch_dims, row_dims;
  Dim batch[kMaxDims], row[kMaxDims];  // outermost first, coalesced, none of size 1; no more are set
  std::int64_t rows, n;
  bool direct;              // every elementwise operand is contiguous along the row, and nothing happens to it on the way in
  bool columns;             // rows lie side by side: consecutive rows are consecutive in memory (axis not last)
  bool stream;              // the result leaves the cache: non-temporal stores
  std::int64_t kept_bytes;  // what a thread may leave in the cache that all share
  bool scaled = false;      // of ops with an index, from within the library: see ScaledIndex in kernels/table.hpp

  // The innermost batch dimension, in which rows lie evenly apart; of one row where there is none.
  const Dim& inner() const { return batch_dims ? batch[batch_dims - 1] : kOneRow; }
  Offsets row_offsets(std::int64_t r) const;
  // Rows side by side from r on until the result (of one value a row: the input) is at a multiple of `bytes` in memory; 0 where
  // that is of no use.
  std::int64_t rows_to_boundary(std::int64_t r, std::int64_t bytes) const;
};

// Calls body(offset, stride, i, count) for each straight run of elements [first, first + count) of a row,
// i counted from `first`; offset and stride are operand k's.
template <class Body>
inline __attribute__((always_inline)) void each_run(const Plan& plan, int k, std::int64_t first, std::int64_t count,
                                                    Body body) {
  if (plan.row_dims <= 1) {
    const std::int64_t stride = plan.row_dims ? plan.row[0].stride[k] : 0;
    body(first * stride, stride, std::int64_t(0), count);
    return;
  }
  const Dim& inner = plan.row[plan.row_dims - 1];
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t element = first + i;
    std::int64_t rest = element / inner.size, offset = element % inner.size * inner.stride[k];
    for (int d = plan.row_dims - 2; d >= 0; --d) {
      offset += rest % plan.row[d].size * plan.row[d].stride[k];
      rest /= plan.row[d].size;
    }
    const std::int64_t left = inner.size - element % inner.size, run = count - i < left ? count - i : left;
    body(offset, inner.stride[k], i, run);
    i += run;
  }
}

// Checks the call and lays out its rows.
Status make_plan(const Call& call, Plan& plan);
// Refuses indices that are of no element: not a part of make_plan, which serves calls on memory of a device as well.
Status check_indices(const Plan& plan);

}  // namespace sumexp::cpu
