// Some rows that lie side by side, copied to rows of T in scratch, and back: for kernels that take one row at a time.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

class ColumnBlock {
 public:
  // As many rows as share a line of the cache, if copies of so many stay in one; else none (0).
  static std::int64_t width(std::int64_t n, std::int64_t item, std::int64_t wide) {
    constexpr std::int64_t kMostBytes = std::int64_t{4} << 20;
    const std::int64_t rows = kLineBytes / item;
    return n <= kMostBytes / (rows * wide) ? rows : 0;
  }
  static std::int64_t bytes(std::int64_t rows, std::int64_t n, std::int64_t wide) { return rows * odd_lines(n * wide); }

  // Of rows of `n` elements of `wide` bytes, by the moves of the dtype that they are copied from, in `memory`.
  ColumnBlock(const Moves& moves, std::int64_t n, int wide, char* memory)
      : moves_(moves), n_(n), pitch_(odd_lines(n * wide)), wide_(wide), rows_(memory) {}

  char* row(std::int64_t b) const { return rows_ + b * pitch_; }

  // From, and to, `rows` rows whose elements are `stride` apart, the first of them at `from`.
  void gather(const char* from, std::int64_t stride, int rows) const {
    moves_.pack_columns(from, stride, rows, static_cast<int>(n_), rows_, pitch_ / wide_);
  }
  void scatter(char* to, std::int64_t stride, int rows) const {
    moves_.unpack_columns(to, stride, rows, static_cast<int>(n_), rows_, pitch_ / wide_, false);
  }

 private:
  const Moves& moves_;
  std::int64_t n_, pitch_;
  int wide_;
  char* rows_;
};

}  // namespace sumexp::cpu
