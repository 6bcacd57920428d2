// out_ij = log sum_k e^(a_ik + b_kj), a tile at a time, everything in double.
//
//   e^(a_ik) = A_ik 2^(N_i - 300),  e^(b_kj) = B_kj 2^(M_j - 300),   N_i = rint(max_k a_ik log2 e), M_j likewise
//   out_ij = (N_i + M_j - 600) ln 2 + log P_ij,                      P = A B
//
// The shifts are in the exponents, as everywhere here (numerics/exp.hpp), so that no difference is rounded. What a row's and a
// column's maximum leave out: an A or B that underflows is below 2^-1322 of its largest, its terms are below 2^-722, and a P
// of 2^-600 or more does not see 2^60 of them. Below that, which is 831 from the sum of both maxima, and where out is so near
// 0 that the error of P counts, the result is made from the terms a_ik + b_kj themselves, as logsumexp makes it.
//
// float and 16 bits: A and B rounded to double, their product a chain of FMAs for every 256 k, added in order. P is within
//   (256 + K / 256 + 4) 2^-53, which is 2^-24 |out| or less where |out| is not below `least`.
// double: A and B as pairs, within 0.14 2^-53, and P with what its additions round off:
//   next = fma(A, B, P);  rest += A B - (next - P)
// next - P is exact unless next is more than twice P; what it then loses is 2^-53 of next, and as P doubles each time, all
// these are 2 2^-53 of the last P. So |out| >= 1 is within 2.3 2^-53, one ulp, and half of one for rounding it.
//
// A chain's order is that of k. Tiles change nothing: a result depends on row i of a and column j of b alone.
#include SUMEXP_SIMD
//
#include "logmatmul.hpp"

#include "../../ops/logsumexp.hpp"
#include "exp_chunk.hpp"
#include "store.hpp"

namespace sumexp::SUMEXP_NS {

namespace {

using cpu::kTileColumns;
using cpu::kTileRows;
using cpu::Product;

constexpr int kDepth = 256;  // of k at a time
constexpr int kPanel = 2 * F64::W;
constexpr int kStep = F64::W * sizeof(double) == 64 ? 12 : F64::W == 1 ? 4 : 6;  // rows of a product in registers
constexpr int kPairStep = F64::W * sizeof(double) == 64 ? 4 : 2;
constexpr std::int64_t kPitch = kDepth + 8;  // of A's rows: not all in the same sets of the cache
constexpr double kLeast = 0x1p-600;          // P from here on misses nothing
constexpr int kCached = 4096;                // of k: a column is kept for all its rows

enum LineKind : int { kNumbers, kNothing, kSpecial };  // of a row of a, a column of b: finite maximum, all -inf, NaN or +inf

// How the elements of a row or column become factors.
struct Line {
  double shift, floor, anchor, exponent;
  int kind;
};
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

// -- from products to results ----------------------------------------------------------------------------------------

// A vector of results from P; `usable` is 1 where they are right already.
struct Finished {
  F64 value, usable;
};
SUMEXP_FN F64 usable_of(F64 p, F64 value, double least) {
  const F64 size = pick(at_or_above(p, F64(kLeast)), value * value, F64(0.0));
  return pick(at_or_above(size, F64(least * least)), F64(1.0), F64(0.0));
}
SUMEXP_FN Finished finish(F64 p, F64 exponents, F64 row_anchor, F64 column_anchor, double least) {
  using C = ExpConstants<double>;
  F64 k;
  const F64 m = exponent_split(p, k);
  const F64 n = k + exponents;
  const F64 logs = fma(n, F64(C::ln2_hi), fma(n, F64(C::ln2_lo), log1p_narrow(m - F64(1.0))));
  const F64 value = (row_anchor + column_anchor) + logs;
  return {value, usable_of(p, value, least)};
}
SUMEXP_FN Finished finish(DD<F64> p, F64 exponents, F64 row_anchor, F64 column_anchor, double least) {
  using C = ExpConstants<double>;
  using Fmt = Format<double>;
  F64 k;
  p = fast_two_sum(p.hi, p.lo);
  const F64 m = exponent_split(p.hi, k);
  const F64 down = pow2_field(F64(Fmt::magic) + (F64(1.0 * Fmt::bias) - k));
  const DD<F64> log_m = log1p_wide(two_sum(m - F64(1.0), p.lo * down));
  const F64 n = k + exponents;
  const DD<F64> logs = two_product(n, F64(C::ln2_hi)), anchors = two_sum(row_anchor, column_anchor);
  const DD<F64> large = two_sum(anchors.hi, logs.hi), all = two_sum(large.hi, log_m.hi);
  const F64 value = all.hi + ((all.lo + large.lo) + (anchors.lo + fma(n, F64(C::ln2_lo), logs.lo + log_m.lo)));
  return {value, usable_of(p.hi, value, least)};
}

// -- one result from its terms -----------------------------------------------------------------------------------

// log sum_k e^(x_k + y_k): logsumexp of the rounded sums, and what rounding them has left out, the mean of the rests by their
// terms' weights.
template <class S>
double by_terms(const char* x, std::int64_t x_stride, const double* y, const char* y_at, std::int64_t y_stride,
                std::int64_t count) {
  using G = Geometry<double>;
  constexpr int kChunk = G::kChunk;
  MergeTree<ExpState<double>> tree;
  ExpState<double> state = ExpState<double>::empty();
  double xs[kChunk], ys[kChunk], sums[kChunk];
  const auto load_sums = [&](std::int64_t first, int n, double* rests) SUMEXP_INLINE {
    load<S>(x + first * x_stride, x_stride, n, xs);
    if (y) memcpy(ys, y + first, static_cast<std::size_t>(n) * sizeof(double));
    else load<S>(y_at + first * y_stride, y_stride, n, ys);
    for (int i = 0; i < n; ++i) {
      const DD<double> sum = two_sum(xs[i], ys[i]);
      sums[i] = sum.hi;
      if (rests) rests[i] = is_finite(sum.hi) ? sum.lo : 0.0;
    }
  };
  for (std::int64_t first = 0; first < count; first += kChunk) {
    if (first) tree.push(state);
    const int n = static_cast<int>(count - first < kChunk ? count - first : kChunk);
    load_sums(first, n, nullptr);
    state = exp_chunk<FullTerms, F64, true, false>(static_cast<const double*>(sums), n, static_cast<double*>(nullptr), 0);
  }
  state = tree.finish(state);
  if (is_nan(state.R)) return Limits<double>::nan();
  if (!is_finite(state.m)) return state.m;
  const DD<double> L = log_over_max(row_sum(state));
  const DD<double> value = two_sum(state.m, L.hi);
  if (!std::is_same_v<S, double> || value.hi >= Format<double>::direct || value.hi <= -Format<double>::direct)
    return plus_narrow(state.m, L);
  // sum_k e^(t_k - value) rest_k
  const double N = exponent_of(value.hi);
  const Reduction<double> reduce = reduction_to(N);
  const Reduction<F64> to = {F64(reduce.shift), F64(reduce.floor)};
  double rests[kChunk];
  DD<double> mean = {0.0, 0.0};
  for (std::int64_t first = 0; first < count; first += kChunk) {
    const int n = static_cast<int>(count - first < kChunk ? count - first : kChunk);
    load_sums(first, n, rests);
    F64 group[1][G::kGroup / F64::W];
    lane_reduce<F64, 1>(n, 0.0, group, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
      using U = std::remove_pointer_t<decltype(acc)>;
      const U raw = memory.template load<U>(static_cast<const double*>(sums) + i, -Limits<double>::infinity);
      const Reduction<U> reduction = {U(to.shift), U(to.floor)};
      const U weight = FullTerms::term(FullTerms::parts(raw, reduction));
      acc[0] = fma(weight, memory.template load<U>(static_cast<const double*>(rests) + i, 0.0), acc[0]);
    });
    mean = mean + fold_group<F64>(group[0]);
  }
  const double scale = kCarryDown<double> / exp_wide(remainder_wide(value.hi, N));
  return value.hi + ((value.lo + L.lo) + mean.hi * scale);
}

// -- a tile --------------------------------------------------------------------------------------------------------

template <class T>
T* cut(char*& scratch, std::int64_t count) {
  T* const part = reinterpret_cast<T*>(scratch);
  scratch += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
  return part;
}
std::int64_t padded(int columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

std::int64_t scratch_bytes(bool f64, int rows, int columns) {
  const std::int64_t width = padded(columns), parts = f64 ? 2 : 1;
  const std::int64_t doubles =
      kDepth * width + parts * (kDepth * width + rows * kPitch + rows * width) + kDepth + kCached + 3 * width + 64;
  return doubles * 8 + (rows + width) * static_cast<std::int64_t>(sizeof(Line)) + rows * width + 16 * 64;
}

template <class S>
class Tile {
 public:
  static constexpr bool kPair = std::is_same_v<S, double>;

  Tile(const Product& p, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch)
      : p_(p), rows_(rows), columns_(columns), width_(padded(columns)) {
    a_ = p.a + row * p.a_row, b_ = p.b + column * p.b_column;
    out_ = p.out + row * p.out_row + column * p.out_column;
    char* left = static_cast<char*>(scratch);
    block_ = cut<double>(left, kDepth * width_);
    for (int part = 0; part < (kPair ? 2 : 1); ++part) {
      panels_[part] = cut<double>(left, kDepth * width_);
      factors_[part] = cut<double>(left, rows * kPitch);
      sums_[part] = cut<double>(left, rows * width_);
    }
    x_ = cut<double>(left, kDepth), column_ = cut<double>(left, kCached);
    exponents_ = cut<double>(left, width_), anchors_ = cut<double>(left, width_), largest_ = cut<double>(left, width_);
    row_lines_ = cut<Line>(left, rows), column_lines_ = cut<Line>(left, width_);
    by_terms_ = cut<char>(left, rows * width_);
  }

  void run() {
    look_at_rows();
    look_at_columns();
    for (std::int64_t first = 0; first < p_.k; first += kDepth) {
      const int count = static_cast<int>(p_.k - first < kDepth ? p_.k - first : kDepth);
      make_row_factors(first, count);
      make_column_factors(first, count);
      multiply_all(count, first == 0);
    }
    finish_all();
  }

 private:
  int depth(std::int64_t first) const { return static_cast<int>(p_.k - first < kDepth ? p_.k - first : kDepth); }

  void look_at_rows() {
    for (int i = 0; i < rows_; ++i) {
      F64 largest = F64(-Limits<double>::infinity), nan = F64(0.0);
      for (std::int64_t first = 0; first < p_.k; first += kDepth) {
        const int count = depth(first);
        load<S>(a_ + i * p_.a_row + first * p_.a_k, p_.a_k, count, x_);
        each_vector<F64>(count, [&](std::int64_t k, auto memory) SUMEXP_INLINE {
          look(memory.template load<F64>(x_ + k, -Limits<double>::infinity), largest, nan);
        });
      }
      row_lines_[i] = line_of(::sumexp::SUMEXP_NS::largest(largest), any(nan));
    }
  }
  static SUMEXP_FN void look(F64 x, F64& largest, F64& nan) {
    const auto unknown = unordered(x);
    largest = pick(unknown, largest, larger(x, largest));
    nan = pick(unknown, F64(1.0), nan);
  }
  static SUMEXP_FN bool any(F64 nan) { return ::sumexp::SUMEXP_NS::largest(nan) > 0.0; }

  // b's elements of a block, block_[k * width_ + j]; beyond the last column 0.
  void load_block(std::int64_t first, int count) {
    const char* const b = b_ + first * p_.b_k;
    if (p_.b_column == sizeof(S) || p_.b_k != sizeof(S)) {
      for (int k = 0; k < count; ++k) load<S>(b + k * p_.b_k, p_.b_column, columns_, block_ + k * width_);
    } else {
      for (int j = 0; j < columns_; ++j) {
        load<S>(b + j * p_.b_column, p_.b_k, count, x_);
        for (int k = 0; k < count; ++k) block_[k * width_ + j] = x_[k];
      }
    }
    for (int k = 0; k < count; ++k)
      for (std::int64_t j = columns_; j < width_; ++j) block_[k * width_ + j] = 0.0;
  }
  void look_at_columns() {
    for (std::int64_t j = 0; j < width_; ++j) largest_[j] = -Limits<double>::infinity, anchors_[j] = 0.0;
    for (std::int64_t first = 0; first < p_.k; first += kDepth) {
      const int count = depth(first);
      load_block(first, count);
      for (std::int64_t j = 0; j < width_; j += F64::W) {
        F64 largest = F64::load(largest_ + j), nan = F64::load(anchors_ + j);
        for (int k = 0; k < count; ++k) look(F64::load(block_ + k * width_ + j), largest, nan);
        F64::store(largest_ + j, largest);
        F64::store(anchors_ + j, nan);
      }
    }
    for (std::int64_t j = 0; j < width_; ++j) {
      const Line& line = column_lines_[j] = line_of(largest_[j], anchors_[j] > 0.0);
      exponents_[j] = line.exponent - 2.0 * Format<double>::carry, anchors_[j] = line.anchor;
    }
  }

  void make_row_factors(std::int64_t first, int count) {
    for (int i = 0; i < rows_; ++i) {
      double *const hi = factors_[0] + i * kPitch, *const lo = kPair ? factors_[1] + i * kPitch : nullptr;
      if (row_lines_[i].kind == kNumbers) {
        load<S>(a_ + i * p_.a_row + first * p_.a_k, p_.a_k, count, x_);
        row_factors<kPair>(x_, count, row_lines_[i], hi, lo);
      } else {
        for (int k = 0; k < count; ++k) hi[k] = 0.0;
        for (int k = 0; kPair && k < count; ++k) lo[k] = 0.0;
      }
    }
  }
  void make_column_factors(std::int64_t first, int count) {
    if (p_.k > kDepth) load_block(first, count);
    for (std::int64_t j = 0; j < width_; j += kPanel) {
      PanelLines lines;
      for (int u = 0; u < kPanel; ++u) {
        const Line& line = column_lines_[j + u];
        lines.shift[u] = line.shift, lines.floor[u] = line.floor, lines.anchor[u] = line.anchor;
        if (line.kind == kSpecial)
          for (int k = 0; k < count; ++k) block_[k * width_ + j + u] = 0.0;
      }
      column_factors<kPair>(block_ + j, width_, count, lines, panels_[0] + j * kDepth, panels_[kPair] - panels_[0]);
    }
  }

  template <int R>
  void multiply_rows(int i, std::int64_t j, int count, bool first) {
    const double *const a = factors_[0] + i * kPitch, *const panel = panels_[0] + j * kDepth;
    double* const to = sums_[0] + i * width_ + j;
    if constexpr (kPair)
      multiply_pairs<R>(a, factors_[1] - factors_[0], panel, panels_[1] - panels_[0], count, to, width_, sums_[1] - sums_[0],
                        first);
    else multiply<R>(a, panel, count, to, width_, first);
  }
  void multiply_all(int count, bool first) {
    constexpr int step = kPair ? kPairStep : kStep;
    for (std::int64_t j = 0; j < width_; j += kPanel) {
      int i = 0;
      for (; i + step <= rows_; i += step) multiply_rows<step>(i, j, count, first);
      if constexpr (step > 4)
        for (; i + 4 <= rows_; i += 4) multiply_rows<4>(i, j, count, first);
      for (; i + 2 <= rows_; i += 2) multiply_rows<2>(i, j, count, first);
      if (i < rows_) multiply_rows<1>(i, j, count, first);
    }
  }

  // Below this |result| the error of P counts.
  double least() const {
    if (kPair) return 1.0;
    return (260.0 + static_cast<double>(p_.k / kDepth)) * 0x1p-29;
  }

  void finish_all() {
    const double infinity = Limits<double>::infinity, bound = least();
    bool some = false;
    for (int i = 0; i < rows_; ++i) {
      const Line& line = row_lines_[i];
      const F64 exponent = F64(line.exponent), anchor = F64(line.anchor);
      double* const p = sums_[0] + i * width_;
      char* const terms = by_terms_ + i * width_;
      for (std::int64_t j = 0; j < width_; j += F64::W) {
        const F64 exponents = exponent + F64::load(exponents_ + j), anchors = F64::load(anchors_ + j);
        Finished r;
        if constexpr (kPair)
          r = finish(DD<F64>{F64::load(p + j), F64::load(sums_[1] + i * width_ + j)}, exponents, anchor, anchors, bound);
        else r = finish(F64::load(p + j), exponents, anchor, anchors, bound);
        F64::store(p + j, r.value);
        double usable[F64::W];
        F64::store(usable, r.usable);
        for (int u = 0; u < F64::W; ++u) terms[j + u] = usable[u] == 0.0;
      }
      for (int j = 0; j < columns_; ++j) {
        const int column = column_lines_[j].kind;
        if (line.kind == kNumbers && column == kNumbers) {
          some |= terms[j];
        } else if (line.kind == kSpecial || column == kSpecial) {
          terms[j] = true, some = true;
        } else {
          terms[j] = false, p[j] = -infinity;
        }
      }
    }
    if (some) finish_by_terms();
    for (int i = 0; i < rows_; ++i)
      for (int j = 0; j < columns_; ++j)
        write<S>(out_ + i * p_.out_row + j * p_.out_column, narrowed(sums_[0][i * width_ + j], static_cast<S*>(nullptr)));
  }
  void finish_by_terms() {
    for (int j = 0; j < columns_; ++j) {
      const char* const b = b_ + j * p_.b_column;
      double* column = nullptr;
      for (int i = 0; i < rows_; ++i) {
        if (!by_terms_[i * width_ + j]) continue;
        if (!column && p_.k <= kCached) load<S>(b, p_.b_k, p_.k, column = column_);
        sums_[0][i * width_ + j] = by_terms<S>(a_ + i * p_.a_row, p_.a_k, column, b, p_.b_k, p_.k);
      }
    }
  }

  const Product& p_;
  int rows_, columns_;
  std::int64_t width_;  // of columns, in whole panels
  const char *a_, *b_;
  char* out_;
  double *block_, *panels_[2], *factors_[2], *sums_[2], *x_, *column_, *exponents_, *anchors_, *largest_;
  Line *row_lines_, *column_lines_;
  char* by_terms_;
};

template <class S>
void tile(const Product& product, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch) {
  Tile<S>(product, row, rows, column, columns, scratch).run();
}

const cpu::LogMatmulKernels kTable = {{tile<f16>, tile<bf16>, tile<float>, tile<double>}, scratch_bytes};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

#define SUMEXP_JOIN_(a, b) a##b
#define SUMEXP_JOIN(a, b) SUMEXP_JOIN_(a, b)

namespace sumexp::cpu {
const LogMatmulKernels& SUMEXP_JOIN(log_matmul_kernels_, SUMEXP_NS)() { return SUMEXP_NS::kTable; }
}  // namespace sumexp::cpu
