// Some rows of one chunk transposed to tiles in scratch, and back: of logits, whose place a tile's results take, and of one
// more operand of the same type in scratch.
#pragma once

#include "../drivers/driver.hpp"

namespace sumexp::cpu {

class TransposedRows {
 public:
  // Columns are read and written so many bytes at a time, and so many elements are prefetched: 0.75 to 1 of the time that 64
  // bytes took (Zen 4, 2026-11).
  static constexpr std::int64_t kRun = 128, kAhead = 32;

  // As many rows at a time as whole tiles of `lanes` rows have, a run of columns or more.
  static std::int64_t at_once(std::int64_t lanes, std::int64_t item) { return lanes * item < kRun ? kRun / item : lanes; }
  static std::int64_t bytes(std::int64_t rows, std::int64_t lanes, std::int64_t n, std::int64_t wide) {
    return (2 * rows / lanes + 1) * lanes * padded(n, lanes) * wide;
  }

  // Of a plan's rows, `rows` at a time, in `memory`.
  TransposedRows(const Plan& plan, const Kernels& table, int lanes, std::int64_t rows, int wide, char* memory)
      : plan_(plan), table_(table), inner_(plan.batch_dims ? plan.batch[plan.batch_dims - 1] : none_), lanes_(lanes) {
    pitch_ = padded(plan.n, lanes), tile_bytes_ = pitch_ * lanes * wide;
    first_[0] = memory, first_[1] = memory + rows / lanes * tile_bytes_, terms_ = first_[1] + rows / lanes * tile_bytes_;
  }

  int lanes() const { return lanes_; }
  // The `rows` rows of operand k, the first of which is at `from`, as inputs `to` of the tiles.
  void load(int to, int k, const char* from, DType dtype, int rows) {
    const Moves& moves = moves_of(dtype);
    if (side_by_side(k, dtype, rows))
      return moves.load_columns(columns(k, k, from, rows), k, 0, n(), first_[to], pitch_, nullptr);
    for (int b = 0; b < rows; b += lanes_) moves.load_tile(rows_at(k, from, b), stride(k), some(rows, b), n(), tile_at(to, b));
  }
  // Of the rows from b on, of `rows`.
  Tile tile(int b, int rows) const {
    Tile tile = {};
    tile.in[0] = tile_at(0, b), tile.in[1] = tile_at(1, b), tile.terms = terms_;
    tile.count = n(), tile.rows = some(rows, b);
    return tile;
  }
  // Results to operand k.
  void store(int k, char* to, DType dtype, int rows) const {
    const Moves& moves = moves_of(dtype);
    if (side_by_side(k, dtype, rows)) return moves.store_columns(columns(k, kOut, to, rows), 0, n(), first_[0], pitch_);
    for (int b = 0; b < rows; b += lanes_)
      moves.store_tile(rows_at(k, to, b), stride(k), some(rows, b), n(), tile_at(0, b), false);
  }

 private:
  static std::int64_t padded(std::int64_t n, std::int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }
  const Moves& moves_of(DType dtype) const { return *table_.moves[static_cast<int>(dtype)]; }
  int n() const { return static_cast<int>(plan_.n); }
  int some(int rows, int b) const { return rows - b < lanes_ ? rows - b : lanes_; }
  std::int64_t stride(int k) const { return plan_.row[0].stride[k]; }
  char* tile_at(int side, int b) const { return first_[side] + b / lanes_ * tile_bytes_; }
  RowsAt rows_at(int k, const char* first, int b) const {
    return {const_cast<char*>(first) + b * inner_.stride[k], inner_.stride[k]};
  }
  bool side_by_side(int k, DType dtype, int rows) const { return rows % lanes_ == 0 && inner_.stride[k] == item_size(dtype); }
  // Operand k as operand `as` of columns.
  Columns columns(int k, int as, const char* first, int rows) const {
    Columns at = {};
    at.data[as] = const_cast<char*>(first), at.stride[as] = stride(k);
    at.n = plan_.n, at.ahead = plan_.n < kAhead ? plan_.n : kAhead, at.tiles = rows / lanes_;
    return at;
  }

  static constexpr Dim none_ = {};
  const Plan& plan_;
  const Kernels& table_;
  const Dim& inner_;  // from row to row
  int lanes_;
  std::int64_t pitch_, tile_bytes_;
  char *first_[2], *terms_;
};

}  // namespace sumexp::cpu
