// The public functions: chooses an instruction set once, splits rows among threads.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../ops/jacobians.hpp"
#include "drivers/driver.hpp"
#include "status.hpp"
#include "threads/floating_point.hpp"
#include "threads/pool.hpp"

namespace sumexp {

namespace {

using cpu::Kernels;

#if defined(SUMEXP_HAVE_avx2) || defined(SUMEXP_HAVE_avx512)
// What the files of both are compiled with. F16C from CPUID: clang's __builtin_cpu_supports does not know it.
bool has_avx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Best last. `usable` asks the CPU.
struct Isa {
  const char* name;
  const Kernels& (*kernels)();
  bool (*usable)();
};
const Isa kIsas[] = {
#if defined(SUMEXP_HAVE_scalar_fma)
    {"scalar",
     [](void) -> const Kernels& { return __builtin_cpu_supports("fma") ? cpu::kernels_scalar_fma() : cpu::kernels_scalar(); },
     [] { return true; }},
#else
    {"scalar", cpu::kernels_scalar, [] { return true; }},
#endif
#if defined(SUMEXP_HAVE_avx2)
    {"avx2", cpu::kernels_avx2, has_avx2},
#endif
#if defined(SUMEXP_HAVE_avx512)
    {"avx512", cpu::kernels_avx512,
     [] {
       return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#if defined(SUMEXP_HAVE_neon)
    {"neon", cpu::kernels_neon, [] { return true; }},
#endif
};

using cpu::fail;

// The chosen row of kIsas.
std::atomic<const Isa*> g_isa{nullptr};
std::atomic<int> g_threads{0};

std::string list_isas(bool usable_only) {
  std::string text;
  for (const Isa& isa : kIsas) {
    if (usable_only && !isa.usable()) continue;
    if (!text.empty()) text += ',';
    text += isa.name;
  }
  return text;
}

// SUMEXP_ISA, if it names a usable one; else the best.
const Isa* choose() {
  const char* wanted = std::getenv("SUMEXP_ISA");
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) {
    if (!isa.usable()) continue;
    best = &isa;
    if (wanted && std::strcmp(wanted, isa.name) == 0) return best;
  }
  return best;
}

const Isa& current_isa() {
  const Isa* current = g_isa.load(std::memory_order_acquire);
  if (!current) g_isa.store(current = choose(), std::memory_order_release);
  return *current;
}

// Elements that are worth a thread: some 15 microseconds. Waking one takes 10 of the caller's time on a virtual machine, and
// 20 to 60 until it runs: two threads on 2^17 elements are as fast as one, on 2^18 they take 0.8 of the time (Zen 4, 2026-11).
constexpr std::int64_t kThreadElements = 1 << 16;
// Elements of a task: enough to amortise a driver, few enough to balance.
constexpr std::int64_t kTaskElements = 1 << 16;
// A row this long is worth splitting when there are not rows enough for the threads.
constexpr std::int64_t kSplitElements = 1 << 18;

void run_rows(const cpu::Plan& plan) {
  const cpu::Job job(plan, current_isa().kernels());
  const std::int64_t elements = plan.rows * plan.n, worth = elements / kThreadElements;
  const int threads = worth < get_num_threads() ? static_cast<int>(worth) : get_num_threads();
  if (threads < 2) return cpu::run_rows(job, 0, plan.rows, cpu::thread_workspace());
  // Rows side by side are dealt out by whole lines, from the first line on, so that no two threads share one; as many
  // together as the driver takes (drivers/columns.hpp), if there are enough for all threads.
  constexpr std::int64_t kLine = 64;
  const std::int64_t item = job.item, group = plan.columns ? kLine / item : 1;
  const bool few = plan.rows < threads * (plan.columns ? group : 2);
  if (few && plan.n >= kSplitElements) return cpu::split_rows(job, threads);

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

void run_plan(const cpu::Plan& plan) {
  run_rows(plan);
#if defined(__x86_64__)
  // Non-temporal stores are not ordered before later ones: whoever is told of the result must find it. (What other
  // threads wrote, the locked instructions of the pool have ordered.)
  if (plan.stream) __builtin_ia32_sfence();
#endif
}

Status simple(Op op, const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis, double temperature) {
  if (ndim < 1 || ndim > kMaxDims || axis < -ndim || axis >= ndim)
    return fail(Code::invalid_argument, "axis: got %d for ndim = %d; accepted are -ndim to ndim - 1, ndim 1 to %d", axis, ndim,
                kMaxDims);
  if (!shape) return fail(Code::invalid_argument, "shape: missing; ndim is %d", ndim);
  const int on = axis < 0 ? axis + ndim : axis;
  std::int64_t in_strides[kMaxDims], out_strides[kMaxDims];
  std::int64_t item = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2, in_step = item, out_step = item;
  for (int d = ndim - 1; d >= 0; --d) {
    in_strides[d] = in_step, out_strides[d] = out_step;  // where they overflow, make_plan refuses the shape
    (void)__builtin_mul_overflow(in_step, shape[d], &in_step);
    if (op != Op::logsumexp || d != on) (void)__builtin_mul_overflow(out_step, shape[d], &out_step);
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
  if (status.ok()) status = cpu::check_indices(plan);
  if (!status.ok() || plan.rows == 0) return status;
  if (plan.n == 0 && !cpu::op_info(plan.op).row_output) return status;
  try {
    run_plan(plan);
  } catch (const std::bad_alloc&) {
    return fail(Code::out_of_memory, "%s: no memory for scratch space; out may be partly written", cpu::op_info(plan.op).name);
  }
  return status;
}

Status matrix(Matrix which, DType dtype, const void* y, void* out, std::int64_t rows, std::int64_t n) noexcept {
  const cpu::DefaultFloatingPoint mode;
  const int code = static_cast<int>(which);
  if (which != Matrix::softmax_jacobian && which != Matrix::log_softmax_jacobian && which != Matrix::logsumexp_hessian)
    return fail(Code::invalid_argument, "which: got code %d; accepted are 0 to 2", code);
  if (rows < 0 || n < 0)
    return fail(Code::invalid_argument, "%s: got a negative number; accepted are sizes from 0", rows < 0 ? "rows" : "n");
  if (rows && n && (!y || !out)) return fail(Code::invalid_argument, "%s: missing", y ? "out" : "y");
  if (dtype == DType::f32) {
    matrix_rows(which, static_cast<const float*>(y), static_cast<float*>(out), rows, n);
  } else if (dtype == DType::f64) {
    matrix_rows(which, static_cast<const double*>(y), static_cast<double*>(out), rows, n);
  } else {
    return fail(Code::unsupported, "dtype: got code %d; accepted are 2 and 3 (f32, f64)", static_cast<int>(dtype));
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

Status set_num_threads(int n) noexcept {
  if (n < 1) return fail(Code::invalid_argument, "n: got %d; accepted are integers from 1", n);
  g_threads.store(n);
  return Status{};
}
int get_num_threads() noexcept {
  int n = g_threads.load(std::memory_order_relaxed);
  if (n == 0) g_threads.store(n = cpu::default_threads());
  return n;
}

const char* isa() noexcept { return current_isa().name; }
const char* compiled_isas() noexcept {
  static const std::string text = list_isas(false);
  return text.c_str();
}
const char* usable_isas() noexcept {
  static const std::string text = list_isas(true);
  return text.c_str();
}
Status set_isa(const char* name) noexcept {
  for (const Isa& isa : kIsas)
    if (name && std::strcmp(isa.name, name) == 0 && isa.usable()) {
      g_isa.store(&isa);
      return Status{};
    }
  return fail(Code::invalid_argument, "isa: got '%.40s'; accepted on this machine are %s", name ? name : "nullptr",
              usable_isas());
}
const char* version() noexcept { return SUMEXP_VERSION; }

}  // namespace sumexp
