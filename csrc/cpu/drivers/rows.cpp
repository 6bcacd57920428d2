#include "rows.hpp"

#include <limits>
#include <new>
#include <utility>

namespace sumexp::cpu {

namespace {

// What a block of rows may take to stay in the cache: half of a 1 MB L2.
constexpr std::int64_t kResidentBytes = 512 << 10;
constexpr std::int64_t kAheadBytes = 64 << 10;  // rows up to here are prefetched whole
constexpr int kFewest = 2;                      // rows of a panel

// Left-out logits become -inf, which no result can tell from their absence, and factors 0.
constexpr double absent(int input) { return input == 0 ? -std::numeric_limits<double>::infinity() : 0.0; }

void set_lowest(const Job& job, char* x) {
  const double lowest = -std::numeric_limits<double>::infinity();
  const float narrow = -std::numeric_limits<float>::infinity();
  std::memcpy(x, job.wide == 8 ? static_cast<const void*>(&lowest) : &narrow, static_cast<std::size_t>(job.wide));
}

}  // namespace

RowDriver::RowDriver(const Job& job, Workspace& workspace, char* shared_maxima)
    : job_(job), plan_(job.plan), kernel_(job.kernel), inputs_(job.info.inputs), chunks_(job.chunks) {
  const bool offers_panels = kernel_.panels[kScratch], probabilities = job.info.probabilities,
             wide_elements = job.item == job.wide;
  const int width = job.moves.width;
  direct_ = plan_.direct && kernel_.reduce[0][kStored];
  elements_ = direct_ ? kStored : kScratch;
  width_ = plan_.columns || (offers_panels && chunks_ == 1) ? width : 1;
  // Terms may not take the place of logits.
  const bool beside = job.own_terms && (!direct_ || plan_.data[kOut] == plan_.data[kIn0]);
  const std::int64_t bytes = plan_.n * (inputs_ + beside) * job.wide;
  if (plan_.columns) {  // taken together: a line of them, but no less than a vector and no more than kTiles panels
    int line = kLineBytes / job.item;
    if (line > kTiles * width) line = kTiles * width;
    if (line > width && bytes * line <= kResidentBytes) width_ = line;
  }
  resident_ = !direct_ && bytes * width_ <= kResidentBytes;
  const std::int64_t most = plan_.kept_bytes > kResidentBytes ? plan_.kept_bytes : kResidentBytes;
  const bool elsewhere = plan_.stream || !wide_elements || beside;
  const bool scratch_row = direct_ && probabilities && elsewhere && !shared_maxima && plan_.n * job.wide <= most;
  in_result_ = direct_ && probabilities && !elsewhere;
  keep_terms_ = probabilities && (resident_ || scratch_row || in_result_);
  const std::int64_t kept = chunks_ == 1 ? plan_.n : (resident_ || scratch_row ? chunks_ : 1) * job.order.chunk;
  pitch_ = odd_lines(kept * job.wide) / job.wide;
  panels_ = offers_panels && direct_ && plan_.n <= kShortRow ? kTiles : 1;
  step_ = plan_.inner().stride;
  // To the element that is read a block of rows, or a chunk, later.
  ahead_ = !direct_ ? 0 : plan_.n * job.item > kAheadBytes ? job.order.chunk : panels_ * width_ * step_[0] / job.item;
  workspace.reset();
  for (int k = 0; k < inputs_; ++k) packed_[k] = direct_ ? nullptr : take<char>(workspace, width_ * pitch_ * job.wide);
  scratch_ = scratch_row || (resident_ && beside) ? take<char>(workspace, panels_ * width_ * pitch_ * job.wide) : nullptr;
  maxima_ = shared_maxima ? shared_maxima : take<char>(workspace, (probabilities ? width_ * chunks_ : 1) * job.wide);
  states_ = take<char>(workspace, width_ * (kernel_.state_bytes + kernel_.row_bytes));
  finished_ = states_ + width_ * kernel_.state_bytes;
  if (job.divide) {
    const std::int64_t rows = panels_ * width_;
    row_maxima_ = take<char>(workspace, rows * job.wide);
    apart_ = take<bool>(workspace, rows);
    overflow_ = take<bool>(workspace, rows);
  }
  // Two rows' terms are to stay in a cache, or the logits, which are read again: log_softmax of rows of 10^6 took 1.1 to 1.2
  // of the time without (AVX2).
  const std::int64_t two_rows = 2 * plan_.n * job.wide;
  overlaps_ =
      job.overlaps && !shared_maxima && (probabilities ? scratch_row && two_rows <= most : two_rows <= 4 * kResidentBytes);
  if (overlaps_) {
    waiting_.terms = scratch_row ? take<char>(workspace, pitch_ * job.wide) : nullptr;
    waiting_.maxima = take<char>(workspace, chunks_ * job.wide);
    waiting_.finished = take<char>(workspace, kernel_.row_bytes);
  }
  trees_ = chunks_ > 1 ? take_trees(workspace, kernel_, width_) : nullptr;
}

// Rows [begin, end), one block after the other.
void RowDriver::run(std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end;) {
    const int rows = block_rows(job_, r, end, panels_ * width_);
    if (rows == width_ || !panel_block(r, rows))
      for (int b = 0; b < rows; b += width_) block(r + b, rows - b < width_ ? rows - b : width_);
    r += rows;
  }
  write_waiting();
}

void RowDriver::block(std::int64_t r, int rows) {
  if (panel_block(r, rows)) return;
  begin_block(r, rows);
  for (int pass = 0; pass < job_.info.passes; ++pass) {
    reduce_chunks(pass, 0, chunks_, finished_, states_);
    if (overflows_) {
      set_apart();
      reduce_chunks(pass, 0, chunks_, finished_, states_);
    }
    for (int b = 0; b < rows; ++b) {
      const int input = job_.info.row_input;
      finish_row(job_, pass, states_ + b * kernel_.state_bytes, address(kIn0, b), input < 0 ? nullptr : address(input, b),
                 finished_ + b * kernel_.row_bytes);
    }
  }
  if (overlaps_) {
    std::swap(waiting_.terms, scratch_), std::swap(waiting_.maxima, maxima_), std::swap(waiting_.finished, finished_);
    new (&waiting_.offsets) Offsets(offsets_);
    waiting_.waits = true;
    return;
  }
  if (!job_.info.row_output) map_chunks(0, chunks_, finished_);
  for (int b = 0; kernel_.emit && b < rows; ++b)
    kernel_.emit(finished_ + b * kernel_.row_bytes, job_.info.row_output ? address(kOut, b) : nullptr,
                 plan_.data[kExtra] ? address(kExtra, b) : nullptr);
}

void RowDriver::begin_block(std::int64_t r, int rows) {
  rows_ = rows;
  // The rows of a block differ in the innermost batch dimension alone. In place: an assignment would load in vectors what has
  // just been stored number by number, and wait for all results that are on their way to memory.
  new (&offsets_) Offsets(plan_.row_offsets(r));
  packed_through_ = -1;
  overflows_ = false;
  for (int b = 0; job_.divide && b < rows_; ++b) apart_[b] = overflow_[b] = false;
}

// -- where things are --------------------------------------------------------------------------------------------

// Where chunk c of row b's operand k is read, or its result written.
char* RowDriver::place_of(int k, std::int64_t c, int b) const {
  if (direct_) return address(k, b) + c * job_.order.chunk * job_.item;
  return packed(k == kOut ? 0 : k, c, b);
}
RowsAt RowDriver::rows_at(int k, int b) const { return {place_of(k, 0, b), direct_ ? step_[k] : pitch_ * job_.wide}; }

// Where the terms of a chunk are written while the row is reduced.
char* RowDriver::terms(std::int64_t c, int b) const {
  if (in_result_) return address(kOut, b) + c * job_.order.chunk * job_.wide;
  if (scratch_) return scratch_ + (b * pitch_ + c * job_.order.chunk) * job_.wide;
  return packed(0, c, b);
}

Chunk RowDriver::chunk_at(std::int64_t c, int b) const {
  Chunk chunk;
  for (int k = 0; k < inputs_; ++k) chunk.in[k] = place_of(k, c, b);
  chunk.out = job_.info.row_output ? nullptr : place_of(kOut, c, b);
  chunk.terms = keep_terms_ ? terms(c, b) : nullptr;
  chunk.maximum = maxima_ + (job_.info.probabilities ? (b * chunks_ + c) * job_.wide : 0);
  chunk.first = c * job_.order.chunk;
  chunk.count = job_.count_of(c);
  chunk.ahead = ahead_;
  chunk.stream = direct_ && plan_.stream;
  return chunk;
}

Chunk RowDriver::waiting_chunk(std::int64_t c) const {
  const std::int64_t first = c * job_.order.chunk;
  Chunk chunk = {};
  chunk.out = static_cast<char*>(plan_.data[kOut]) + waiting_.offsets.at[kOut] + first * job_.item;
  chunk.in[0] = static_cast<char*>(plan_.data[kIn0]) + waiting_.offsets.at[kIn0] + first * job_.item;
  chunk.terms = waiting_.terms ? waiting_.terms + first * job_.wide : nullptr;
  chunk.maximum = waiting_.maxima + c * job_.wide;
  chunk.first = first;
  chunk.count = job_.count_of(c);
  chunk.stream = true;
  return chunk;
}
void RowDriver::write_waiting() {
  if (!waiting_.waits) return;
  for (std::int64_t c = 0; c < chunks_; ++c) kernel_.map[elements_](waiting_chunk(c), waiting_.finished);
  waiting_.waits = false;
}

// Chunk c of all rows of the block to scratch, where it is not there yet.
void RowDriver::pack(std::int64_t c) {
  if (direct_ || packed_through_ == c || (resident_ && c < packed_through_)) return;
  packed_through_ = c;
  gather(c);
  if (!job_.divide) return;
  const int count = job_.count_of(c);
  for (int b = 0; b < rows_; ++b) {
    char* const x = packed(0, c, b);
    if (apart_[b]) job_.moves.divide_apart(plan_.temperature, row_maxima_ + b * job_.wide, count, x);
    else if (!job_.moves.divide(plan_.temperature, count, x)) overflows_ = overflow_[b] = true;
  }
}
// From here on the rows in which a quotient overflows are divided less their maxima.
void RowDriver::set_apart() {
  for (int b = 0; b < rows_; ++b) set_lowest(job_, row_maxima_ + b * job_.wide);
  for (std::int64_t c = 0; c < chunks_; ++c) {
    gather(c);
    for (int b = 0; b < rows_; ++b) job_.moves.largest(packed(0, c, b), job_.count_of(c), row_maxima_ + b * job_.wide);
  }
  packed_through_ = -1;
  for (int b = 0; b < rows_; ++b) apart_[b] = overflow_[b];
}
void RowDriver::gather(std::int64_t c) {
  const int count = job_.count_of(c);
  const std::int64_t first = c * job_.order.chunk;
  for (int k = 0; k < inputs_; ++k) {
    const bool mask = plan_.data[kWhere];
    if (plan_.columns) {
      const Dim& row = plan_.row[0];
      const auto at = [&](int of) { return address(of, 0) + first * row.stride[of]; };
      job_.moves.pack_columns(at(k), row.stride[k], rows_, count, packed(k, c, 0), pitch_);
      if (mask)
        job_.moves.leave_out_of_columns(at(kWhere), row.stride[kWhere], step_[kWhere], rows_, count, absent(k), packed(k, c, 0),
                                        pitch_);
      continue;
    }
    for (int b = 0; b < rows_; ++b) {
      job_.moves.pack_row(plan_, k, address(k, b), first, count, packed(k, c, b));
      if (mask) job_.moves.leave_out(plan_, address(kWhere, b), first, count, absent(k), packed(k, c, b));
    }
  }
}
// Results of chunk c of row b to where the caller wants them; columns go all together, after the last row.
void RowDriver::unpack(std::int64_t c, int b) const {
  if (direct_) return;
  const std::int64_t first = c * job_.order.chunk;
  if (!plan_.columns) {
    job_.moves.unpack_row(plan_, kOut, address(kOut, b), first, job_.count_of(c), packed(0, c, b));
  } else if (b == rows_ - 1) {
    const std::int64_t stride = plan_.row[0].stride[kOut];
    job_.moves.unpack_columns(address(kOut, 0) + first * stride, stride, rows_, job_.count_of(c), packed(0, c, 0), pitch_,
                              plan_.stream);
  }
}

// -- a block of one or more panels ---------------------------------------------------------------------------------

// False where it is none, or one of its rows is special.
bool RowDriver::panel_block(std::int64_t r, int rows) {
  const auto run = kernel_.panels[elements_];
  if (!run || rows < kFewest || chunks_ != 1) return false;
  begin_block(r, rows);
  pack(0);
  if (overflows_) return false;
  const int width = job_.moves.width, input = job_.info.row_input;
  const bool stream = direct_ && plan_.stream;
  constexpr RowsAt kNone = {nullptr, 0};
  const auto one_a_row = [&](int k) { return RowsAt{address(k, 0), step_[k]}; };
  RowsAt in[kMaxInputs], terms_at = kNone, out = job_.info.row_output ? one_a_row(kOut) : rows_at(kOut, 0);
  for (int k = 0; k < inputs_; ++k) in[k] = rows_at(k, 0);
  if (job_.info.probabilities) terms_at = {terms(0, 0), in_result_ ? step_[kOut] : pitch_ * job_.wide};
  RowsAt row_input = input >= 0 ? one_a_row(input) : kNone, extra = plan_.data[kExtra] ? one_a_row(kExtra) : kNone;
  // Where the rows of this panel are; those of the next are behind them. (A copy of the panel before would load in vectors what
  // was just stored number by number, as in begin_block.)
  const auto next = [width](RowsAt& at) {
    const RowsAt here = at;
    at.first += width * at.step;
    return here;
  };
  Panel panels[kTiles];
  int count = 0;
  for (int left = rows; left > 0; left -= width, ++count) {
    Panel& panel = panels[count];
    for (int k = 0; k < inputs_; ++k) panel.in[k] = next(in[k]);
    panel.terms = next(terms_at), panel.out = next(out), panel.row_input = next(row_input), panel.extra = next(extra);
    panel.count = static_cast<int>(plan_.n);
    panel.rows = left < width ? left : width;
    panel.ahead = ahead_;
    panel.stream = stream;
    panel.scaled = plan_.scaled;
  }
  panels->rare = rare_;
  if (!run(panels, count, job_.factor)) return false;
  rare_ = panels->rare;
  if (!job_.info.row_output)
    for (int b = 0; b < rows; ++b) unpack(0, b);
  return true;
}

// -- chunk by chunk ----------------------------------------------------------------------------------------------------

void RowDriver::reduce_chunks(int pass, std::int64_t c0, std::int64_t c1, const char* row, char* states) {
  const auto reduce = kernel_.reduce[pass][elements_];
  const auto state = [&](int b) { return states + b * kernel_.state_bytes; };
  if (c1 - c0 <= 1) {
    if (c0 < c1) pack(c0);
    for (int b = 0; b < rows_; ++b) {
      if (c0 < c1) reduce(chunk_at(c0, b), row + b * kernel_.row_bytes, state(b));
      else kernel_.empty(state(b));
    }
    return;
  }
  for (int b = 0; b < rows_; ++b) trees_[b].filled = 0;
  for (std::int64_t c = c0; c < c1; ++c) {
    pack(c);
    for (int b = 0; b < rows_; ++b) {
      if (waiting_.waits) kernel_.reduce_over(chunk_at(c, b), state(b), waiting_chunk(c), waiting_.finished);
      else reduce(chunk_at(c, b), row + b * kernel_.row_bytes, state(b));
      if (c < c1 - 1) trees_[b].push(kernel_, state(b));
      else trees_[b].finish(kernel_, state(b));
    }
  }
  waiting_.waits = false;
}

void RowDriver::map_chunks(std::int64_t c0, std::int64_t c1, const char* row) {
  const auto map = kernel_.map[elements_];
  for (std::int64_t c = c0; c < c1; ++c) {
    pack(c);
    for (int b = 0; b < rows_; ++b) {
      map(chunk_at(c, b), row + b * kernel_.row_bytes);
      unpack(c, b);
    }
  }
}

bool RowDriver::reduce_part(int pass, std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row,
                            char* states) {
  begin_block(r, rows);
  reduce_chunks(pass, c0, c1, row, states);
  return !overflows_;
}
void RowDriver::map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const char* row) {
  begin_block(r, rows);
  map_chunks(c0, c1, row);
}

}  // namespace sumexp::cpu
