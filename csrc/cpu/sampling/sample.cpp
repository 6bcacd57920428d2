// The public functions of sumexp/sampling.hpp: checks, and rows dealt out to threads.
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "check.hpp"
#include "rows.hpp"

namespace sumexp {

namespace {

using cpu::fail;
using cpu::Failure;
using cpu::Plan;
using cpu::SampleJob;
using cpu::SampleRow;
using cpu::SampleScratch;
using cpu::Workspace;

constexpr std::int64_t kBlock = 1 << 16;  // draws, so that what is made for a chunk serves many
constexpr std::int64_t kRange = 32;       // chunks of a task, of a row that is shared out
constexpr std::int64_t kTaskElements = 1 << 16;
constexpr std::int64_t kPart = 1024;     // elements of noise of a task
constexpr std::int64_t kDrawCost = 512;  // elements that take as long as a draw

template <class T>
const T* first_bad(const PerRow<T>& values, std::int64_t rows, bool (*good)(T), std::int64_t* row) {
  for (std::int64_t r = 0; values.data && r < (values.step ? rows : 1); ++r)
    if (!good(values.data[r * values.step])) return *row = r, values.data + r * values.step;
  return nullptr;
}

// Lays out the rows, and checks the options. counts, strides: of a result with the shape of the logits, or null. reads: logits
// are.
Status make_plan(const SampleCall& call, std::int64_t* counts, const std::int64_t* strides, Plan& plan, bool reads = true) {
  if (const Status status = cpu::check_draws(call, counts, strides, reads); !status.ok()) return status;
  static constexpr std::int64_t kNoSteps[kMaxDims] = {};
  Call as;
  as.op = Op::softmax, as.dtype = call.dtype, as.ndim = call.ndim, as.shape = call.shape;
  as.axes = std::uint64_t{1} << (call.axis < 0 ? call.axis + call.ndim : call.axis);
  as.in[0] = reads ? call.logits : View{&plan, kNoSteps};
  as.where = call.where;
  as.out = counts ? View{counts, strides} : as.in[0];
  if (Status status = cpu::make_plan(as, plan); !status.ok()) return status;
  std::int64_t row;
  const std::int64_t rows = plan.rows;
  if (rows && !call.seed.data) return fail(Code::invalid_argument, "seed is missing");
  if (const double* t = first_bad<double>(
          call.temperature, rows, [](double t) { return t >= 0; }, &row))
    return fail(Code::invalid_argument, "temperature is %g for row %lld, accepted: numbers from 0", *t,
                static_cast<long long>(row));
  if (const std::int64_t* k = first_bad<std::int64_t>(
          call.top_k, rows, [](std::int64_t k) { return k >= 1; }, &row))
    return fail(Code::invalid_argument, "top_k is %lld for row %lld, accepted: integers from 1", static_cast<long long>(*k),
                static_cast<long long>(row));
  if (const double* p = first_bad<double>(
          call.top_p, rows, [](double p) { return p > 0 && p <= 1; }, &row))
    return fail(Code::invalid_argument, "top_p is %g for row %lld, accepted: numbers above 0, up to 1", *p,
                static_cast<long long>(row));
  if (const double* p = first_bad<double>(
          call.min_p, rows, [](double p) { return p >= 0 && p <= 1; }, &row))
    return fail(Code::invalid_argument, "min_p is %g for row %lld, accepted: numbers from 0 to 1", *p,
                static_cast<long long>(row));
  return Status{};
}

// What is done with each row: all its steps in a task, or, where there are few rows, each step shared out.
struct Steps {
  const SampleJob& job;
  Failure& failure;
  std::int64_t draws;  // of a row; 0: counts
  bool counts;

  void whole(SampleRow& row, SampleScratch& scratch) const {
    row.prepare(scratch, failure);
    if (failure.reached(row.index())) return;
    row.reduce(0, job.chunks, scratch);
    row.finish(scratch, failure);
    if (failure.reached(row.index())) return;
    if (counts) {
      row.count_chunks();
      return row.count_elements(0, job.chunks, scratch);
    }
    const std::int64_t block = row.in_blocks() ? kBlock : draws;
    for (std::int64_t d = 0; d < draws; d += block) row.draw(d, std::min(draws, d + block), scratch, failure);
    if (!failure.reached(row.index())) row.tell(scratch);
  }
};

// Rows r0 to r1 of one chunk each, `job.together` or fewer: their walks together, and then those that want more.
void draw_together(const Steps& steps, std::int64_t r0, std::int64_t r1, char* memory, SampleScratch& scratch) {
  const SampleJob& job = steps.job;
  cpu::RowKey keys[cpu::kTogether];
  std::int64_t row_of[cpu::kTogether], others[cpu::kTogether];
  int places[cpu::kTogether], count = 0, left = 0;
  for (std::int64_t r = r0; r < r1; ++r) {
    SampleRow row(job, r, memory);
    if (row.tree_alone(scratch.tree + 2 * job.leaves * count, scratch)) keys[count] = row.key(), row_of[count++] = r;
    else others[left++] = r;
  }
  job.tables.inside(keys, scratch.tree, count, job.leaves, places);
  for (int k = 0; k < count; ++k) job.call.out[row_of[k]] = places[k];
  for (int k = 0; k < left; ++k) {
    SampleRow row(job, others[k], memory);
    steps.whole(row, scratch);
  }
}

// body(row, i, scratch) for i in [0, parts) of every row, over the threads.
template <class Body>
void share_out(const SampleJob& job, std::vector<std::unique_ptr<SampleRow>>& rows, std::int64_t parts, int threads,
               Body body) {
  struct Work {
    const SampleJob& job;
    std::vector<std::unique_ptr<SampleRow>>& rows;
    std::int64_t parts;
    Body& body;
  } work = {job, rows, parts, body};
  cpu::run_parts(
      static_cast<std::int64_t>(rows.size()) * parts, threads,
      [](void* context, std::int64_t i, Workspace& workspace) {
        Work& work = *static_cast<Work*>(context);
        workspace.reset();
        SampleScratch scratch(work.job, workspace, kBlock);
        work.body(*work.rows[static_cast<std::size_t>(i / work.parts)], i % work.parts, scratch);
      },
      &work);
}

void run_shared(const Steps& steps, int threads) {
  const SampleJob& job = steps.job;
  Failure& failure = steps.failure;
  std::vector<std::unique_ptr<SampleRow>> rows;
  const std::size_t bytes = static_cast<std::size_t>(job.row_bytes);
  std::vector<std::uint64_t> memory((static_cast<std::size_t>(job.plan.rows) * bytes + 63) / 8 + 8);
  char* const first = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
  for (std::int64_t r = 0; r < job.plan.rows; ++r)
    rows.push_back(std::make_unique<SampleRow>(job, r, first + static_cast<std::size_t>(r) * bytes));
  share_out(job, rows, 1, threads, [&](SampleRow& row, std::int64_t, SampleScratch& s) { row.prepare(s, failure); });
  rows.resize(static_cast<std::size_t>(std::min(failure.rows(), job.plan.rows)));
  const std::int64_t ranges = (job.chunks + kRange - 1) / kRange;
  const auto end = [&](std::int64_t i) { return std::min(job.chunks, (i + 1) * kRange); };
  share_out(job, rows, ranges, threads,
            [&](SampleRow& row, std::int64_t i, SampleScratch& s) { row.reduce(i * kRange, end(i), s); });
  share_out(job, rows, 1, 1, [&](SampleRow& row, std::int64_t, SampleScratch& s) {
    row.finish(s, failure);
    if (steps.counts && !failure.reached(row.index())) row.count_chunks();
  });
  const auto failed = [&] { return failure.reached(job.plan.rows - 1); };
  if (failed()) return;
  if (steps.counts)
    return share_out(job, rows, ranges, threads,
                     [&](SampleRow& row, std::int64_t i, SampleScratch& s) { row.count_elements(i * kRange, end(i), s); });
  const std::int64_t draws = steps.draws,
                     block = rows[0]->in_blocks() ? std::min(kBlock, (draws + threads - 1) / threads) : draws;
  const std::int64_t blocks = draws ? (draws + block - 1) / block : 0;
  share_out(job, rows, blocks, draws * kDrawCost * job.plan.rows > kTaskElements * 2 ? threads : 1,
            [&](SampleRow& row, std::int64_t i, SampleScratch& s) {
              row.draw(i * block, std::min(draws, (i + 1) * block), s, failure);
            });
  if (failed()) return;
  share_out(job, rows, 1, 1, [&](SampleRow& row, std::int64_t, SampleScratch& s) { row.tell(s); });
}

void run_steps(const Steps& steps) {
  const SampleJob& job = steps.job;
  const std::int64_t rows = job.plan.rows, n = job.plan.n;
  const int threads = cpu::threads_for(rows * (n + steps.draws * kDrawCost));
  if (threads > 1 && rows < 2 * threads && (n > kTaskElements || steps.draws > kTaskElements / kDrawCost))
    return run_shared(steps, threads);
  struct Work {
    const Steps& steps;
    std::int64_t step;
  } work = {steps, std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(1, n + steps.draws * kDrawCost))};
  const std::int64_t fair = (rows + 2 * threads - 1) / std::max(1, 2 * threads);
  if (threads > 1 && work.step > fair) work.step = fair;
  cpu::run_parts((rows + work.step - 1) / work.step, threads,
                 [](void* context, std::int64_t i, Workspace& workspace) {
                   const Work& work = *static_cast<Work*>(context);
                   const SampleJob& job = work.steps.job;
                   workspace.reset();
                   char* const memory = cpu::take<char>(workspace, job.row_bytes);
                   SampleScratch scratch(job, workspace, std::min(kBlock, work.steps.draws));
                   const std::int64_t end = std::min(job.plan.rows, (i + 1) * work.step);
                   for (std::int64_t r = i * work.step, next; r < end; r = next) {
                     next = std::min(end, r + std::max(1, job.together));
                     if (job.together) {
                       draw_together(work.steps, r, next, memory, scratch);
                     } else {
                       SampleRow row(job, r, memory);
                       work.steps.whole(row, scratch);
                     }
                   }
                 },
                 &work);
}

}  // namespace

Status sample(const SampleCall& call) noexcept {
  const cpu::DefaultFloatingPoint mode;
  Plan plan;
  if (Status status = make_plan(call, nullptr, nullptr, plan); !status.ok()) return status;
  if (plan.rows == 0) return Status{};
  if (call.num_samples && !call.out) return fail(Code::invalid_argument, "out is missing");
  const SampleJob job(call, plan, SampleJob::kDraws);
  Failure failure;
  const Status done = cpu::with_scratch([&] { run_steps({job, failure, call.num_samples, false}); });
  if (!done.ok()) return done;
  return failure.status(job);
}

Status sample_counts(const SampleCall& call, std::int64_t* counts, const std::int64_t* strides) noexcept {
  const cpu::DefaultFloatingPoint mode;
  Plan plan;
  if (!counts && call.shape)
    for (int d = 0; d < call.ndim; ++d)
      if (call.shape[d] == 0) return Status{};
  if (!counts) return fail(Code::invalid_argument, "counts is missing");
  if (Status status = make_plan(call, counts, strides, plan); !status.ok()) return status;
  if (plan.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "sample_counts"); !status.ok()) return status;
  const SampleJob job(call, plan, SampleJob::kCounts);
  Failure failure;
  const Status done = cpu::with_scratch([&] { run_steps({job, failure, 0, true}); });
  if (!done.ok()) return done;
  return failure.status(job);
}

std::int64_t chunk_classes(DType dtype) noexcept { return cpu::order_of(dtype == DType::f64 ? 8 : 4).chunk; }
std::int64_t piece_state_bytes(DType dtype) noexcept {
  return SUMEXP_IN_USE(cpu::sampling_kernels_).of[dtype == DType::f64].state_bytes;
}

namespace {

// body(row, r, scratch) for every row.
template <class Body>
Status each_row(const SampleJob& job, Body body) {
  struct Work {
    const SampleJob& job;
    Body& body;
    std::int64_t step;
  } work = {job, body, std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(1, job.plan.n))};
  return cpu::with_scratch([&] {
    cpu::run_parts((job.plan.rows + work.step - 1) / work.step, cpu::threads_for(job.plan.rows * job.plan.n),
                   [](void* context, std::int64_t i, Workspace& workspace) {
                     Work& work = *static_cast<Work*>(context);
                     workspace.reset();
                     char* const memory = cpu::take<char>(workspace, work.job.row_bytes);
                     SampleScratch scratch(work.job, workspace, 1);
                     const std::int64_t end = std::min(work.job.plan.rows, (i + 1) * work.step);
                     for (std::int64_t r = i * work.step; r < end; ++r) {
                       SampleRow row(work.job, r, memory);
                       work.body(row, r, scratch);
                     }
                   },
                   &work);
  });
}

// Pieces draw from sums of exponentials, which have no temperature 0.
Status check_heat(const SampleCall& call, std::int64_t rows) {
  const bool wide = call.dtype == DType::f64;
  bool (*const good)(double) = wide ? [](double t) { return t > 0; } : [](double t) { return static_cast<float>(t) > 0; };
  std::int64_t row;
  const double* const t = first_bad<double>(call.temperature, rows, good, &row);
  if (!t) return Status{};
  return fail(Code::invalid_argument, "temperature is %g for row %lld, accepted in pieces: numbers above 0 in %s", *t,
              static_cast<long long>(row), wide ? "float64" : "float32");
}

}  // namespace

Status sample_probabilities(const SampleCall& call, double* probabilities) noexcept {
  const cpu::DefaultFloatingPoint mode;
  Plan plan;
  if (Status status = make_plan(call, nullptr, nullptr, plan); !status.ok()) return status;
  if (plan.rows == 0) return Status{};
  if (!probabilities) return fail(Code::invalid_argument, "probabilities is missing");
  const SampleJob job(call, plan, SampleJob::kProbabilities);
  Failure failure;
  const Status status = each_row(job, [&](SampleRow& row, std::int64_t r, SampleScratch& scratch) {
    row.prepare(scratch, failure);
    if (failure.reached(r)) return;
    row.reduce(0, job.chunks, scratch);
    row.finish(scratch, failure);
    if (!failure.reached(r)) row.probabilities(probabilities + r * job.plan.n, scratch);
  });
  return status.ok() ? failure.status(job) : status;
}

Status sample_piece(const SampleCall& call, std::int64_t chunk, std::int64_t chunks, void* states,
                    std::int16_t* classes) noexcept {
  const cpu::DefaultFloatingPoint mode;
  Plan plan;
  if (Status status = make_plan(call, nullptr, nullptr, plan); !status.ok()) return status;
  if (plan.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "sample_piece"); !status.ok()) return status;
  const SampleJob job(call, plan, SampleJob::kPieces);
  if (const Status status = cpu::check_piece(call, chunk, job.chunks, chunks, states, classes); !status.ok()) return status;
  if (const Status status = check_heat(call, plan.rows); !status.ok()) return status;
  Failure failure;
  const Status status = each_row(job, [&](SampleRow& row, std::int64_t r, SampleScratch& scratch) {
    const std::int64_t at = r * chunks + chunk;
    row.piece(static_cast<char*>(states) + at * job.kernels.state_bytes, classes + at * call.num_samples, scratch, failure);
  });
  return status.ok() ? failure.status(job) : status;
}

Status finish_pieces(const SampleCall& call, std::int64_t chunks, const void* states, const std::int16_t* classes) noexcept {
  const cpu::DefaultFloatingPoint mode;
  Plan plan;
  if (Status status = make_plan(call, nullptr, nullptr, plan, false); !status.ok()) return status;
  if (plan.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "finish_pieces"); !status.ok()) return status;
  const SampleJob job(call, plan, SampleJob::kPieces);
  if (const Status status = cpu::check_finish(call, job.chunks, chunks, states, classes); !status.ok()) return status;
  if (const Status status = check_heat(call, plan.rows); !status.ok()) return status;
  Failure failure;
  const Status status = each_row(job, [&](SampleRow& row, std::int64_t r, SampleScratch&) {
    row.draw_pieces(static_cast<const char*>(states) + r * chunks * job.kernels.state_bytes,
                    classes + r * chunks * call.num_samples, failure);
  });
  return status.ok() ? failure.status(job) : status;
}

Status gumbel_noise(PerRow<std::uint64_t> seed, PerRow<std::int64_t> stream, std::int64_t rows, std::int64_t n,
                    double* out) noexcept {
  const cpu::DefaultFloatingPoint mode;
  if (const Status status = cpu::check_noise(seed, rows, n, out); !status.ok()) return status;
  if (rows == 0 || n == 0) return Status{};
  struct Work {
    PerRow<std::uint64_t> seed;
    PerRow<std::int64_t> stream;
    std::int64_t n, parts;
    double* out;
    void (*gumbel)(const double*, const double*, std::int64_t, double*);
  } work = {seed, stream, n, (n + kPart - 1) / kPart, out, SUMEXP_IN_USE(cpu::sampling_kernels_).gumbel};
  return cpu::with_scratch([&] {
    cpu::run_parts(
        rows * work.parts, cpu::threads_for(rows * n * 16),
        [](void* context, std::int64_t i, Workspace&) {
          using namespace SUMEXP_NS;
          const Work& work = *static_cast<Work*>(context);
          const std::int64_t row = i / work.parts, first = i % work.parts * kPart;
          const std::int64_t count = std::min(kPart, work.n - first);
          const RowRandom random = {
              work.seed.data[row * work.seed.step],
              static_cast<std::uint64_t>(work.stream.data ? work.stream.data[row * work.stream.step] : row)};
          double low[kPart], high[kPart];
          for (std::int64_t j = 0; j < count; ++j) {
            const Uniforms u = noise_uniforms(random, first + j);
            low[j] = u.low, high[j] = u.high;
          }
          work.gumbel(low, high, count, work.out + row * work.n + first);
        },
        &work);
  });
}

}  // namespace sumexp
