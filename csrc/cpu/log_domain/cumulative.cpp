// Running sums of exponentials along an axis. ops/running_sum.hpp has the formulas, kernels/cumulative.cpp the order.
#include <cmath>

#include "../../include/sumexp/log_domain.hpp"
#include "rows.hpp"

namespace sumexp {

namespace {

using cpu::fail;
using cpu::kPiece;
using cpu::Partial;
using cpu::Piece;

constexpr int kTogether = 16;               // rows that go piece by piece together, for those that lie side by side
constexpr std::int64_t kTask = 1 << 13;     // elements
constexpr std::int64_t kLongRow = 1 << 15;  // elements; from here on a row may be split
constexpr int kSplit = 32;                  // pieces of a task of a split row

struct Rows : cpu::PieceRows {
  bool exclusive = false, in_place = false;
  double limit = 0.0;  // results below it, in absolute value, are next to 0
};

constexpr Partial kNothing = {0.0, 0, 0.0, 0.0};  // relative to 2^0

// The sum of a row's first elements within 2^-97, for results next to 0: of the pieces below `pieces`, made when a result asks
// for it. Then the row's elements are read again; where they are overwritten (in place) it is made as they go by, until
// it has left 1 behind.
struct NearZero {
  Partial sum;
  std::int64_t pieces;
};

void catch_up(const Rows& rows, const char* x, std::int64_t pieces, NearZero& near) {
  for (; near.pieces < pieces; ++near.pieces) {
    Piece in = {};
    rows.load(0, x, near.pieces, in.at);
    near.sum = rows.sums->join(near.sum, rows.sums->near_zero(in.at, rows.count(near.pieces), near.sum, 0.0, nullptr));
  }
}

// Whether a result from `first` to `last` may be next to 0: they grow, but for their rounding, until one is NaN.
bool may_be_near_zero(const Rows& rows, double first, double last) {
  return !(first >= 2.0 * rows.limit) && !(last <= -2.0 * rows.limit);
}
bool is_near_zero(const Rows& rows, const double* begin, const double* end) {
  return may_be_near_zero(rows, *begin, end[-1]) && std::any_of(begin, end, [&](double y) { return std::abs(y) < rows.limit; });
}

// The results of a piece, in double.
struct Prefixes {
  Piece in = {};
  alignas(64) double y[kPiece + 16];
  double* at;  // the inclusive ones in y
  double* end;
  Partial total;  // of the piece

  Prefixes(const Rows& rows, const char* x, std::int64_t piece, const Partial& before)
      : at(rows.exclusive ? y + 1 : y), end(at + rows.count(piece)) {
    rows.load(0, x, piece, in.at);
    total = rows.sums->prefixes(in.at, rows.count(piece), before, at);
    if (rows.exclusive) y[0] = rows.sums->log(before, 1.0);
  }
};

// out of one piece, from x; returns the piece's total.
Partial put_prefixes(const Rows& rows, const char* x, char* out, std::int64_t piece, const Partial& before, NearZero& near) {
  Prefixes of(rows, x, piece, before);
  if (is_near_zero(rows, of.y, of.end)) {
    catch_up(rows, x, piece, near);
    const Partial own = rows.sums->near_zero(of.in.at, rows.count(piece), near.sum, rows.limit, of.at);
    if (rows.exclusive && std::abs(of.y[0]) < rows.limit) of.y[0] = rows.sums->log(near.sum, 1.0);
    if (near.pieces == piece) near = {rows.sums->join(near.sum, own), piece + 1};
  } else if (rows.in_place && of.end[-1] < 0.0) {
    catch_up(rows, x, piece + 1, near);
  }
  rows.store(1, out, piece, of.y);
  return of.total;
}

void prefix_rows(void* context, std::int64_t task, cpu::Workspace&) {
  const Rows& rows = *static_cast<const Rows*>(context);
  const std::int64_t groups = std::max<std::int64_t>(1, kTask / (kTogether * std::max<std::int64_t>(rows.n, 1)));
  const std::int64_t begin = task * groups * kTogether, end = std::min(rows.walk.size, begin + groups * kTogether);
  for (std::int64_t first = begin; first < end; first += kTogether) {
    const int together = static_cast<int>(std::min<std::int64_t>(kTogether, end - first));
    Partial before[kTogether];
    NearZero near[kTogether];
    const char* x[kTogether];
    char* out[kTogether];
    for (int r = 0; r < together; ++r) {
      before[r] = rows.sums->empty(), near[r] = {kNothing, 0};
      x[r] = rows.row(0, first + r), out[r] = rows.row(1, first + r);
    }
    for (std::int64_t piece = 0; piece < rows.pieces; ++piece)
      for (int r = 0; r < together; ++r)
        before[r] = rows.sums->join(before[r], put_prefixes(rows, x[r], out[r], piece, before[r], near[r]));
  }
}

// One row over the threads: the pieces' totals, what lies before each, and then the prefixes.
struct SplitRow {
  const Rows* rows;
  const char* x;
  char* out;
  Partial *before, *near;  // rows->pieces of them and one more; first the totals
};
template <class Body>
void each_piece(const SplitRow& split, std::int64_t task, Body body) {
  for (std::int64_t p = task * kSplit; p < std::min(split.rows->pieces, (task + 1) * kSplit); ++p)
    body(p, split.rows->count(p));
}
void split_totals(void* context, std::int64_t task, cpu::Workspace&) {
  const SplitRow& split = *static_cast<const SplitRow*>(context);
  each_piece(split, task, [&](std::int64_t p, int count) {
    Piece in = {};
    split.rows->load(0, split.x, p, in.at);
    split.before[p] = split.rows->sums->total(in.at, nullptr, count, nullptr);
  });
}
void split_near_zero(void* context, std::int64_t task, cpu::Workspace&) {
  const SplitRow& split = *static_cast<const SplitRow*>(context);
  each_piece(split, task, [&](std::int64_t p, int count) {
    Piece in = {};
    split.rows->load(0, split.x, p, in.at);
    split.near[p] = split.rows->sums->near_zero(in.at, count, kNothing, 0.0, nullptr);
  });
}
void split_prefixes(void* context, std::int64_t task, cpu::Workspace&) {
  const SplitRow& split = *static_cast<const SplitRow*>(context);
  each_piece(split, task, [&](std::int64_t p, int) {
    NearZero near = {split.near ? split.near[p] : kNothing, split.rows->pieces};
    put_prefixes(*split.rows, split.x, split.out, p, split.before[p], near);
  });
}
// Totals become sums of what lies before them; behind them, that of all.
void sums_before(const Rows& rows, std::int64_t pieces, Partial sum, Partial* totals) {
  for (std::int64_t p = 0; p < pieces; ++p) {
    const Partial before = sum;
    sum = rows.sums->join(sum, totals[p]);
    totals[p] = before;
  }
  totals[pieces] = sum;
}
// The last piece that has results next to 0, counted from 1; 0: none has.
std::int64_t pieces_to_zero(const SplitRow& split) {
  const Rows& rows = *split.rows;
  const auto first_of = [&](auto beyond) {  // sums before pieces grow, until one is NaN
    std::int64_t low = 0, high = rows.pieces;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (beyond(rows.sums->log(split.before[middle], 1.0))) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  const std::int64_t begin = first_of([&](double y) { return !(y <= -2.0 * rows.limit); });
  std::int64_t p = first_of([&](double y) { return !(y < 2.0 * rows.limit); });
  for (; p > 0 && p >= begin; --p) {  // sums pass -limit in the piece before `begin`
    const Prefixes of(rows, split.x, p - 1, split.before[p - 1]);
    if (is_near_zero(rows, of.y, of.end)) return p;
  }
  return 0;
}

Status split_rows(const Rows& rows, int threads) {
  const cpu::DefaultFloatingPoint mode;
  return cpu::with_scratch([&] {
    SplitRow split{&rows, nullptr, nullptr, nullptr, nullptr};
    cpu::Workspace own;  // that of the thread is the tasks'
    const auto partials = [&] { return static_cast<Partial*>(own.take_bytes(sizeof(Partial) * (rows.pieces + 1))); };
    split.before = partials();
    Partial* near = nullptr;
    const std::int64_t tasks = (rows.pieces + kSplit - 1) / kSplit;
    for (std::int64_t r = 0; r < rows.walk.size; ++r) {
      split.x = rows.row(0, r), split.out = rows.row(1, r);
      cpu::run_parts(tasks, threads, split_totals, &split);
      sums_before(rows, rows.pieces, rows.sums->empty(), split.before);
      split.near = nullptr;
      if (const std::int64_t pieces = pieces_to_zero(split)) {
        split.near = near = near ? near : partials();
        cpu::run_parts((pieces + kSplit - 1) / kSplit, threads, split_near_zero, &split);
        sums_before(rows, pieces, kNothing, split.near);
      }
      cpu::run_parts(tasks, threads, split_prefixes, &split);
    }
  });
}

// Rows of x, 1, and g, 0, to dx, 2.
void vjp_rows(void* context, std::int64_t r, cpu::Workspace& workspace) {
  const Rows& rows = *static_cast<const Rows*>(context);
  const char *g = rows.row(0, r), *x = rows.row(1, r);
  char* const out = rows.row(2, r);
  workspace.reset();
  auto* const before = static_cast<Partial*>(workspace.take_bytes(sizeof(Partial) * static_cast<std::size_t>(rows.pieces + 1)));
  for (std::int64_t p = 0; p < rows.pieces; ++p) {
    Piece in = {};
    rows.load(1, x, p, in.at);
    before[p] = rows.sums->total(in.at, nullptr, rows.count(p), nullptr);
  }
  sums_before(rows, rows.pieces, rows.sums->empty(), before);
  Partial after = rows.sums->empty();
  double next = 0.0;  // g of the element after, where it belongs to the sum that ends at the one before
  for (std::int64_t p = rows.pieces - 1; p >= 0; --p) {
    Piece in = {}, given = {}, dx;
    rows.load(1, x, p, in.at), rows.load(0, g, p, given.at);
    const int count = rows.count(p);
    if (rows.exclusive) {
      const double first = given.at[0];
      std::copy(given.at + 1, given.at + count, given.at);
      given.at[count - 1] = next;
      next = first;
    }
    rows.sums->vjp(given.at, in.at, count, before[p], &after, dx.at);
    rows.store(2, out, p, dx.at);
  }
}

// Rows of t, 0, and x, 1, to dy, 2.
void jvp_rows(void* context, std::int64_t r, cpu::Workspace&) {
  const Rows& rows = *static_cast<const Rows*>(context);
  const char *t = rows.row(0, r), *x = rows.row(1, r);
  char* const out = rows.row(2, r);
  Partial sum = rows.sums->empty(), along = rows.sums->empty();
  double last = 0.0;
  for (std::int64_t p = 0; p < rows.pieces; ++p) {
    Piece in = {}, given = {};
    alignas(64) double dy[kPiece + 16];
    rows.load(1, x, p, in.at), rows.load(0, t, p, given.at);
    double* const at = rows.exclusive ? dy + 1 : dy;
    const int count = rows.count(p);
    rows.sums->jvp(given.at, in.at, count, &sum, &along, at);
    if (rows.exclusive) dy[0] = last;
    last = at[count - 1];
    rows.store(2, out, p, dy);
  }
}

constexpr const char* kNames[] = {"x", "out"};
constexpr const char* kDerivativeNames[] = {"g or t", "x", "out"};

// The rows of a call along its axis. An empty one has no rows.
Status rows_of(const Running& call, int operands, const View* views, const char* const* names, Rows& rows) {
  bool empty = false;
  if (Status status = cpu::check_shape(call.dtype, call.ndim, call.shape, &empty); !status.ok()) return status;
  if (call.ndim == 0 || call.axis < 0 || call.axis >= call.ndim)
    return fail(Code::invalid_argument, "axis is %d, accepted: 0 to ndim - 1 = %d", call.axis, call.ndim - 1);
  if (empty) {  // nothing, which may lie nowhere
    rows.walk.size = 0;
    return Status{};
  }
  for (int k = 0; k < operands; ++k)
    if (!views[k].data || !views[k].strides)
      return fail(Code::invalid_argument, "%s has no data or no strides, accepted: an array", names[k]);
  rows.walk.operands = operands;
  for (int d = 0; d < call.ndim; ++d) {
    if (d == call.axis) continue;
    std::int64_t strides[cpu::Walk::kMost];
    for (int k = 0; k < operands; ++k) strides[k] = views[k].strides[d];
    rows.walk.add(call.shape[d], strides);
  }
  rows.walk.arrange();
  rows.set_rows(call.shape[call.axis], call.dtype);
  rows.exclusive = call.exclusive;
  for (int k = 0; k < operands; ++k) {
    rows.data[k] = static_cast<char*>(views[k].data);
    rows.step[k] = views[k].strides[call.axis];
    if (!call.reverse) continue;
    rows.data[k] += (rows.n - 1) * rows.step[k];
    rows.step[k] = -rows.step[k];
  }
  return Status{};
}

Status run_derivative(const Running& call, View first, View x, View out, cpu::PartBody body) {
  Rows rows;
  const View views[] = {first, x, out};
  if (Status status = rows_of(call, 3, views, kDerivativeNames, rows); !status.ok()) return status;
  return cpu::run_rows(rows, rows.walk.size, 16, body);
}

}  // namespace

Status logcumsumexp(const Running& call, View x, View out) noexcept {
  Rows rows;
  const View views[] = {x, out};
  if (Status status = rows_of(call, 2, views, kNames, rows); !status.ok() || rows.walk.size == 0) return status;
  rows.in_place = x.data == out.data;
  rows.limit = call.dtype == DType::f64 ? 0x1p-6 : 0x1p-34;
  constexpr int work = 8;
  const int threads = cpu::threads_for(rows.walk.size * rows.n * work);
  if (threads > 1 && rows.n >= kLongRow && rows.walk.size < threads) return split_rows(rows, threads);
  const std::int64_t groups = std::max<std::int64_t>(1, kTask / (kTogether * rows.n));
  const std::int64_t tasks = (rows.walk.size + groups * kTogether - 1) / (groups * kTogether);
  return cpu::run_rows(rows, tasks, work, prefix_rows);
}

Status logcumsumexp_vjp(const Running& call, View g, View x, View out) noexcept {
  return run_derivative(call, g, x, out, vjp_rows);
}
Status logcumsumexp_jvp(const Running& call, View t, View x, View out) noexcept {
  return run_derivative(call, t, x, out, jvp_rows);
}

}  // namespace sumexp
