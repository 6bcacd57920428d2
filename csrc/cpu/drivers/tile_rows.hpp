// Rows of one chunk to tiles in scratch, and back: those that lie side by side as they stand, others through a transposition in
// registers.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

// Operand k of a plan, whose elements have `item` bytes. `rows` rows of it, the first of them at `first`, are tiles of
// moves.width rows, `pitch` vectors of `wide`-byte elements apart.
struct TileRows {
  static constexpr std::int64_t kAhead = 32;  // elements that are prefetched

  const Moves& moves;
  const Plan& plan;
  int k;
  std::int64_t item, wide, pitch;
  std::int64_t stride = plan.row[0].stride[k], step = plan.inner().stride[k];

  void load(const char* first, int rows, void* to) const {
    if (side_by_side(rows)) return moves.load_columns(columns(k, first, rows), k, 0, n(), to, pitch, nullptr);
    for (int b = 0; b < rows; b += moves.width)
      moves.load_tile(rows_at(first, b), stride, some(rows, b), n(), tile(static_cast<char*>(to), b));
  }
  void store(char* first, int rows, const void* from) const {
    if (side_by_side(rows)) return moves.store_columns(columns(kOut, first, rows), 0, n(), from, pitch);
    for (int b = 0; b < rows; b += moves.width)
      moves.store_tile(rows_at(first, b), stride, some(rows, b), n(), tile(static_cast<const char*>(from), b), false);
  }

 private:
  int n() const { return static_cast<int>(plan.n); }
  int some(int rows, int b) const { return rows - b < moves.width ? rows - b : moves.width; }
  bool side_by_side(int rows) const { return rows % moves.width == 0 && step == item && stride != item; }
  RowsAt rows_at(const char* first, int b) const { return {const_cast<char*>(first) + b * step, step}; }
  template <class Char>
  Char* tile(Char* tiles, int b) const {
    return tiles + b * pitch * wide;
  }
  // As operand `as` of columns.
  Columns columns(int as, const char* first, int rows) const {
    Columns at = {};
    at.data[as] = const_cast<char*>(first), at.stride[as] = stride;
    at.n = plan.n, at.ahead = plan.n < kAhead ? plan.n : kAhead, at.tiles = rows / moves.width;
    return at;
  }
};

}  // namespace sumexp::cpu
