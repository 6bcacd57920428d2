// Products in the log domain (include/sumexp/log_matmul.hpp): checks, and tiles to threads.
#include "../../include/sumexp/log_matmul.hpp"

#include <new>

#include "../isa.hpp"
#include "../kernels/logmatmul.hpp"
#include "../plan.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"

namespace sumexp {

namespace {

using cpu::fail;

constexpr std::int64_t kTaskTerms = 1 << 17;  // of a task, k of each result

Status check(const LogMatmul& call, std::int64_t& products) {
  const int code = static_cast<int>(call.dtype);
  if (code < 0 || code > 3)
    return fail(Code::invalid_argument, "dtype: got code %d; accepted are 0 to 3 (f16, bf16, f32, f64)", code);
  if (call.batch_dims < 0 || call.batch_dims > kMaxDims - 2)
    return fail(Code::invalid_argument, "batch_dims: got %d; accepted are 0 to %d", call.batch_dims, kMaxDims - 2);
  if (call.batch_dims && !call.batch_shape)
    return fail(Code::invalid_argument, "batch_shape: missing; batch_dims is %d", call.batch_dims);
  const std::int64_t sizes[3] = {call.m, call.k, call.n};
  products = 1;
  std::int64_t bytes[3] = {1, 1, 1};
  bool fits = true, none = false;
  const auto times = [&](std::int64_t& to, std::int64_t size) { fits &= !(size && __builtin_mul_overflow(to, size, &to)); };
  for (int d = 0; d < call.batch_dims; ++d) {
    const std::int64_t size = call.batch_shape[d];
    if (size < 0)
      return fail(Code::invalid_argument, "batch_shape: dimension %d is %lld; accepted are sizes from 0", d,
                  static_cast<long long>(size));
    none |= size == 0;
    times(products, size);
  }
  for (int s = 0; s < 3; ++s)
    if (sizes[s] < 0)
      return fail(Code::invalid_argument, "%c: got %lld; accepted are sizes from 0", "mkn"[s],
                  static_cast<long long>(sizes[s]));
  for (int s = 0; s < 3; ++s) {
    bytes[s] = products;
    times(bytes[s], 8), times(bytes[s], sizes[s]), times(bytes[s], sizes[(s + 1) % 3]);
  }
  if (!fits) return fail(Code::invalid_argument, "shape: has more bytes than 63 bits can count");
  if (none) products = 0;
  if (!products || !call.m || !call.n) return Status{};
  const View* views[3] = {&call.a, &call.b, &call.out};
  for (int v = call.k ? 0 : 2; v < 3; ++v) {
    constexpr const char* kNames[3] = {"a", "b", "out"};
    if (!views[v]->data) return fail(Code::invalid_argument, "%s: missing", kNames[v]);
    if (!views[v]->strides) return fail(Code::invalid_argument, "%s: has no strides", kNames[v]);
  }
  return Status{};
}

struct Work {
  const LogMatmul& call;
  const cpu::LogMatmulKernels& kernels;
  std::int64_t down, across, tiles, step;  // tiles: of all products
  int rows, columns;                       // of a tile, at most

  cpu::Product product(std::int64_t index) const {
    static constexpr std::int64_t kNowhere[kMaxDims] = {};
    const View* views[3] = {&call.a, &call.b, &call.out};
    char* at[3];
    const std::int64_t* strides[3];
    for (int v = 0; v < 3; ++v) at[v] = static_cast<char*>(views[v]->data), strides[v] = at[v] ? views[v]->strides : kNowhere;
    for (int d = call.batch_dims - 1; d >= 0; --d) {
      const std::int64_t i = index % call.batch_shape[d];
      index /= call.batch_shape[d];
      for (int v = 0; v < 3; ++v) at[v] += i * strides[v][d];
    }
    const int d = call.batch_dims;
    return {at[0],         at[1],
            at[2],         call.k,
            strides[0][d], strides[0][d + 1],
            strides[1][d], strides[1][d + 1],
            strides[2][d], strides[2][d + 1]};
  }
  void run(std::int64_t tile, void* scratch) const {
    const std::int64_t of_product = tile % (down * across), row = of_product / across * rows,
                       column = of_product % across * columns;
    const auto least = [](std::int64_t left, int most) { return static_cast<int>(left < most ? left : most); };
    kernels.tile[static_cast<int>(call.dtype)](product(tile / (down * across)), row, least(call.m - row, rows), column,
                                               least(call.n - column, columns), scratch);
  }
};

void run(const LogMatmul& call, std::int64_t products) {
  Work work = {call, SUMEXP_IN_USE(cpu::log_matmul_kernels_), 0, 0, 0, 0, 0, 0};
  const auto shared_out = [](std::int64_t size, int most, int& each) {
    const std::int64_t parts = (size + most - 1) / most;
    each = static_cast<int>((size + parts - 1) / parts);
    return parts;
  };
  work.down = shared_out(call.m, cpu::kTileRows, work.rows);
  work.across = shared_out(call.n, cpu::kTileColumns, work.columns);
  work.tiles = products * work.down * work.across;
  // A multiplication of a term costs a tenth of an exponential, or a half in double.
  const std::int64_t terms = std::int64_t{work.rows} * work.columns * (call.k + 8);
  work.step = kTaskTerms / terms;
  if (work.step < 1) work.step = 1;
  const int share = call.dtype == DType::f64 ? 4 : 16;
  const double cost = static_cast<double>(terms) / share * static_cast<double>(work.tiles);
  cpu::run_parts(
      (work.tiles + work.step - 1) / work.step, cpu::threads_for(cost < 1e15 ? static_cast<long long>(cost) : 1LL << 50),
      [](void* context, std::int64_t task, cpu::Workspace& workspace) {
        const Work& work = *static_cast<Work*>(context);
        workspace.reset();
        void* const scratch = workspace.take_bytes(
            static_cast<std::size_t>(work.kernels.scratch_bytes(work.call.dtype == DType::f64, work.rows, work.columns)));
        for (std::int64_t i = task * work.step; i < (task + 1) * work.step && i < work.tiles; ++i) work.run(i, scratch);
      },
      &work);
}

}  // namespace

Status logmatmulexp(const LogMatmul& call) noexcept {
  const cpu::DefaultFloatingPoint mode;
  std::int64_t products = 0;
  Status status = check(call, products);
  if (!status.ok() || products == 0 || call.m == 0 || call.n == 0) return status;
  try {
    run(call, products);
  } catch (const std::bad_alloc&) {
    return fail(Code::out_of_memory, "logmatmulexp: no memory for scratch space; out may be partly written");
  }
  return status;
}

}  // namespace sumexp
