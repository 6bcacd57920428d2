// Some rows copied to contiguous rows of T in scratch, and back: for kernels that take rows of T where they lie. The rows lie
// side by side (columns), or one behind the other, with elements of fewer bits.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

class CopiedRows {
 public:
  // As many rows at a time as share a line of the cache, if copies of so many stay in one; else none (0).
  static std::int64_t at_once(std::int64_t n, std::int64_t item, std::int64_t wide) {
    constexpr std::int64_t kMostBytes = std::int64_t{4} << 20;
    const std::int64_t rows = kLineBytes / item;
    return n <= kMostBytes / (rows * wide) ? rows : 0;
  }
  static std::int64_t bytes(std::int64_t rows, std::int64_t n, std::int64_t wide) { return rows * odd_lines(n * wide); }

  // Of rows of `n` elements, which become `wide` bytes each, by the moves of their dtype, in `memory`.
  CopiedRows(const Moves& moves, bool columns, std::int64_t n, int item, int wide, char* memory)
      : moves_(moves), n_(static_cast<int>(n)), item_(item), wide_(wide), rows_(memory) {
    columns_ = columns, pitch_ = columns ? odd_lines(n * wide) : n * wide;
    row_.row_dims = 1, row_.row[0].stride[0] = item;
  }

  char* row(std::int64_t b) const { return rows_ + b * pitch_; }

  // From, and to, `rows` rows, the first of them at `from`: columns whose elements are `step` apart, or rows that are.
  void gather(const char* from, std::int64_t step, int rows) const {
    const std::int64_t pitch = pitch_ / wide_;
    if (columns_) each_line(rows, [&](int b, int n) { moves_.pack_columns(from + b * item_, step, n, n_, row(b), pitch); });
    else each_run(step, rows, [&](int b, int count) { moves_.pack_row(row_, 0, from + b * step, 0, count, row(b)); });
  }
  void scatter(char* to, std::int64_t step, int rows) const {
    const std::int64_t pitch = pitch_ / wide_;
    if (columns_)
      each_line(rows, [&](int b, int n) { moves_.unpack_columns(to + b * item_, step, n, n_, row(b), pitch, false); });
    else each_run(step, rows, [&](int b, int count) { moves_.unpack_row(row_, 0, to + b * step, 0, count, row(b)); });
  }

 private:
  // The moves take columns of one line at a time.
  template <class Body>
  void each_line(int rows, Body body) const {
    const int line = static_cast<int>(kLineBytes) / item_;
    for (int b = 0; b < rows; b += line) body(b, rows - b < line ? rows - b : line);
  }
  // Rows without gaps between them are one.
  template <class Body>
  void each_run(std::int64_t step, int rows, Body body) const {
    const bool one = step == std::int64_t{n_} * item_;
    for (int b = 0; b < (one ? 1 : rows); ++b) body(b, one ? rows * n_ : n_);
  }

  const Moves& moves_;
  bool columns_;
  int n_, item_, wide_;
  std::int64_t pitch_;
  char* rows_;
  Plan row_;  // one row, as the moves know it
};

}  // namespace sumexp::cpu
