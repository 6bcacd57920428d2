// The row driver. A block is up to a cache line of rows that lie side by side (plan.columns), some rows of one chunk each,
// taken as panels, or one long row. Direct rows are read where they are; others are packed, whole blocks at once when they fit
// in the cache (resident), else chunk by chunk, once for each pass. The terms of a row wait for its sum in the result itself,
// in the packed copy, or, when the result goes around the cache or has 16 bits, or the logits are still wanted there, in
// scratch (as long as this stays in the cache); where there is no such place they are computed again: the same instructions on
// the same input, hence the same bits. Where the kernel offers it, the results of a long row are written while the next one is
// reduced (overlaps_).
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

class RowDriver {
 public:
  // shared_maxima: where the maxima of a row's chunks go, for drivers that have a row in common
  RowDriver(const Job& job, Workspace& workspace, char* shared_maxima = nullptr);
  void run(std::int64_t begin, std::int64_t end);

  // For split.cpp: a block of rows in parts, for several drivers at once. reduce_part: false where a row is special; the row
  // driver, without parts, then takes these rows.
  static int split_width(const Job& job) { return job.plan.columns ? job.moves.width : 1; }
  static int lanes_of(const Job&, int rows) { return rows; }
  bool reduce_part(int pass, std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row, char* states);
  void map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row);

 private:
  void begin_block(std::int64_t r, int rows);
  void block(std::int64_t r, int rows);
  bool panel_block(std::int64_t r, int rows);
  void reduce_chunks(int pass, std::int64_t c0, std::int64_t c1, const char* row, char* states);
  void map_chunks(std::int64_t c0, std::int64_t c1, const char* row);
  Chunk chunk_at(std::int64_t c, int b) const;
  Chunk waiting_chunk(std::int64_t c) const;
  void write_waiting();
  void pack(std::int64_t c);
  void gather(std::int64_t c);
  void set_apart();
  void unpack(std::int64_t c, int b) const;

  char* address(int k, int b) const { return static_cast<char*>(plan_.data[k]) + offsets_.at[k] + b * step_[k]; }
  std::int64_t place(std::int64_t c) const { return resident_ ? c * job_.order.chunk : 0; }
  char* packed(int k, std::int64_t c, int b) const { return packed_[k] + (b * pitch_ + place(c)) * job_.wide; }
  char* place_of(int k, std::int64_t c, int b) const;
  char* terms(std::int64_t c, int b) const;
  RowsAt rows_at(int k, int b) const;

  const Job& job_;
  const Plan& plan_;
  const Kernel& kernel_;
  Elements elements_;
  int inputs_, width_, panels_, rows_ = 1;
  std::int64_t chunks_, pitch_, ahead_, packed_through_ = -1;
  bool direct_, resident_, keep_terms_, in_result_, rare_ = true;  // rare_: as the panels before have left it (Panel)
  // Of quotients by the temperature: whether one of the block overflows; of each row, that, and that its are less its maximum.
  bool overflows_ = false, *overflow_, *apart_;
  Offsets offsets_;
  const std::int64_t* step_;  // from row to row
  char* packed_[kMaxInputs];
  char *scratch_, *maxima_, *states_, *finished_, *row_maxima_;
  StateTree* trees_;
  // The row before, where it is finished but its results are not written: that is done while the next row is reduced.
  struct Waiting {
    bool waits = false;
    Offsets offsets;
    char *terms, *maxima, *finished;
  } waiting_;
  bool overlaps_;
};

}  // namespace sumexp::cpu
