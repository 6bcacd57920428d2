// What an instruction set offers for rows of many lengths, beside the kernels of the ops (table.hpp): rows that lie anywhere to
// tiles and back, and the options of masked rows on a piece of one. T and `width` as there.
#pragma once

#include "../../ops/masked.hpp"
#include "tables.hpp"

#include <cstdint>

namespace sumexp::cpu {

// A row of n elements, `stride` bytes apart.
struct RaggedRow {
  char* first;
  std::int64_t stride, n;
};

// The options on elements of a packed row, each from the first of them on; null or neutral where not given.
struct LogitOptions {
  const char* mask;
  std::int64_t mask_stride;
  const char* bias;  // of the stored type
  std::int64_t bias_stride;
  MaskedScale scale;
};

struct RaggedMoves {
  // `rows` (at most `width`) rows to a tile of n vectors (at least the longest row's), with `fill` beyond their ends; and back.
  // Null without registers.
  void (*load_tile)(const RaggedRow* rows, int count, int n, double fill, void* to);
  void (*store_tile)(const RaggedRow* rows, int count, int n, const void* from);
  // From elements to logits, in place: a T each. False where one may overflow.
  bool (*logits)(const LogitOptions&, int count, void* x);
  // Of elements: whether the logit of one that counts overflows, and the largest.
  bool (*overflows)(const LogitOptions&, int count, const void* x, LargestLogit* largest);
  // From elements to their logits less the largest.
  void (*logits_apart)(const LogitOptions&, int count, const LargestLogit& largest, void* x);
  // `value` where the mask, or a bias of -inf, leaves out.
  void (*leave_out)(const LogitOptions&, int count, double value, void* x);
  // to = from times the derivative of softcap(x / temperature) in x, at the elements x as they were packed.
  void (*to_elements)(const LogitOptions&, int count, const void* x, const void* from, void* to);
  void (*fill)(char* out, std::int64_t stride, std::int64_t count, double value);
};

struct RaggedKernels {
  RaggedMoves by_dtype[4];
};

SUMEXP_DECLARE_TABLES(RaggedKernels, ragged_kernels_)

}  // namespace sumexp::cpu
