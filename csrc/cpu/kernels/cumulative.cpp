// Running sums of exponentials, for one instruction set: cumulative_kernels_<isa>().
#include SUMEXP_SIMD
//
#include "cumulative.hpp"

#include "../../ops/weighted_rows.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using V = F64;
using cpu::kPiece;
using cpu::Partial;

SUMEXP_FN RunningSum sum_of(const Partial& p) { return {p.m, p.N, {p.hi, p.lo}}; }
SUMEXP_FN Partial partial_of(const RunningSum& a) { return {a.m, a.N, a.s.hi, a.s.lo}; }

// A prefix is the sum of the pieces before, plus that of the runs before in its piece, plus its own in its run.
static_assert(kPieceElements == kPiece);

// A piece whose finite elements are no further apart than kSpread: all prefixes relative to the 2^N of its maximum, as pairs
// that are not normalised, and before[r] the sum of the runs before r.
struct Direct {
  double top;
  std::int64_t N;
  double hi[kPiece], lo[kPiece];
  DD<double> before[kRuns + 1];
};

SUMEXP_FN void pad(double* x, int count) {
  for (int i = count; i % V::W; ++i) x[i] = -Limits<double>::infinity;
}

// Whether the piece is of this kind, which its elements alone decide; then top and N.
bool is_direct(const double* x, int count, Direct& piece) {
  const V minus_inf = V(-Limits<double>::infinity);
  V top = minus_inf, bottom = minus_inf;  // of -x
  int nan = 0;
  for (int i = 0; i < count; i += V::W) {
    const V v = V::load(x + i);
    nan += ::sumexp::SUMEXP_NS::count(unordered(v));
    top = larger(v, top);
    bottom = larger(pick(equal(v, minus_inf), minus_inf, V(0.0) - v), bottom);
  }
  piece.top = largest(top);
  const double low = -largest(bottom);
  if (nan || !share_a_power(piece.top, low)) return false;
  piece.N = base_of(piece.top).N;
  return true;
}

template <class Term>
SUMEXP_FN void make_terms(int count, Direct& piece, Term term) {
  for (int i = 0; i < count; i += V::W) {
    const DD<V> e = term(i);
    V::store(piece.hi + i, e.hi), V::store(piece.lo + i, e.lo);
  }
  for (int i = (count + V::W - 1) / V::W * V::W; i < kPiece; ++i) piece.hi[i] = piece.lo[i] = 0.0;
}

// e^x 2^-N of each element, times b if there is one
void direct_terms(const double* x, const double* b, int count, Direct& piece) {
  const V lowest = V(piece.top - 2 * kSpread), N = V(static_cast<double>(piece.N));
  make_terms(count, piece, [&](int i) {
    const DD<V> e = direct_term(V::load(x + i), lowest, N);
    return b ? direct_product(e, V::load(b + i)) : e;
  });
}

// e^x of each element, within 2^-97. One above 1 is taken for 1: no sum that it is in is next to 1.
void accurate_terms(const double* x, int count, Direct& piece) {
  piece.top = 0.0, piece.N = 0;
  make_terms(count, piece, [&](int i) {
    const V at = V(0.0) - at_least(V(-1.0), V(0.0) - V::load(x + i));
    return exponential_accurate(Working<DD<V>>::above_floor({at, V(0.0)})).value();
  });
}

// Terms become prefixes of their runs: hi adds up with its rounding errors, which go to lo.
template <class D>
SUMEXP_FN void scan_runs(Direct& piece, int count) {
  constexpr int W = D::W;
  const int longest = count < kRun ? count : kRun;
  if constexpr (W == 1) {
    for (int run = 0; run < kRuns; ++run) {
      double hi = 0.0, lo = 0.0;
      for (int j = run * kRun; j < run * kRun + longest; ++j) {
        const DD<double> sum = two_sum(hi, piece.hi[j]);
        hi = sum.hi, lo = lo + (sum.lo + piece.lo[j]);
        piece.hi[j] = hi, piece.lo[j] = lo;
      }
    }
  } else {
    for (int first = 0; first < kRuns && first * kRun < count; first += W) {
      D hi = D(0.0), lo = D(0.0);
      for (int j = 0; j < longest; j += W) {
        D h[W], l[W];
#pragma GCC unroll 8
        for (int r = 0; r < W; ++r) {
          h[r] = D::load(piece.hi + (first + r) * kRun + j);
          l[r] = D::load(piece.lo + (first + r) * kRun + j);
        }
        transpose(h), transpose(l);
#pragma GCC unroll 8
        for (int r = 0; r < W; ++r) {
          const DD<D> sum = two_sum(hi, h[r]);
          hi = sum.hi, lo = lo + (sum.lo + l[r]);
          h[r] = hi, l[r] = lo;
        }
        transpose(h), transpose(l);
#pragma GCC unroll 8
        for (int r = 0; r < W; ++r) {
          D::store(piece.hi + (first + r) * kRun + j, h[r]);
          D::store(piece.lo + (first + r) * kRun + j, l[r]);
        }
      }
    }
  }
}

RunningSum add_up(Direct& piece, int count) {
  scan_runs<V>(piece, count);
  piece.before[0] = {0.0, 0.0};
  const int runs = (count + kRun - 1) / kRun;
  for (int r = 0; r < runs; ++r) {
    const int last = (r + 1) * kRun < count ? (r + 1) * kRun - 1 : count - 1;
    piece.before[r + 1] = piece.before[r] + fast_two_sum(piece.hi[last], piece.lo[last]);
  }
  return {piece.top, piece.N, piece.before[runs]};
}

// element_sum of each element of any other piece. x has room for kPiece elements.
struct Elements {
  const double* x;
  double N[kPiece], hi[kPiece], lo[kPiece];

  Elements(const double* x, int count) : x(x) {
    for (int i = 0; i < count; i += V::W) {
      const V v = V::load(x + i);
      const auto far = at_or_above(absolute(v), V(kDirect));
      const V near = clear(far, clear(unordered(v), v)), n = exponent_of(near);
      const DD<V> e = exp_of_remainder(remainder_wide(DD<V>{near, V(0.0)}, DD<V>{n, V(0.0)}));
      V::store(N + i, n), V::store(hi + i, e.hi), V::store(lo + i, e.lo);
      if (!any(far) && !any(unordered(v))) continue;
      for (int j = i; j < i + V::W; ++j) {
        if (absolute(x[j]) < kDirect) continue;
        const RunningSum one = element_sum(x[j]);
        N[j] = static_cast<double>(one.N), hi[j] = one.s.hi, lo[j] = one.s.lo;
      }
    }
  }
  RunningSum operator[](int i) const {
    return {x[i] == x[i] ? x[i] : -Limits<double>::infinity, static_cast<std::int64_t>(N[i]), {hi[i], lo[i]}};
  }
};
RunningSum add_up(const double* x, const double* b, int count) {
  const Elements elements(x, count);
  RunningSum sum = RunningSum::empty();
  for (int i = 0; i < count; ++i) sum = join(sum, b ? weighted(elements[i], b[i]) : elements[i]);
  return sum;
}

Partial empty() { return partial_of(RunningSum::empty()); }
Partial join_partials(const Partial& a, const Partial& b) { return partial_of(join(sum_of(a), sum_of(b))); }
double log_of_partial(const Partial& sum, double count) { return log_of(sum_of(sum), count); }

Partial total(double* x, double* b, int count, double* special) {
  if (b) {
    for (int i = 0; i < count; ++i) {
      weigh(x[i], b[i]);
      if (is_finite(b[i])) continue;
      *special = *special + b[i];
      b[i] = 0.0;
    }
    for (int i = count; i % V::W; ++i) b[i] = 0.0;
  }
  pad(x, count);
  Direct piece;
  if (!is_direct(x, count, piece)) return partial_of(add_up(x, b, count));
  direct_terms(x, b, count, piece);
  return partial_of(add_up(piece, count));
}

// y_i = log_of(sum) of `before` and the elements up to i; returns the sum of all elements.
RunningSum put_logs(const RunningSum& before, const double* x, int count, double* y) {
  const Elements elements(x, count);
  RunningSum own = RunningSum::empty(), all[kPiece];
  bool usual = true;  // each is the sum of something of moderate size, or of nothing
  for (int i = 0; i < count; ++i) {
    own = join(own, elements[i]);
    all[i] = join(before, own);
    usual &= all[i].m < kDirect && !is_nan(all[i].s) && (all[i].m > -kDirect || all[i].m == -Limits<double>::infinity);
  }
  if (!usual) {
    for (int i = 0; i < count; ++i) y[i] = log_of(all[i]);
    return own;
  }
  for (int i = count; i % V::W; ++i) all[i] = RunningSum::empty();
  for (int i = 0; i < count; i += V::W) {
    const auto lanes = [&](auto part) SUMEXP_INLINE {
      double at[V::W];
      for (int l = 0; l < V::W; ++l) at[l] = part(all[i + l]);
      return V::load(at);
    };
    const V given = lanes([](const RunningSum& a) { return a.m; });
    const auto nothing = equal(given, V(-Limits<double>::infinity));
    const V m = clear(nothing, given);
    const DD<V> s = {lanes([](const RunningSum& a) { return a.s.hi; }), lanes([](const RunningSum& a) { return a.s.lo; })};
    const DD<V> z = s / exp_of_remainder(remainder_wide(DD<V>{m, V(0.0)}, DD<V>{exponent_of(m), V(0.0)}));
    const V log = Working<DD<V>>::plus(m, log1p_wide(z + DD<V>{V(-1.0), V(0.0)}));
    V::store(y + i, pick(nothing, given, log));
  }
  return own;
}

Partial prefixes(double* x, int count, const Partial& before_piece, double* y) {
  pad(x, count);
  const RunningSum before = sum_of(before_piece);
  Direct piece;
  const bool direct = is_direct(x, count, piece);
  RunningSum sum = RunningSum::empty();
  if (direct) {
    direct_terms(x, nullptr, count, piece);
    sum = add_up(piece, count);
  }
  const bool nothing = before.m == -Limits<double>::infinity;
  if (!direct || is_nan(before.s) || !(nothing || (before.m < kDirect && before.m > -kDirect))) {
    const RunningSum own = put_logs(before, x, count, y);
    return partial_of(direct ? sum : own);
  }
  // All relative to the larger of both powers of two.
  const std::int64_t N = nothing || before.N < piece.N ? piece.N : before.N;
  const DD<double> start = nothing ? DD<double>{0.0, 0.0} : shifted<double>(before.s, before.N - N);
  std::int64_t gap = piece.N - N;
  gap = gap < -2040 ? -2040 : gap;
  const V down = V(pow2<double>(gap / 2)), rest = V(pow2<double>(gap - gap / 2));
  const V exponent = V(static_cast<double>(N));
  for (int i = 0; i < count; i += V::W) {
    const DD<double> offset = start + shifted<double>(piece.before[i / kRun], gap);
    const DD<V> own = {V::load(piece.hi + i) * down * rest, V::load(piece.lo + i) * down * rest};
    const DD<V> v = DD<V>{V(offset.hi), V(offset.lo)} + own;
    const V result = log_of_scaled(v, exponent).hi;
    V::store(y + i, pick(equal(v.hi, V(0.0)), V(-Limits<double>::infinity), result));
  }
  return partial_of(sum);
}

Partial near_zero(double* x, int count, const Partial& before, double limit, double* y) {
  pad(x, count);
  Direct piece;
  accurate_terms(x, count, piece);
  const RunningSum sum = add_up(piece, count);
  for (int i = 0; y && i < count; i += V::W) {
    const DD<double> offset = DD<double>{before.hi, before.lo} + piece.before[i / kRun];
    const DD<V> v = DD<V>{V(offset.hi), V(offset.lo)} + DD<V>{V::load(piece.hi + i), V::load(piece.lo + i)};
    const V result = log1p_or_itself<V>(v + DD<V>{V(-1.0), V(0.0)}).hi, given = V::load(y + i);
    V::store(y + i, pick(at_or_above(absolute(given), V(limit)), given, result));
  }
  return partial_of(sum);
}

void vjp(const double* g, const double* x, int count, const Partial& before, Partial* after, double* dx) {
  RunningSum run = sum_of(before), at[kPiece], own[kPiece];
  const Elements elements(x, count);
  for (int i = 0; i < count; ++i) {
    own[i] = elements[i];
    at[i] = run = join(run, own[i]);
  }
  RunningSum H = sum_of(*after);
  for (int i = count - 1; i >= 0; --i) {
    H = {at[i].m, at[i].N, rebased(H.s, at[i].m, at[i].N, H.m, H.N)};
    if (at[i].s.hi != 0.0) H.s = H.s + DD<double>{g[i], 0.0} / at[i].s;
    // The power of two last: a large H makes a normal number of a term that is none.
    const DD<double> d = rebased(own[i].s * H.s, own[i].m, own[i].N, at[i].m, at[i].N);
    dx[i] = own[i].s.hi == 0.0 && !is_nan(H.s) ? 0.0 : quiet(d.hi);
  }
  *after = partial_of(H);
}

void jvp(const double* t, const double* x, int count, Partial* sum, Partial* along, double* dy) {
  RunningSum run = sum_of(*sum);
  DD<double> D = {along->hi, along->lo};
  const Elements elements(x, count);
  for (int i = 0; i < count; ++i) {
    const RunningSum one = elements[i], next = join(run, one);
    D = rebased(D, run.m, run.N, next.m, next.N);
    if (one.s.hi != 0.0) D = D + rebased(one.s * DD<double>{t[i], 0.0}, one.m, one.N, next.m, next.N);
    run = next;
    dy[i] = run.s.hi == 0.0 ? 0.0 : quiet((D / run.s).hi);
  }
  *sum = partial_of(run);
  *along = {run.m, run.N, D.hi, D.lo};
}

double quotient_of(const Partial& a, const Partial& b) { return quotient(sum_of(a), sum_of(b)); }

void weights(double* x, const double* b, int count, const Partial& of, double factor, double* dx, double* db) {
  const RunningSum S = sum_of(of);
  const double scale = factor / S.s.hi;
  for (int i = 0; i < count; ++i) {
    const Gradients d = gradients(x[i], b ? b[i] : 1.0, S, scale, dx);
    if (dx) dx[i] = d.x;
    if (db) db[i] = d.b;
  }
}

Partial with_special_of(const Partial& sum, double special) { return partial_of(with_special(sum_of(sum), special)); }
double mean_of(const Partial& sum, double count, double* sign) {
  *sign = sign_of(sum_of(sum));
  return log_of_mean(sum_of(sum), count);
}

const cpu::CumulativeKernels kKernels = {empty, join_partials, total,   prefixes,    near_zero,       log_of_partial,
                                         vjp,   jvp,           weights, quotient_of, with_special_of, mean_of};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(CumulativeKernels, cumulative_kernels_, SUMEXP_NS::kKernels)
