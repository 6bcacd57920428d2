// The factors e^x of products in the log domain, and the products themselves, a block of k at a time. For logmatmul.cpp, which
// derives them.
#pragma once

#include "exp_chunk.hpp"
#include "logmatmul.hpp"
#include "store.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::kNothing;
using cpu::kNumbers;
using cpu::kSpecial;
using cpu::Line;

constexpr int kDepth = 256;  // of k at a time
constexpr int kPanel = 2 * F64::W;
constexpr int kStep = F64::W * sizeof(double) == 64 ? 12 : F64::W == 1 ? 4 : 6;  // rows of a product in registers
constexpr int kPairStep = F64::W * sizeof(double) == 64 ? 4 : 2;
constexpr std::int64_t kPitch = kDepth + 8;  // of A's rows: not all in the same sets of the cache
constexpr double kLeast = 0x1p-600;          // P from here on misses nothing
constexpr double kLeastWeight = 0x1p-100;    // and 1 / P is of moderate size
constexpr int kCached = 4096;                // of k: a column is kept for all its rows

Line line_of(double largest, bool nan) {
  const double infinity = Limits<double>::infinity;
  const int kind = nan || largest == infinity ? kSpecial : largest == -infinity ? kNothing : kNumbers;
  if (kind != kNumbers) largest = 0.0;
  const Base<double> base = base_of(largest);
  return {base.reduce.shift, base.reduce.floor, base.anchor, base.anchor == 0.0 ? static_cast<double>(base.N) : 0.0, kind};
}

// -- elements as doubles -----------------------------------------------------------------------------------

SUMEXP_FN double widened(f16 h) { return static_cast<double>(to_float(h)); }
SUMEXP_FN double widened(bf16 h) { return static_cast<double>(to_float(h)); }
SUMEXP_FN double widened(float x) { return static_cast<double>(x); }
SUMEXP_FN double widened(double x) { return x; }

template <class S>
void load(const char* p, std::int64_t stride, std::int64_t count, double* to) {
  std::int64_t i = 0;
  if (stride == sizeof(S)) {
    if constexpr (std::is_same_v<S, double>) {
      memcpy(to, p, static_cast<std::size_t>(count) * sizeof(double));
      return;
    } else {
      for (; i + F32::W <= count; i += F32::W) {
        F64 member[F32::W / F64::W];
        put_members(WideOf<F32>::from(F32::load(reinterpret_cast<const S*>(p) + i)), member);
#pragma GCC unroll 2
        for (int u = 0; u < F32::W / F64::W; ++u) F64::store(to + i + u * F64::W, member[u]);
      }
    }
  }
  for (; i < count; ++i) to[i] = widened(read<S>(p + i * stride));
}

SUMEXP_FN double narrowed(double x, double*) { return x; }
template <class S>
SUMEXP_FN float narrowed(double x, S*) {
  return rounded(x);
}

// -- factors ---------------------------------------------------------------------------------------------------

// e^x 2^(300 - N), and what it rounds off.
SUMEXP_FN F64 factor(const ExpParts<F64>& e) { return term(e); }
SUMEXP_FN F64 rest_of(const ExpParts<F64>& e, F64 factor) { return fma(e.u, e.s, fma(e.r, e.s, e.s - factor)); }

template <bool kPair>
void row_factors(const double* x, int count, const Line& line, double* hi, double* lo) {
  const Reduction<F64> to = {F64(line.shift), F64(line.floor)};
  const F64 anchor = F64(line.anchor);
  each_vector<F64>(count, [&](std::int64_t k, auto memory) SUMEXP_INLINE {
    const ExpParts<F64> e = exp_parts(memory.template load<F64>(x + k, -Limits<double>::infinity) - anchor, to);
    const F64 f = factor(e);
    memory.store(hi + k, f);
    if constexpr (kPair) memory.store(lo + k, rest_of(e, f));
  });
}

// Columns x[k * pitch + j] of a panel to panel[(k * kPanel + j)]; of a pair the second parts are `apart` on.
struct PanelLines {
  double shift[kPanel], floor[kPanel], anchor[kPanel];
};
template <bool kPair>
void column_factors(const double* x, std::int64_t pitch, int count, const PanelLines& lines, double* panel,
                    std::int64_t apart) {
#pragma GCC unroll 2
  for (int u = 0; u < kPanel; u += F64::W) {
    const Reduction<F64> to = {F64::load(lines.shift + u), F64::load(lines.floor + u)};
    const F64 anchor = F64::load(lines.anchor + u);
    for (int k = 0; k < count; ++k) {
      const ExpParts<F64> e = exp_parts(F64::load(x + k * pitch + u) - anchor, to);
      const F64 f = factor(e);
      F64::store(panel + k * kPanel + u, f);
      if constexpr (kPair) F64::store(panel + apart + k * kPanel + u, rest_of(e, f));
    }
  }
}

// -- products ------------------------------------------------------------------------------------------------------

// R rows of A times a panel; the sum of this block's k is added to what earlier ones have left.
template <int R>
void multiply(const double* a, const double* panel, int count, double* to, std::int64_t pitch, bool first) {
  F64 acc[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = F64(0.0);
  for (int k = 0; k < count; ++k) {
    const F64 b0 = F64::load(panel + k * kPanel), b1 = F64::load(panel + k * kPanel + F64::W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F64 x = F64(a[r * kPitch + k]);
      acc[r][0] = fma(x, b0, acc[r][0]);
      acc[r][1] = fma(x, b1, acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      double* const p = to + r * pitch + u * F64::W;
      F64::store(p, first ? acc[r][u] : F64::load(p) + acc[r][u]);
    }
}

// The same of pairs, which go on where earlier blocks have ended: sums in `to`, what they round off `rest` on from there.
template <int R>
void multiply_pairs(const double* a, std::int64_t a_apart, const double* panel, std::int64_t apart, int count, double* to,
                    std::int64_t pitch, std::int64_t rest, bool first) {
  F64 hi[R][2], lo[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const double* const p = to + r * pitch + u * F64::W;
      hi[r][u] = first ? F64(0.0) : F64::load(p), lo[r][u] = first ? F64(0.0) : F64::load(p + rest);
    }
  for (int k = 0; k < count; ++k) {
    const double* const b = panel + k * kPanel;
    const F64 bh[2] = {F64::load(b), F64::load(b + F64::W)}, bl[2] = {F64::load(b + apart), F64::load(b + apart + F64::W)};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F64 ah = F64(a[r * kPitch + k]), al = F64(a[a_apart + r * kPitch + k]);
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const F64 next = fma(ah, bh[u], hi[r][u]);
        const F64 off = fma(ah, bh[u], hi[r][u] - next);
        lo[r][u] = lo[r][u] + fma(al, bh[u], fma(ah, bl[u], off));
        hi[r][u] = next;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      double* const p = to + r * pitch + u * F64::W;
      F64::store(p, hi[r][u]);
      F64::store(p + rest, lo[r][u]);
    }
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS
