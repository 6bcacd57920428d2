// Some rows of one chunk transposed to tiles in scratch, and back: of logits, whose place a tile's results take, and of one
// more operand of the same type in scratch.
#pragma once

#include "../drivers/tile_rows.hpp"

namespace sumexp::cpu {

class TransposedRows {
 public:
  // Columns are read and written so many bytes at a time: 0.75 to 1 of the time that 64 bytes took (Zen 4, 2026-11).
  static constexpr std::int64_t kRun = 128;

  // As many rows at a time as whole tiles of `lanes` rows have, a run of columns or more.
  static std::int64_t at_once(std::int64_t lanes, std::int64_t item) { return lanes * item < kRun ? kRun / item : lanes; }
  static std::int64_t bytes(std::int64_t rows, std::int64_t lanes, std::int64_t n, std::int64_t wide) {
    return (2 * rows / lanes + 1) * lanes * padded(n, lanes) * wide;
  }

  // Of a plan's rows, `rows` at a time, in `memory`.
  TransposedRows(const Plan& plan, const Kernels& table, int lanes, std::int64_t rows, int wide, char* memory)
      : plan_(plan), table_(table), lanes_(lanes), wide_(wide), pitch_(padded(plan.n, lanes)) {
    const std::int64_t bytes = rows * pitch_ * wide;
    first_[0] = memory, first_[1] = memory + bytes, terms_ = first_[1] + bytes;
  }

  // The `rows` rows of operand k, the first of which is at `from`, as inputs `to` of the tiles.
  void load(int to, int k, const char* from, DType dtype, int rows) { of(k, dtype).load(from, rows, first_[to]); }
  // Of the rows from b on, of `rows`.
  Tile tile(int b, int rows) const {
    Tile tile = {};
    tile.in[0] = tile_at(0, b), tile.in[1] = tile_at(1, b), tile.terms = terms_;
    tile.count = static_cast<int>(plan_.n), tile.rows = rows - b < lanes_ ? rows - b : lanes_;
    return tile;
  }
  // Results to operand k.
  void store(int k, char* to, DType dtype, int rows) const { of(k, dtype).store(to, rows, first_[0]); }

 private:
  static std::int64_t padded(std::int64_t n, std::int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }
  TileRows of(int k, DType dtype) const {
    return {*table_.moves[static_cast<int>(dtype)], plan_, k, item_size(dtype), wide_, pitch_};
  }
  char* tile_at(int side, int b) const { return first_[side] + b * pitch_ * wide_; }

  const Plan& plan_;
  const Kernels& table_;
  int lanes_, wide_;
  std::int64_t pitch_;  // vectors
  char *first_[2], *terms_;
};

}  // namespace sumexp::cpu
