// The driver of rows that lie side by side (the axis is not the last): `width` of them are a tile, element j of all its rows
// one vector, so that nothing is transposed. Neighbouring tiles go together, element by element, because the
// next element is on another page.
//
// Rows of one chunk are copied to a buffer tile by tile, finished as vectors like the short rows of tiles.hpp, and copied
// back. Longer ones go chunk by chunk, whose states merge row by row as in rows.hpp. Where whole rows fit in the buffer
// (resident) memory is read once; else once for each pass, and terms are computed again. Long sums (the
// derivatives) are taken where the elements are.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

class ColumnDriver {
 public:
  // Rows side by side, enough of them for a tile.
  static bool serves(const Job& job);
  // Of so many rows those that are taken together: whole tiles, and what is left of one where it fills most of it; 0 where
  // there is neither.
  static int taken(const Job& job, int rows);
  // Lanes of the tiles of so many rows; behind the last row they are no rows.
  static int lanes_of(const Job& job, int rows) { return (rows + job.moves.width - 1) / job.moves.width * job.moves.width; }

  ColumnDriver(const Job& job, Workspace& workspace, char* shared_maxima = nullptr);
  void run(std::int64_t begin, std::int64_t end);

  // For split.cpp: a block of rows in parts, for several drivers at once. reduce_part: false where a row is special; the row
  // driver then takes these rows.
  static int split_width(const Job& job);
  bool reduce_part(int pass, std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row, char* states);
  void map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row);

 private:
  void begin_block(std::int64_t r, int rows);
  bool block(std::int64_t r, int rows);
  bool short_rows();
  bool reduce_chunks(int pass, std::int64_t c0, std::int64_t c1, const char* row, char* states);
  bool reduce_chunk(int pass, std::int64_t c, const char* row, char* states);
  void map_chunks(std::int64_t c0, std::int64_t c1, const char* row);
  void map_chunk(std::int64_t c, const char* row);
  bool load(std::int64_t c, Tile* tiles);
  void lay_out(std::int64_t c, int t, Tile& tile) const;
  char* maxima(std::int64_t c, int t) const { return maxima_ + (c * at_.tiles + t) * vector_bytes_; }
  char* place(int k, int t, std::int64_t c) const {
    return buffer_[k] + (t * pitch_ + (resident_ ? c * job_.order.chunk : 0)) * vector_bytes_;
  }
  // The rows' own b-th, or the last.
  char* row_at(int k, int b) const { return at_.data[k] + (b < rows_ ? b : rows_ - 1) * step_[k]; }
  RowsAt rows_at(int k, int t) const { return {at_.data[k] + t * job_.moves.width * std::int64_t{step_[k]}, step_[k]}; }

  const Job& job_;
  const Plan& plan_;
  const Kernel& kernel_;
  Workspace& workspace_;
  char* shared_maxima_;
  bool sums_, short_, resident_;
  int width_, rows_, lanes_;  // rows and lanes of a block
  std::int64_t vector_bytes_, pitch_;
  Columns at_;
  std::int64_t step_[kOperands];
  char* buffer_[kMaxInputs + 1];  // of the inputs, and of terms that may not take the place of logits
  char *tops_ = nullptr, *maxima_ = nullptr, *states_ = nullptr, *finished_ = nullptr;
  StateTree* trees_ = nullptr;
};

}  // namespace sumexp::cpu
