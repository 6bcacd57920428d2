// Some rows that lie side by side, copied to where each is contiguous, and back: for kernels that take one row at a time.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

class ColumnBlock {
 public:
  // As many rows as share a line of the cache, if copies of so many stay in one; else none (0).
  static std::int64_t width(std::int64_t n, std::int64_t item) {
    constexpr std::int64_t kMostBytes = std::int64_t{4} << 20;
    return n * kLineBytes <= kMostBytes ? kLineBytes / item : 0;
  }
  // Bytes that a block takes.
  static std::int64_t bytes(std::int64_t n, std::int64_t item, std::int64_t wide) {
    return kLineBytes / item * (pitch(n, item) * item + (item < wide ? pitch(kPiece, wide) * wide : 0));
  }

  // Of rows of `n` elements, by the moves of their dtype, in `memory`. Of `contiguous`, operand k has no gaps.
  ColumnBlock(const Moves& moves, const Plan& contiguous, int k, std::int64_t n, int item, int wide, char* memory)
      : moves_(moves), plan_(contiguous), k_(k), n_(n), item_(item), wide_(wide), rows_(memory) {
    widened_ = memory + kLineBytes / item * pitch(n, item) * item;
  }
  char* row(std::int64_t b) const { return rows_ + b * pitch(n_, item_) * item_; }

  // From, and to, `rows` rows whose elements are `stride` apart, the first of them at `from`.
  void gather(const char* from, std::int64_t stride, int rows) const {
    each_piece([&](std::int64_t first, int count) {
      const char* const piece = from + first * stride;
      if (item_ == wide_) return moves_.pack_columns(piece, stride, rows, count, rows_ + first * item_, pitch(n_, item_));
      moves_.pack_columns(piece, stride, rows, count, widened_, pitch(kPiece, wide_));
      for (int b = 0; b < rows; ++b) moves_.unpack_row(plan_, k_, row(b), first, count, widened(b));
    });
  }
  void scatter(char* to, std::int64_t stride, int rows) const {
    each_piece([&](std::int64_t first, int count) {
      char* const piece = to + first * stride;
      if (item_ == wide_)
        return moves_.unpack_columns(piece, stride, rows, count, rows_ + first * item_, pitch(n_, item_), false);
      for (int b = 0; b < rows; ++b) moves_.pack_row(plan_, k_, row(b), first, count, widened(b));
      moves_.unpack_columns(piece, stride, rows, count, widened_, pitch(kPiece, wide_), false);
    });
  }

 private:
  static constexpr std::int64_t kPiece = 512;  // elements of a row that are copied at a time

  // Whole lines, an odd number of them, so that rows do not meet in the same sets of the cache.
  static std::int64_t pitch(std::int64_t n, std::int64_t item) {
    return ((n * item + kLineBytes - 1) / kLineBytes | 1) * kLineBytes / item;
  }
  char* widened(int b) const { return widened_ + b * pitch(kPiece, wide_) * wide_; }
  template <class Body>
  void each_piece(Body body) const {
    for (std::int64_t first = 0; first < n_; first += kPiece)
      body(first, static_cast<int>(n_ - first < kPiece ? n_ - first : kPiece));
  }

  const Moves& moves_;
  const Plan& plan_;
  int k_;
  std::int64_t n_;
  int item_, wide_;
  char *rows_, *widened_;
};

}  // namespace sumexp::cpu
