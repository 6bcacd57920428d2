// Few, long rows: every row, or block of columns, is split over the threads, in aligned blocks of 2^level chunks. Each
// block is reduced, then mapped, by a driver of its own; the blocks' states merge as the chunks' would have, so that the tree
// of the geometry stays the same.
#include "columns.hpp"
#include "rows.hpp"
#include "tiles.hpp"

namespace sumexp::cpu {

namespace {

constexpr int kLeastLevel = 2, kMostLevel = 5;

std::int64_t parts_at(const Job& job, int level) { return ((job.chunks - 1) >> level) + 1; }
// The largest blocks of which there is one for each thread.
int level_for(const Job& job, int threads) {
  int level = kMostLevel;
  while (level > kLeastLevel && parts_at(job, level) < threads) --level;
  return level;
}

template <class Body>
void over_threads(std::int64_t tasks, int threads, Body body) {
  run_parts(
      tasks, threads, [](void* context, std::int64_t i, Workspace& workspace) { (*static_cast<Body*>(context))(i, workspace); },
      &body);
}

// Driver: RowDriver or ColumnDriver.
template <class Driver>
class Split {
 public:
  Split(const Job& job, int threads)
      : job_(job), kernel_(job.kernel), threads_(threads), level_(level_for(job, threads)), blocks_(parts_at(job, level_)) {}

  // A block of rows; false where one is special.
  bool block(std::int64_t r, int rows) {
    lanes_ = Driver::lanes_of(job_, rows);
    const std::int64_t states = blocks_ * lanes_ * kernel_.state_bytes, finished = std::int64_t{lanes_} * kernel_.row_bytes;
    const std::int64_t stack = StateTree::kLevels * std::int64_t{kernel_.state_bytes},
                       maxima = job_.chunks * lanes_ * job_.wide;
    char* own =
        static_cast<char*>(own_.keep_bytes(static_cast<std::size_t>(states + finished + stack + maxima + blocks_ + 3 * 64)));
    const auto cut = [&](std::int64_t bytes) {
      char* const part = own;
      own += (bytes + 63) / 64 * 64;
      return part;
    };
    states_ = cut(states), finished_ = cut(finished), stack_ = cut(stack), maxima_ = cut(maxima), taken_ = own;
    for (int pass = 0; pass < job_.info.passes; ++pass)
      if (!reduce(pass, r, rows)) return false;
    if (!job_.info.row_output)
      over_threads(blocks_, threads_, [&](std::int64_t i, Workspace& workspace) {
        Driver(job_, workspace, maxima_).map_part(r, rows, first(i), first(i + 1), finished_);
      });
    for (int b = 0; kernel_.emit && b < rows; ++b)
      kernel_.emit(finished_ + b * kernel_.row_bytes, job_.info.row_output ? row_of(kOut, r + b) : nullptr,
                   job_.plan.data[kExtra] ? row_of(kExtra, r + b) : nullptr);
    return true;
  }

 private:
  // The first chunk of block i.
  std::int64_t first(std::int64_t i) const { return i < blocks_ ? i << level_ : job_.chunks; }
  char* row_of(int k, std::int64_t r) const { return static_cast<char*>(job_.plan.data[k]) + job_.plan.row_offsets(r).at[k]; }
  char* state(std::int64_t i, int b) const { return states_ + (i * lanes_ + b) * kernel_.state_bytes; }

  bool reduce(int pass, std::int64_t r, int rows) {
    over_threads(blocks_, threads_, [&](std::int64_t i, Workspace& workspace) {
      Driver driver(job_, workspace, maxima_);
      taken_[i] = driver.reduce_part(pass, r, rows, first(i), first(i + 1), finished_, state(i, 0));
    });
    for (std::int64_t i = 0; i < blocks_; ++i)
      if (!taken_[i]) return false;
    for (int b = 0; b < lanes_; ++b) {
      StateTree tree = {stack_};
      for (std::int64_t i = 0; i < blocks_ - 1; ++i) tree.push(kernel_, state(i, b), level_);
      char* const root = state(blocks_ - 1, b);
      tree.finish(kernel_, root);
      const int input = job_.info.row_input;
      const std::int64_t own = r + (b < rows ? b : rows - 1);
      finish_row(job_, pass, root, row_of(kIn0, own), input < 0 ? nullptr : row_of(input, own),
                 finished_ + b * kernel_.row_bytes);
    }
    return true;
  }

  const Job& job_;
  const Kernel& kernel_;
  int threads_, level_;
  std::int64_t blocks_;
  int lanes_ = 0;  // of a block
  Workspace& own_ = thread_workspace();
  char *states_, *finished_, *stack_, *maxima_, *taken_;  // taken_: by each part
};

void split_by_rows(const Job& job, std::int64_t begin, std::int64_t end, int threads) {
  Split<RowDriver> split(job, threads);
  const int width = RowDriver::split_width(job);
  for (std::int64_t r = begin, rows; r < end; r += rows)
    if (!split.block(r, static_cast<int>(rows = block_rows(job, r, end, width))))
      RowDriver(job, thread_workspace()).run(r, r + rows);
}

}  // namespace

bool can_split(const Job& job, int threads) { return parts_at(job, kLeastLevel) >= threads; }

void split_rows(const Job& job, int threads) {
  if (!ColumnDriver::serves(job)) return split_by_rows(job, 0, job.plan.rows, threads);
  Split<ColumnDriver> split(job, threads);
  const int width = ColumnDriver::split_width(job);
  for (std::int64_t r = 0; r < job.plan.rows;) {
    int rows = block_rows(job, r, job.plan.rows, width);
    const int some = ColumnDriver::taken(job, rows);
    if (some) rows = some;
    if (!some || !split.block(r, rows)) split_by_rows(job, r, r + rows, threads);
    r += rows;
  }
}

// -- what all drivers share ------------------------------------------------------------------------------------------

Job::Job(const Plan& plan, const Kernels& kernels)
    : plan(plan),
      info(op_info(plan.op)),
      moves(*kernels.moves[static_cast<int>(plan.dtype)]),
      kernel(*kernels.ops[static_cast<int>(plan.op)][static_cast<int>(plan.dtype)]),
      item(static_cast<int>(item_size(plan.dtype))),
      wide(item == 8 ? 8 : 4),
      order(order_of(wide)),
      chunks((plan.n + order.chunk - 1) / order.chunk) {
  factor = plan.factor;
  divide = info.temperature < 0 && plan.temperature != 1.0;
  own_terms = info.apart && info.probabilities;
  // In place, what goes around the cache would have to leave it first: twice the time.
  overlaps =
      kernel.reduce_over && plan.direct && plan.stream && plan.data[kOut] != plan.data[kIn0] && 2 * plan.n >= 3 * order.chunk;
}

void finish_row(const Job& job, int pass, const void* state, const char* first, const char* input, void* row) {
  double at_index = 0.0;  // or a float
  if (job.info.index) {
    std::int64_t index;
    std::memcpy(&index, input, sizeof(index));
    job.moves.pack_row(job.plan, kIn0, first, index, 1, &at_index);
    if (job.divide) job.moves.divide(job.plan.temperature, 1, &at_index);
  }
  job.kernel.finish[pass](state, {job.factor, input, &at_index, job.plan.scaled}, row);
}

int block_rows(const Job& job, std::int64_t r, std::int64_t end, int width) {
  const Plan& plan = job.plan;
  const std::int64_t inner = plan.inner().size;
  const std::int64_t left = inner - r % inner, rows = end - r < left ? end - r : left;
  if (plan.columns) {
    const std::int64_t ahead = plan.rows_to_boundary(r, job.moves.width * job.item);
    if (ahead > 0 && ahead < width) width = static_cast<int>(ahead);
  }
  return static_cast<int>(rows < width ? rows : width);
}

void run_rows(const Job& job, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  if (ColumnDriver::serves(job)) return ColumnDriver(job, workspace).run(begin, end);
  if (tiles_serve(job, end - begin)) return run_tiles(job, begin, end, workspace);
  RowDriver(job, workspace).run(begin, end);
}

}  // namespace sumexp::cpu
