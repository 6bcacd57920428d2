// Products in the log domain (include/sumexp/log_matmul.hpp): checks, and tiles to threads.
#include "../../include/sumexp/log_matmul.hpp"

#include <new>
#include <vector>

#include "../isa.hpp"
#include "../kernels/logmatmul.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"

namespace sumexp {

namespace {

using cpu::fail;

Status check(const LogMatmul& call, std::int64_t& products) {
  if (!cpu::is_dtype(call.dtype)) return cpu::bad_dtype("dtype", call.dtype);
  if (call.batch_dims < 0 || call.batch_dims > kMaxDims - 2)
    return fail(Code::invalid_argument, "batch_dims is %d, accepted: 0 to %d", call.batch_dims, kMaxDims - 2);
  if (call.batch_dims && !call.batch_shape)
    return fail(Code::invalid_argument, "batch_shape is missing; batch_dims is %d", call.batch_dims);
  const std::int64_t sizes[3] = {call.m, call.k, call.n};
  products = 1;
  std::int64_t bytes[3] = {1, 1, 1};
  bool fits = true, none = false;
  const auto times = [&](std::int64_t& to, std::int64_t size) { fits &= !(size && __builtin_mul_overflow(to, size, &to)); };
  for (int d = 0; d < call.batch_dims; ++d) {
    const std::int64_t size = call.batch_shape[d];
    if (size < 0)
      return fail(Code::invalid_argument, "batch_shape: dimension %d is %lld, accepted: sizes from 0", d,
                  static_cast<long long>(size));
    none |= size == 0;
    times(products, size);
  }
  for (int s = 0; s < 3; ++s)
    if (sizes[s] < 0)
      return fail(Code::invalid_argument, "%c is %lld, accepted: sizes from 0", "mkn"[s], static_cast<long long>(sizes[s]));
  for (int s = 0; s < 3; ++s) {
    bytes[s] = products;
    times(bytes[s], 8), times(bytes[s], sizes[s]), times(bytes[s], sizes[(s + 1) % 3]);
  }
  if (!fits) return fail(Code::invalid_argument, "shape has more bytes than 63 bits can count");
  if (none) products = 0;
  if (!products || !call.m || !call.n) return Status{};
  const View* views[3] = {&call.a, &call.b, &call.out};
  for (int v = call.k ? 0 : 2; v < 3; ++v) {
    constexpr const char* kNames[3] = {"a", "b", "out"};
    if (!views[v]->data) return fail(Code::invalid_argument, "%s is missing", kNames[v]);
    if (!views[v]->strides) return fail(Code::invalid_argument, "%s has no strides", kNames[v]);
  }
  return Status{};
}

// Where product `index` of a batch has its matrix.
char* place(const LogMatmul& call, const View& view, std::int64_t index) {
  char* at = static_cast<char*>(view.data);
  for (int d = call.batch_dims - 1; at && d >= 0; --d) {
    at += index % call.batch_shape[d] * view.strides[d];
    index /= call.batch_shape[d];
  }
  return at;
}
struct Steps {
  std::int64_t row, column;
};
Steps steps(const LogMatmul& call, const View& view) {
  if (!view.data) return {0, 0};
  return {view.strides[call.batch_dims], view.strides[call.batch_dims + 1]};
}

// Matrices in tiles of about equal size, of `products` products.
struct Tiling {
  std::int64_t down, across, all;
  int rows, columns;

  Tiling(std::int64_t products, std::int64_t m, std::int64_t n)
      : down(parts(m, cpu::kTileRows, rows)), across(parts(n, cpu::kTileColumns, columns)), all(products * down * across) {
    m_ = m, n_ = n;
  }

  // body(product, row, rows, column, columns, scratch) for each, on the threads. A tile's work: as `cost` exponentials.
  template <class Body>
  void run(const cpu::LogMatmulKernels& kernels, double cost, Body body) const {
    struct Work {
      const Tiling& tiling;
      const cpu::LogMatmulKernels& kernels;
      Body& body;
      std::int64_t step;
    } work = {*this, kernels, body, static_cast<std::int64_t>(kTaskCost / (cost + 1.0)) + 1};
    const double whole = cost * static_cast<double>(all);
    cpu::run_parts((all + work.step - 1) / work.step, cpu::threads_for(static_cast<long long>(whole < 1e15 ? whole : 1e15)),
                   [](void* context, std::int64_t task, cpu::Workspace& workspace) {
                     const Work& work = *static_cast<Work*>(context);
                     const Tiling& t = work.tiling;
                     workspace.reset();
                     void* const scratch =
                         workspace.take_bytes(static_cast<std::size_t>(work.kernels.scratch_bytes(t.rows, t.columns)));
                     for (std::int64_t i = task * work.step; i < (task + 1) * work.step && i < t.all; ++i) {
                       const std::int64_t tile = i % (t.down * t.across), row = tile / t.across * t.rows,
                                          column = tile % t.across * t.columns;
                       work.body(i / (t.down * t.across), row, least(t.m_ - row, t.rows), column,
                                 least(t.n_ - column, t.columns), scratch);
                     }
                   },
                   &work);
  }

 private:
  static constexpr double kTaskCost = 1 << 13;
  static int least(std::int64_t left, int most) { return static_cast<int>(left < most ? left : most); }
  static std::int64_t parts(std::int64_t size, int most, int& each) {
    const std::int64_t count = (size + most - 1) / most;
    each = count ? static_cast<int>((size + count - 1) / count) : 0;
    return count;
  }
  std::int64_t m_, n_;
};

class Products {
 public:
  explicit Products(const LogMatmul& call)
      : call_(call), kernels_(SUMEXP_IN_USE(cpu::log_matmul_kernels_)), code_(static_cast<int>(call.dtype)) {}

  cpu::Product product(std::int64_t index) const {
    const Steps a = steps(call_, call_.a), b = steps(call_, call_.b), out = steps(call_, call_.out);
    return {place(call_, call_.a, index),
            place(call_, call_.b, index),
            place(call_, call_.out, index),
            call_.k,
            a.row,
            a.column,
            b.row,
            b.column,
            out.row,
            out.column};
  }

  void forward(std::int64_t products) const {
    const Tiling tiling(products, call_.m, call_.n);
    tiling.run(kernels_, cost(tiling, call_.k, call_.dtype == DType::f64 ? 4 : 16),
               [&](std::int64_t p, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch) {
                 kernels_.tile[code_](product(p), row, rows, column, columns, scratch);
               });
  }
  void jvp(std::int64_t products, const View& ta, const View& tb) const {
    const Tiling tiling(products, call_.m, call_.n);
    const Steps a = steps(call_, ta), b = steps(call_, tb);
    tiling.run(kernels_, cost(tiling, call_.k, 4),
               [&](std::int64_t p, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch) {
                 const cpu::Tangents tangents = {place(call_, ta, p), place(call_, tb, p), a.row, a.column, b.row, b.column};
                 kernels_.jvp[code_](product(p), tangents, row, rows, column, columns, scratch);
               });
  }
  void vjp(std::int64_t products, const View& da, const View& db) const {
    const std::int64_t m = call_.m, n = call_.n, results = m * n;
    std::int64_t together = (1 << 20) / results + 1;  // products whose weights wait
    if (together > products) together = products;
    std::vector<double> weights(static_cast<std::size_t>(together * results));
    std::vector<char> far(static_cast<std::size_t>(together * results));
    std::vector<cpu::Line> rows(static_cast<std::size_t>(together * m)), columns(static_cast<std::size_t>(together * n));
    const Steps out = steps(call_, call_.out);
    for (std::int64_t first = 0; first < products; first += together) {
      const std::int64_t some = products - first < together ? products - first : together;
      const Tiling tiling(some, m, n);
      tiling.run(kernels_, cost(tiling, call_.k, 16),
                 [&](std::int64_t p, std::int64_t row, int r, std::int64_t column, int c, void* scratch) {
                   const cpu::Weights to = {
                       place(call_, call_.out, first + p), out.row, out.column,          weights.data() + p * results,
                       far.data() + p * results,           n,       rows.data() + p * m, columns.data() + p * n};
                   kernels_.weigh[code_](product(first + p), to, row, r, column, c, scratch);
                 });
      for (const bool of_b : {false, true}) {
        const View& to = of_b ? db : da;
        if (!to.data) continue;
        const Tiling parts(some, of_b ? n : m, call_.k);
        const Steps to_steps = steps(call_, to);
        parts.run(kernels_, cost(parts, of_b ? m : n, 16),
                  [&](std::int64_t p, std::int64_t row, int r, std::int64_t k, int count, void* scratch) {
                    const cpu::Product q = product(first + p);
                    cpu::Gradient g = {};
                    g.k = call_.k, g.weight = weights.data() + p * results, g.far = far.data() + p * results;
                    g.g = q.out, g.out = place(call_, to, first + p);
                    if (of_b) {
                      g.left = q.b, g.left_row = q.b_column, g.left_k = q.b_k, g.right = q.a, g.right_k = q.a_k;
                      g.right_column = q.a_row, g.g_row = q.out_column, g.g_column = q.out_row, g.columns = m;
                      g.weight_row = 1, g.weight_column = n, g.out_row = to_steps.column, g.out_k = to_steps.row;
                      g.left_lines = columns.data() + p * n, g.right_lines = rows.data() + p * m;
                    } else {
                      g.left = q.a, g.left_row = q.a_row, g.left_k = q.a_k, g.right = q.b, g.right_k = q.b_k;
                      g.right_column = q.b_column, g.g_row = q.out_row, g.g_column = q.out_column, g.columns = n;
                      g.weight_row = n, g.weight_column = 1, g.out_row = to_steps.row, g.out_k = to_steps.column;
                      g.left_lines = rows.data() + p * m, g.right_lines = columns.data() + p * n;
                    }
                    kernels_.gradient[code_](g, row, r, k, count, scratch);
                  });
      }
    }
  }

 private:
  // A multiplication costs about a `share`th of an exponential.
  static double cost(const Tiling& tiling, std::int64_t terms, int share) {
    return static_cast<double>(tiling.rows) * tiling.columns * static_cast<double>(terms + 8) / share;
  }

  const LogMatmul& call_;
  const cpu::LogMatmulKernels& kernels_;
  int code_;
};

Status has_strides(const View& view, const char* name) {
  if (view.data && !view.strides) return fail(Code::invalid_argument, "%s has no strides", name);
  return Status{};
}

}  // namespace

Status logmatmulexp(const LogMatmul& call) noexcept {
  const cpu::DefaultFloatingPoint mode;
  std::int64_t products = 0;
  const Status status = check(call, products);
  if (!status.ok() || products == 0 || call.m == 0 || call.n == 0) return status;
  return cpu::with_scratch([&] { Products(call).forward(products); });
}

Status logmatmulexp_vjp(const LogMatmul& call, View da, View db) noexcept {
  const cpu::DefaultFloatingPoint mode;
  std::int64_t products = 0;
  Status status = check(call, products);
  if (status.ok()) status = has_strides(da, "da");
  if (status.ok()) status = has_strides(db, "db");
  if (!status.ok() || products == 0 || call.k == 0) return status;
  if (call.m == 0 || call.n == 0) {
    if ((call.m && da.data) || (call.n && db.data))
      return fail(Code::unsupported, "g has no elements; gradients of none are 0, which is the caller's to write");
    return status;
  }
  return cpu::with_scratch([&] { Products(call).vjp(products, da, db); });
}

Status logmatmulexp_jvp(const LogMatmul& call, View ta, View tb) noexcept {
  const cpu::DefaultFloatingPoint mode;
  std::int64_t products = 0;
  Status status = check(call, products);
  if (status.ok()) status = has_strides(ta, "ta");
  if (status.ok()) status = has_strides(tb, "tb");
  if (!status.ok() || products == 0 || call.m == 0 || call.n == 0) return status;
  if (call.k && (!ta.data || !tb.data)) return fail(Code::invalid_argument, "%s is missing", ta.data ? "tb" : "ta");
  return cpu::with_scratch([&] { Products(call).jvp(products, ta, tb); });
}

}  // namespace sumexp
