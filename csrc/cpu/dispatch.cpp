// The public functions: from a call to a plan, whose rows are split among threads.
#include <new>
#include <type_traits>

#include "../ops/jacobians.hpp"
#include "drivers/driver.hpp"
#include "isa.hpp"
#include "status.hpp"
#include "threads/floating_point.hpp"
#include "threads/pool.hpp"

namespace sumexp {

namespace {

using cpu::fail;
using cpu::is_countable;

// Elements of a task: enough to amortise a driver, few enough to balance.
constexpr std::int64_t kTaskElements = 1 << 16;
// Rows of a task, about, that are written one while the next is reduced, all but its last.
constexpr std::int64_t kOverlappedRows = 64;
// A row this long is worth splitting when there are not rows enough for the threads.
constexpr std::int64_t kSplitElements = 1 << 18;
// ... or columns with so many elements, more than a thread's cache has room for.
constexpr std::int64_t kSplitColumns = 1 << 20;

void run_rows(const cpu::Plan& plan) {
  const cpu::Job job(plan, SUMEXP_IN_USE(cpu::kernels_));
  const int threads = cpu::threads_for(plan.rows * plan.n);
  if (threads < 2) return cpu::run_rows(job, 0, plan.rows, cpu::thread_workspace());
  // Rows side by side are dealt out by whole lines, many from the first line on, so that no two threads share one; as many
  // together as the driver takes (drivers/columns.hpp), if there are enough for all threads.
  constexpr std::int64_t kLine = 64;
  const std::int64_t item = job.item, group = plan.columns ? kLine / item : 1;
  const bool few = plan.rows < threads * (plan.columns ? group : 2);
  // Columns that a driver takes together are taken from memory together, so that threads share their length.
  const bool narrow = plan.columns && plan.batch_dims == 1 && plan.rows * item <= cpu::kColumnRun &&
                      plan.rows * plan.n >= kSplitColumns && cpu::can_split(job, threads);
  if (narrow || (few && plan.n >= kSplitElements)) return cpu::split_rows(job, threads);

  struct Work {
    const cpu::Job& job;
    std::int64_t head, step;
  } work = {job, plan.columns ? plan.rows_to_boundary(0, kLine) : 0, 0};
  std::int64_t step = kTaskElements / (plan.n ? plan.n : 1);
  if (plan.columns) {  // equal shares, of about a step
    if (step < cpu::kColumnRun / item) step = cpu::kColumnRun / item;
    const std::int64_t fair = (plan.rows + threads - 1) / threads, pieces = (fair + step - 1) / step;
    const std::int64_t multiple = group < 16 ? 16 : group;  // whole tiles
    work.step = ((fair + pieces - 1) / pieces + multiple - 1) / multiple * multiple;
  } else if (job.overlaps) {  // equal shares: such tasks are long
    const std::int64_t fair = (plan.rows + threads - 1) / threads, pieces = 1 + (fair - 1) / kOverlappedRows;
    work.step = (fair + pieces) / (pieces + 1);
  } else {
    const std::int64_t shares = 2 * std::int64_t{threads}, fair = (plan.rows + shares - 1) / shares;
    if (step > fair) step = fair;
    work.step = step < 1 ? 1 : step < 16 ? step : step / 16 * 16;  // whole panels
  }
  const std::int64_t after_head = plan.rows > work.head ? plan.rows - work.head : 1;
  cpu::run_parts((after_head + work.step - 1) / work.step, threads,
                 [](void* context, std::int64_t i, cpu::Workspace& workspace) {
                   const Work& work = *static_cast<Work*>(context);
                   const std::int64_t begin = i ? work.head + i * work.step : 0, end = work.head + (i + 1) * work.step;
                   cpu::run_rows(work.job, begin, end < work.job.plan.rows ? end : work.job.plan.rows, workspace);
                 },
                 &work);
}

// The result of a temperature whose factor was more than the type has numbers for.
void multiply_late(const cpu::Plan& plan) {
  const cpu::Moves& moves = *SUMEXP_IN_USE(cpu::kernels_).moves[static_cast<int>(plan.dtype)];
  constexpr int kCount = 256;
  for (std::int64_t r = 0; r < plan.rows; ++r) {
    char* const row = static_cast<char*>(plan.data[cpu::kOut]) + plan.row_offsets(r).at[cpu::kOut];
    for (std::int64_t first = 0; first < plan.n; first += kCount) {
      const int count = static_cast<int>(plan.n - first < kCount ? plan.n - first : kCount);
      const auto multiply = [&](auto* x) {
        moves.pack_row(plan, cpu::kOut, row, first, count, x);
        const auto late = static_cast<std::remove_reference_t<decltype(*x)>>(plan.late);
        for (int i = 0; i < count; ++i) x[i] = x[i] * late * late;
        moves.unpack_row(plan, cpu::kOut, row, first, count, x);
      };
      double x[kCount];
      if (plan.dtype == DType::f64) multiply(x);
      else multiply(reinterpret_cast<float*>(x));
    }
  }
}

void run_plan(const cpu::Plan& plan) {
  run_rows(plan);
  if (plan.late != 1.0) multiply_late(plan);
#if defined(__x86_64__)
  // Non-temporal stores are not ordered before later ones: whoever is told of the result must find it. (What other
  // threads wrote, the locked instructions of the pool have ordered.)
  if (plan.stream) __builtin_ia32_sfence();
#endif
}

Status simple(Op op, const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis, double temperature) {
  if (const Status status = cpu::check_shape(dtype, ndim, shape, axis); !status.ok()) return status;
  const int on = axis < 0 ? axis + ndim : axis;
  std::int64_t in_strides[kMaxDims], out_strides[kMaxDims];
  std::int64_t in_step = cpu::item_size(dtype), out_step = in_step;
  for (int d = ndim - 1; d >= 0; --d) {
    in_strides[d] = in_step, out_strides[d] = out_step;
    in_step *= shape[d];
    if (op != Op::logsumexp || d != on) out_step *= shape[d];
  }
  Call call;
  call.op = op, call.dtype = dtype, call.ndim = ndim, call.shape = shape;
  call.axes = std::uint64_t(1) << on;
  call.in[0] = {const_cast<void*>(x), in_strides};
  call.out = {out, out_strides};
  call.temperature = temperature;
  return run(call);
}

template <class T>
void matrix_rows(Matrix which, const T* y, T* out, std::int64_t rows, std::int64_t n) {
  using namespace sumexp::SUMEXP_NS;
  for (std::int64_t r = 0; r < rows; ++r, y += n) {
    const T others = which == Matrix::log_softmax_jacobian ? T(0) : sum_of_others(y, n);
    for (std::int64_t i = 0; i < n; ++i, out += n)
      for (std::int64_t j = 0; j < n; ++j)
        out[j] = which == Matrix::log_softmax_jacobian ? log_softmax_jacobian(y[j], i == j)
                                                       : softmax_jacobian(y[i], y[j], others, i == j);
  }
}

}  // namespace

Status run(const Call& call) noexcept {
  const cpu::DefaultFloatingPoint mode;
  cpu::Plan plan;
  Status status = cpu::make_plan(call, plan);
  if (!status.ok()) return status;
  const cpu::OpInfo& info = cpu::op_info(plan.op);
  if (info.index) status = cpu::check_indices(plan);
  if (!status.ok() || plan.rows == 0 || (plan.n == 0 && !info.row_output)) return status;
  return cpu::with_scratch([&] { run_plan(plan); });
}

Status matrix(Matrix which, DType dtype, const void* y, void* out, std::int64_t rows, std::int64_t n) noexcept {
  const cpu::DefaultFloatingPoint mode;
  const int code = static_cast<int>(which);
  if (which != Matrix::softmax_jacobian && which != Matrix::log_softmax_jacobian && which != Matrix::logsumexp_hessian)
    return fail(Code::invalid_argument, "which is code %d, accepted: 0 to 2", code);
  if (rows < 0 || n < 0) return fail(Code::invalid_argument, "%s is negative, accepted: sizes from 0", rows < 0 ? "rows" : "n");
  if (rows && !is_countable(8, {rows, n, n}))
    return fail(Code::invalid_argument, "rows, n: matrices have more bytes than 63 bits can count");
  if (rows && n && (!y || !out)) return fail(Code::invalid_argument, "%s is missing", y ? "out" : "y");
  if (dtype == DType::f32) {
    matrix_rows(which, static_cast<const float*>(y), static_cast<float*>(out), rows, n);
  } else if (dtype == DType::f64) {
    matrix_rows(which, static_cast<const double*>(y), static_cast<double*>(out), rows, n);
  } else {
    return fail(Code::unsupported, "dtype is code %d, accepted: 2 and 3 (f32, f64)", static_cast<int>(dtype));
  }
  return Status{};
}

Status softmax(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis,
               double temperature) noexcept {
  return simple(Op::softmax, x, out, dtype, ndim, shape, axis, temperature);
}
Status log_softmax(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis,
                   double temperature) noexcept {
  return simple(Op::log_softmax, x, out, dtype, ndim, shape, axis, temperature);
}
Status logsumexp(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis) noexcept {
  return simple(Op::logsumexp, x, out, dtype, ndim, shape, axis, 1.0);
}

const char* version() noexcept { return SUMEXP_VERSION; }

}  // namespace sumexp
