#include "columns.hpp"

#include "rows.hpp"
#include "tiles.hpp"

namespace sumexp::cpu {

namespace {

constexpr std::int64_t kBufferBytes = 2 << 20;  // that the tiles of a block may take in the buffer
constexpr int kDirectSums = 1024;               // from here on sums are taken where the elements are
constexpr int kElementsAhead = 32;
constexpr int kMostTiles = static_cast<int>(kColumnRun) / 8;  // of the narrowest vector, four 16-bit elements

int tiles_in_line(const Job& job) {
  const int tiles = kLineBytes / (job.moves.width * job.item);
  return tiles > 1 ? tiles : 1;
}
// Tiles an odd number of lines apart do not meet in the same sets of the cache.
std::int64_t pitch_of(const Job& job, std::int64_t vectors) {
  const std::int64_t vector_bytes = job.moves.width * job.wide, in_line = kLineBytes / vector_bytes;
  return ((vectors + in_line - 1) / in_line | 1) * in_line;
}
// Vectors that a tile takes in the buffer when whole rows do not fit: a chunk, or its lanes.
std::int64_t part_of(const Job& job) {
  return job.info.logits ? job.order.chunk : std::int64_t{job.order.lanes} * job.kernel.sums;
}
// How many tiles of such a pitch fit in the buffer, each `buffers` times, in whole lines.
int tiles_of(const Job& job, std::int64_t pitch, int buffers) {
  const int in_line = tiles_in_line(job), most = static_cast<int>(kColumnRun) / (job.moves.width * job.item);
  const std::int64_t fit = kBufferBytes / (pitch * job.moves.width * job.wide * buffers) / in_line * in_line;
  return static_cast<int>(fit < in_line ? in_line : fit < most ? fit : most);
}

}  // namespace

bool ColumnDriver::serves(const Job& job) {
  const Plan& plan = job.plan;
  if (!plan.columns || !job.kernel.tiles || plan.n < 1 || plan.data[kWhere]) return false;
  return plan.inner().size >= job.moves.width || taken(job, static_cast<int>(plan.inner().size)) > 0;
}
int ColumnDriver::taken(const Job& job, int rows) {
  const int width = job.moves.width, rest = rows % width;
  const bool worth = job.info.logits ? 3 * rest > 2 * width : 4 * rest > width;  // else it takes longer than row by row
  return job.item == job.wide && worth ? rows : rows - rest;
}

ColumnDriver::ColumnDriver(const Job& job, Workspace& workspace, char* shared_maxima)
    : job_(job),
      plan_(job.plan),
      kernel_(job.kernel),
      workspace_(workspace),
      shared_maxima_(shared_maxima),
      sums_(!job.info.logits) {
  vector_bytes_ = std::int64_t{job.moves.width} * job.wide;
  const int buffers = job.info.inputs + job.own_terms;
  const bool fits = plan_.n * vector_bytes_ * buffers * tiles_in_line(job) <= kBufferBytes;
  short_ = job.chunks == 1 && !(sums_ && plan_.n >= kDirectSums);
  resident_ = short_ || (!sums_ && !job.info.row_output && !shared_maxima && fits);
  pitch_ = pitch_of(job, resident_ ? plan_.n : part_of(job));
  width_ = tiles_of(job, pitch_, resident_ ? buffers : job.info.inputs) * job.moves.width;
  at_.n = plan_.n;
  at_.ahead = plan_.n < kElementsAhead ? plan_.n : kElementsAhead;
  at_.temperature = job.divide ? plan_.temperature : 1.0;
  at_.stream = plan_.stream;
}

int ColumnDriver::split_width(const Job& job) {
  return tiles_of(job, pitch_of(job, part_of(job)), job.info.inputs) * job.moves.width;
}

void ColumnDriver::run(std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end;) {
    int rows = block_rows(job_, r, end, width_);
    const int some = taken(job_, rows);
    if (some) rows = some;
    if (!some || !block(r, rows)) {
      if (tiles_serve(job_, rows)) run_tiles(job_, r, r + rows, workspace_);
      else RowDriver(job_, workspace_).run(r, r + rows);
    }
    r += rows;
  }
}

void ColumnDriver::begin_block(std::int64_t r, int rows) {
  rows_ = rows, lanes_ = lanes_of(job_, rows);
  at_.tiles = lanes_ / job_.moves.width;
  at_.absent = lanes_ - rows;
  at_.log = kernel_.log;
  const Offsets first = plan_.row_offsets(r);
  for (int k = 0; k < kOperands; ++k) {
    at_.data[k] = static_cast<char*>(plan_.data[k]) + first.at[k];
    at_.stride[k] = plan_.row[0].stride[k];
    step_[k] = plan_.inner().stride[k];
  }
  workspace_.reset();
  const int buffers = sums_ && !short_ ? 1 : job_.info.inputs + (resident_ && job_.own_terms);  // one for the lanes of sums
  for (int k = 0; k < buffers; ++k) buffer_[k] = take<char>(workspace_, at_.tiles * pitch_ * vector_bytes_);
  tops_ = take<char>(workspace_, at_.tiles * vector_bytes_);
  if (short_) return;
  maxima_ = shared_maxima_ ? shared_maxima_ : take<char>(workspace_, job_.chunks * at_.tiles * vector_bytes_);
  states_ = take<char>(workspace_, std::int64_t{lanes_} * kernel_.state_bytes);
  finished_ = take<char>(workspace_, std::int64_t{lanes_} * kernel_.row_bytes);
  trees_ = take_trees(workspace_, kernel_, lanes_);
}

bool ColumnDriver::block(std::int64_t r, int rows) {
  begin_block(r, rows);
  if (short_) return short_rows();
  for (int pass = 0; pass < job_.info.passes; ++pass) {
    if (!reduce_chunks(pass, 0, job_.chunks, finished_, states_)) return false;
    for (int b = 0; b < lanes_; ++b) {
      const int input = job_.info.row_input;
      finish_row(job_, pass, states_ + b * kernel_.state_bytes, row_at(kIn0, b), input < 0 ? nullptr : row_at(input, b),
                 finished_ + b * kernel_.row_bytes);
    }
  }
  if (!job_.info.row_output) map_chunks(0, job_.chunks, finished_);
  for (int b = 0; kernel_.emit && b < rows; ++b)
    kernel_.emit(finished_ + b * kernel_.row_bytes, job_.info.row_output ? row_at(kOut, b) : nullptr,
                 plan_.data[kExtra] ? row_at(kExtra, b) : nullptr);
  return true;
}

// -- rows of one chunk -------------------------------------------------------------------------------------------------

bool ColumnDriver::short_rows() {
  Tile tiles[kMostTiles];
  if (!load(0, tiles)) return false;
  const int together = plan_.n <= kShortRow ? kTiles : 1;
  for (int first = 0; first < at_.tiles; first += together) {
    const int count = at_.tiles - first < together ? at_.tiles - first : together;
    if (!kernel_.tiles(tiles + first, count, job_.factor)) return false;
  }
  if (!job_.info.row_output) job_.moves.store_columns(at_, 0, job_.count_of(0), buffer_[0], pitch_);
  return true;
}

// In place: a copy would wait for the stores before it.
void ColumnDriver::lay_out(std::int64_t c, int t, Tile& tile) const {
  for (int k = 0; k < job_.info.inputs; ++k) tile.in[k] = place(k, t, c);
  tile.terms = resident_ && job_.own_terms ? place(job_.info.inputs, t, c) : tile.in[0];
  tile.first = c * job_.order.chunk;
  tile.top = sums_ ? nullptr : tops_ + t * vector_bytes_;
  tile.count = job_.count_of(c);
  tile.rows = job_.moves.width - (t == at_.tiles - 1 ? at_.absent : 0);
  tile.out = rows_at(kOut, t);
  if (job_.info.row_input >= 0) tile.row_input = rows_at(job_.info.row_input, t);
  tile.scaled = plan_.scaled;
  tile.extra = plan_.data[kExtra] ? rows_at(kExtra, t) : RowsAt{nullptr, 0};
}

// Chunk c of every tile to the buffer, and its largest elements to tops_. False where a quotient by the temperature overflows.
bool ColumnDriver::load(std::int64_t c, Tile* tiles) {
  bool finite = true;
  const int count = job_.count_of(c);
  for (int k = 0; k < job_.info.inputs; ++k)
    job_.moves.load_columns(at_, k, c * job_.order.chunk, count, place(k, 0, c), pitch_, sums_ || k ? nullptr : tops_);
  for (int t = 0; t < at_.tiles; ++t) {
    lay_out(c, t, tiles[t]);
    if (!job_.divide) continue;
    finite &= job_.moves.divide(plan_.temperature, std::int64_t{count} * job_.moves.width, tiles[t].in[0]);
    job_.moves.divide(plan_.temperature, job_.moves.width, tiles[t].top);
  }
  return finite;
}

// -- rows of many ------------------------------------------------------------------------------------------------------

bool ColumnDriver::reduce_chunks(int pass, std::int64_t c0, std::int64_t c1, const char* row, char* states) {
  for (int b = 0; b < lanes_; ++b) trees_[b].filled = 0;
  for (std::int64_t c = c0; c < c1; ++c) {
    if (!reduce_chunk(pass, c, row, states)) return false;
    for (int b = 0; b < lanes_; ++b) {
      char* const state = states + b * kernel_.state_bytes;
      if (c < c1 - 1) trees_[b].push(kernel_, state);
      else trees_[b].finish(kernel_, state);
    }
  }
  return true;
}
bool ColumnDriver::reduce_chunk(int pass, std::int64_t c, const char* row, char* states) {
  if (sums_) {  // they need no maximum first
    kernel_.column_sums[pass](at_, c * job_.order.chunk, job_.count_of(c), buffer_[0], row, states);
    return true;
  }
  Tile tiles[kMostTiles];
  if (!load(c, tiles)) return false;
  for (int t = 0; t < at_.tiles; ++t)
    if (!kernel_.tile_states(tiles[t], resident_, maxima(c, t), states + t * job_.moves.width * kernel_.state_bytes))
      return false;
  return true;
}

void ColumnDriver::map_chunks(std::int64_t c0, std::int64_t c1, const char* row) {
  for (std::int64_t c = c0; c < c1; ++c) map_chunk(c, row);
}
void ColumnDriver::map_chunk(std::int64_t c, const char* row) {
  const std::int64_t first = c * job_.order.chunk;
  if (!resident_ && kernel_.map_columns(at_, first, job_.count_of(c), maxima(c, 0), row)) return;
  Tile tiles[kMostTiles];
  if (!resident_) load(c, tiles);
  for (int t = 0; t < at_.tiles; ++t) {
    Tile tile;
    lay_out(c, t, tile);
    if (!resident_) kernel_.term_tile(tile, maxima(c, t));
    kernel_.map_tile(tile, maxima(c, t), row + t * job_.moves.width * kernel_.row_bytes);
  }
  job_.moves.store_columns(at_, first, job_.count_of(c), place(0, 0, c), pitch_);
}

// -- parts -------------------------------------------------------------------------------------------------------------

bool ColumnDriver::reduce_part(int pass, std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row,
                               char* states) {
  begin_block(r, rows);
  return reduce_chunks(pass, c0, c1, row, states);
}
void ColumnDriver::map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row) {
  begin_block(r, rows);
  map_chunks(c0, c1, row);
}

}  // namespace sumexp::cpu
