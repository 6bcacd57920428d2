// Sums of exponentials with weights over whole rows: log of their mean, derivatives of logsumexp with weights.
// ops/running_sum.hpp has the formulas.
#include "weighted_rows.hpp"

#include <limits>

#include "rows.hpp"

namespace sumexp {

namespace {

using cpu::fail;
using cpu::Partial;
using cpu::Piece;

enum RowOperands { kX, kB, kFirst, kSecond, kThird };

struct Rows : cpu::PieceRows {
  bool has[cpu::Walk::kMost] = {};
};

// S, with weights or factors f: of infinite and NaN ones, what the sum becomes.
struct Sum {
  Partial S;
  double special = 0.0;
};

template <class Factors>
Sum sum_row(const Rows& rows, const char* x, bool weighted, Factors factors) {
  Sum sum{rows.sums->empty()};
  for (std::int64_t p = 0; p < rows.pieces; ++p) {
    Piece in = {}, f = {};
    rows.load(kX, x, p, in.at);
    if (weighted) factors(p, f.at);
    sum.S = rows.sums->join(sum.S, rows.sums->total(in.at, weighted ? f.at : nullptr, rows.count(p), &sum.special));
  }
  sum.S = rows.sums->with_special(sum.S, sum.special);
  return sum;
}
Sum sum_row(const Rows& rows, std::int64_t r) {
  const char* const b = rows.has[kB] ? rows.row(kB, r) : nullptr;
  return sum_row(rows, rows.row(kX, r), b, [&](std::int64_t p, double* to) { rows.load(kB, b, p, to); });
}

void store_one(const Rows& rows, int k, std::int64_t r, double value) {
  if (rows.has[k]) rows.moves->store[rows.dtype](rows.row(k, r), 0, 1, &value);
}

// kFirst: count, a double; kSecond: value; kThird: sign
void mean_row(void* context, std::int64_t r, cpu::Workspace&) {
  const Rows& rows = *static_cast<const Rows*>(context);
  const Partial S = sum_row(rows, r).S;
  const double count = rows.has[kFirst] ? *reinterpret_cast<const double*>(rows.row(kFirst, r)) : static_cast<double>(rows.n);
  double sign;
  store_one(rows, kSecond, r, rows.sums->mean(S, count, &sign));
  store_one(rows, kThird, r, sign);
}

// kFirst: g; kSecond: dx; kThird: db
void weighted_vjp_row(void* context, std::int64_t r, cpu::Workspace&) {
  const Rows& rows = *static_cast<const Rows*>(context);
  Partial S = sum_row(rows, r).S;
  if (S.m == std::numeric_limits<double>::infinity()) S.hi = std::numeric_limits<double>::quiet_NaN();
  double g;
  rows.moves->load[rows.dtype](rows.row(kFirst, r), 0, 1, &g);
  const char* const x = rows.row(kX, r);
  const char* const b = rows.has[kB] ? rows.row(kB, r) : nullptr;
  char* const dx = rows.has[kSecond] ? rows.row(kSecond, r) : nullptr;
  char* const db = rows.has[kThird] ? rows.row(kThird, r) : nullptr;
  for (std::int64_t p = 0; p < rows.pieces; ++p) {
    Piece in = {}, f = {}, to[2];
    rows.load(kX, x, p, in.at);
    if (b) rows.load(kB, b, p, f.at);
    rows.sums->weights(in.at, b ? f.at : nullptr, rows.count(p), S, g, dx ? to[0].at : nullptr, db ? to[1].at : nullptr);
    if (dx) rows.store(kSecond, dx, p, to[0].at);
    if (db) rows.store(kThird, db, p, to[1].at);
  }
}

// kFirst: t; kSecond: tb; kThird: out
void weighted_jvp_row(void* context, std::int64_t r, cpu::Workspace&) {
  const Rows& rows = *static_cast<const Rows*>(context);
  const Sum S = sum_row(rows, r);
  const char* const b = rows.has[kB] ? rows.row(kB, r) : nullptr;
  const char* const t = rows.has[kFirst] ? rows.row(kFirst, r) : nullptr;
  const char* const tb = rows.has[kSecond] ? rows.row(kSecond, r) : nullptr;
  const Sum D = sum_row(rows, rows.row(kX, r), true, [&](std::int64_t p, double* f) {  // f = t b + tb
    const int count = rows.count(p);
    Piece weights, more;
    std::fill(f, f + count, 0.0);
    if (t) {
      rows.load(kFirst, t, p, f);
      if (b) rows.load(kB, b, p, weights.at);
      for (int i = 0; b && i < count; ++i) f[i] = weights.at[i] * f[i];
    }
    if (tb) {
      rows.load(kSecond, tb, p, more.at);
      for (int i = 0; i < count; ++i) f[i] = f[i] + more.at[i];
    }
  });
  const bool finite = S.special == 0.0 && S.S.m != std::numeric_limits<double>::infinity() && D.special == 0.0;
  store_one(rows, kThird, r, finite ? rows.sums->quotient(D.S, S.S) : std::numeric_limits<double>::quiet_NaN());
}

Status run_weighted(const WeightedRows& given, const View (&more)[3], const cpu::WeightedKind& kind, cpu::PartBody body) {
  if (Status status = cpu::check_weighted(given, more, kind); !status.ok()) return status;
  const View views[] = {given.x, given.b, more[0], more[1], more[2]};
  Rows rows;
  rows.walk.operands = 5;
  const int last = given.ndim - 1;
  for (int k = 0; k < 5; ++k) {
    rows.has[k] = views[k].data;
    rows.data[k] = static_cast<char*>(views[k].data);
    rows.step[k] = views[k].data && (k < kFirst || kind.along[k - kFirst]) ? views[k].strides[last] : 0;
  }
  for (int d = 0; d < last; ++d) {
    std::int64_t strides[5];
    for (int k = 0; k < 5; ++k) strides[k] = views[k].data ? views[k].strides[d] : 0;
    rows.walk.add(given.shape[d], strides);
  }
  if (rows.walk.size == 0) return Status{};
  rows.set_rows(given.shape[last], given.dtype);
  return cpu::run_rows(rows, rows.walk.size, 8, body);
}

}  // namespace

Status cpu::check_weighted(const WeightedRows& given, const View (&more)[3], const WeightedKind& kind) {
  bool empty = false;
  if (Status status = check_shape(given.dtype, given.ndim, given.shape, &empty); !status.ok()) return status;
  if (given.ndim < 1) return fail(Code::invalid_argument, "ndim is 0, accepted: 1 to %d", kMaxDims);
  const auto lies_somewhere = [&](bool along) {  // what has no elements need not
    bool any = true;
    for (int d = 0; d < given.ndim - (along ? 0 : 1); ++d) any &= given.shape[d] != 0;
    return any;
  };
  const auto check = [&](const View& view, const char* name, bool required, bool along) -> Status {
    const int dims = along ? given.ndim : given.ndim - 1;
    if (!view.data && required && lies_somewhere(along))
      return fail(Code::invalid_argument, "%s has no data, accepted: an array", name);
    if (view.data && !view.strides && dims > 0)
      return fail(Code::invalid_argument, "%s has no strides, accepted: %d", name, dims);
    return Status{};
  };
  Status status = check(given.x, "x", true, true);
  if (status.ok()) status = check(given.b, "b", false, true);
  for (int k = 0; k < 3 && status.ok(); ++k) status = check(more[k], kind.names[k], kind.required >> k & 1, kind.along[k]);
  return status;
}

Status logmeanexp(const WeightedRows& rows, View count, View value, View sign) noexcept {
  return run_weighted(rows, {count, value, sign}, cpu::kMeanOfRows, mean_row);
}
Status weighted_logsumexp_vjp(const WeightedRows& rows, View g, View dx, View db) noexcept {
  return run_weighted(rows, {g, dx, db}, cpu::kVjpOfRows, weighted_vjp_row);
}
Status weighted_logsumexp_jvp(const WeightedRows& rows, View t, View tb, View out) noexcept {
  return run_weighted(rows, {t, tb, out}, cpu::kJvpOfRows, weighted_jvp_row);
}

}  // namespace sumexp
