// out_ij = log sum_k e^(a_ik + b_kj), a tile at a time, everything in double.
//
//   e^(a_ik) = A_ik 2^(N_i - 300),  e^(b_kj) = B_kj 2^(M_j - 300),   N_i = rint(max_k a_ik log2 e), M_j likewise
//   out_ij = (N_i + M_j - 600) ln 2 + log P_ij,                      P = A B
//
// The shifts are in the exponents, as everywhere here (numerics/exp.hpp), so that no difference is rounded. What a row's and a
// column's maximum leave out: an A or B that underflows is below 2^-1322 of its largest, its terms are below 2^-722, and a P
// of 2^-600 or more does not see 2^60 of them. Below that, which is 831 from the sum of both maxima, and where out is so near
// 0 that the error of P counts (with all its terms), the result is made from the terms a_ik + b_kj themselves, as logsumexp
// makes it.
//
// float and 16 bits: A and B rounded to double, their product a chain of FMAs for every 256 k, added in order. P is within
//   (256 + K / 256 + 4) 2^-53, which is 2^-24 |out| or less where |out| is not below `least`.
// double: A and B as pairs, within 0.14 2^-53, and P with what its additions round off:
//   next = fma(A, B, P);  rest += A B - (next - P)
// next - P is exact unless next is more than twice P; what it then loses is 2^-53 of next, and as P doubles each time, all
// these are 2 2^-53 of the last P. So |out| >= 1 is within 2.3 2^-53, one ulp, and half of one for rounding it.
//
// Derivatives are made of plain products. The weight of a term is e^(a_ik + b_kj - out_ij) = A_ik B_kj / P_ij:
//
//   da_ik = A_ik sum_j (g_ij / P_ij) B_kj,  db_kj = B_kj sum_i A_ik (g_ij / P_ij)
//   dout_ij = sum_k (A_ik ta_ik B_kj + A_ik B_kj tb_kj) / P_ij
//
// within (256 + n / 256 + 8) 2^-53 of the sum of the absolute terms, n being how many are summed (K, and N or M). Where P is
// below 2^-100, which is 485 from both maxima, they are made from the terms themselves, whose weights then are within |out_ij|
// 2^-52.
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
using cpu::kNothing;
using cpu::kNumbers;
using cpu::kSpecial;
using cpu::kTileRows;
using cpu::Line;
using cpu::Product;

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

// -- from products to results ----------------------------------------------------------------------------------------

// Which results are made from terms: those whose P has missed some, and those that are small, unless their largest term is not.
enum ByTerms : char { kNot, kMissed, kSmall };

// A vector of results from P, and which of these each is.
struct Finished {
  F64 value, by_terms;
};
SUMEXP_FN F64 by_terms_of(F64 p, F64 value, double least) {
  const F64 small = pick(at_or_above(value * value, F64(least * least)), F64(1.0 * kNot), F64(1.0 * kSmall));
  return pick(at_or_above(p, F64(kLeast)), small, F64(1.0 * kMissed));
}
SUMEXP_FN Finished finish(F64 p, F64 exponents, F64 row_anchor, F64 column_anchor, double least) {
  using C = ExpConstants<double>;
  F64 k;
  const F64 m = exponent_split(p, k);
  const F64 n = k + exponents;
  const F64 logs = fma(n, F64(C::ln2_hi), fma(n, F64(C::ln2_lo), log1p_narrow(m - F64(1.0))));
  const F64 value = (row_anchor + column_anchor) + logs;
  return {value, by_terms_of(p, value, least)};
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
  const F64 sum = all.hi + ((all.lo + large.lo) + (anchors.lo + fma(n, F64(C::ln2_lo), logs.lo + log_m.lo)));
  const F64 value = pick(unordered(sum), anchors.hi, sum);  // infinite, where that makes NaNs
  return {value, by_terms_of(p.hi, value, least)};
}

// -- one result from its terms -----------------------------------------------------------------------------------

// e^(x - value), for a finite value.
struct Weigher {
  Reduction<double> reduce;
  double anchor, scale;
  explicit Weigher(double value) {
    const Base<double> base = base_of(value);
    reduce = base.reduce, anchor = base.anchor;
    scale = kCarryDown<double>;
    if (anchor == 0.0) scale = scale / exp_wide(remainder_wide(value, exponent_of(value)));
  }
  template <class U>
  SUMEXP_FN U operator()(U x) const {
    return FullTerms::term(FullTerms::parts(x - U(anchor), Reduction<U>{U(reduce.shift), U(reduce.floor)})) * U(scale);
  }
};

// Weights of the terms x_k + y_k of a sum that is infinite while all of these are below +inf: from halves, as pairs.
template <class S>
class WeigherOfHalves {
 public:
  WeigherOfHalves(const char* x, std::int64_t x_stride, const char* y, std::int64_t y_stride, std::int64_t count) {
    const auto each = [&](auto body) SUMEXP_INLINE {
      for (std::int64_t k = 0; k < count; ++k)
        body(half_of(widened(read<S>(x + k * x_stride)), widened(read<S>(y + k * y_stride))));
    };
    each([&](DD<double> half) SUMEXP_INLINE {
      special_ |= !(half.hi < Limits<double>::infinity);
      if (half.hi > most_.hi || (half.hi == most_.hi && half.lo > most_.lo)) most_ = half;
    });
    special_ |= !is_finite(most_.hi);
    if (!special_) each([&](DD<double> half) SUMEXP_INLINE { sum_ += term(half); });
  }
  double operator()(double x, double y) const { return special_ ? Limits<double>::nan() : term(half_of(x, y)) / sum_; }

 private:
  static DD<double> half_of(double x, double y) {
    const DD<double> half = two_sum(x * 0.5, y * 0.5);
    return {half.hi, is_finite(half.hi) ? half.lo : 0.0};
  }
  double term(DD<double> half) const { return weigher_(2.0 * ((half.hi - most_.hi) + (half.lo - most_.lo))); }

  const Weigher weigher_{0.0};
  DD<double> most_ = {-Limits<double>::infinity, 0.0};
  double sum_ = 0.0;
  bool special_ = false;
};

// sum_i e^(x_i - value) f_i of a chunk
DD<double> weighted_sum(const Weigher& weigher, const double* x, const double* f, int n) {
  F64 group[1][Geometry<double>::kGroup / F64::W];
  lane_reduce<F64, 1>(n, 0.0, group, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
    using U = std::remove_pointer_t<decltype(acc)>;
    const U weight = weigher(memory.template load<U>(x + i, -Limits<double>::infinity));
    acc[0] = fma(weight, memory.template load<U>(f + i, 0.0), acc[0]);
  });
  return fold_group<F64>(group[0]);
}

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
    state = exp_chunk<FullTerms, F64, true, false>(static_cast<const double*>(sums), n, static_cast<double*>(nullptr));
  }
  state = tree.finish(state);
  if (is_nan(state.R)) return Limits<double>::nan();
  if (!is_finite(state.m)) return state.m;
  const DD<double> L = log_over_max(row_sum(state));
  const DD<double> value = two_sum(state.m, L.hi);
  if (!std::is_same_v<S, double> || value.hi >= Format<double>::direct || value.hi <= -Format<double>::direct)
    return plus_narrow(state.m, L);
  double rests[kChunk];
  const Weigher weigher(value.hi);
  DD<double> mean = {0.0, 0.0};
  for (std::int64_t first = 0; first < count; first += kChunk) {
    const int n = static_cast<int>(count - first < kChunk ? count - first : kChunk);
    load_sums(first, n, rests);
    mean = mean + weighted_sum(weigher, sums, rests, n);
  }
  return value.hi + ((value.lo + L.lo) + mean.hi);
}

// -- a tile --------------------------------------------------------------------------------------------------------

template <class T>
T* cut(char*& scratch, std::int64_t count) {
  T* const part = reinterpret_cast<T*>(scratch);
  scratch += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
  return part;
}
std::int64_t padded(int columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

std::int64_t scratch_bytes(int rows, int columns) {
  const std::int64_t width = padded(columns);
  const std::int64_t doubles =
      kDepth * width + 2 * (kDepth * width + rows * kPitch + rows * width) + kDepth + 2 * kCached + 3 * width;
  return doubles * 8 + (rows + width) * static_cast<std::int64_t>(sizeof(Line)) + rows * width + 16 * 64;
}

// kPair: factors and sums are pairs. kTangent: there is a second sum, for the JVP.
template <class S, bool kPair, bool kTangent = false>
class Tile {
 public:
  Tile(const Product& p, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch)
      : p_(p), rows_(rows), columns_(columns), width_(padded(columns)) {
    a_ = p.a + row * p.a_row, b_ = p.b + column * p.b_column;
    out_ = p.out + row * p.out_row + column * p.out_column;
    char* left = static_cast<char*>(scratch);
    block_ = cut<double>(left, kDepth * width_);
    for (int part = 0; part < (kPair || kTangent ? 2 : 1); ++part) {
      panels_[part] = cut<double>(left, kDepth * width_);
      factors_[part] = cut<double>(left, rows * kPitch);
      sums_[part] = cut<double>(left, rows * width_);
    }
    x_ = cut<double>(left, kDepth), column_ = cut<double>(left, kCached), row_ = cut<double>(left, kCached);
    exponents_ = cut<double>(left, width_), anchors_ = cut<double>(left, width_), largest_ = cut<double>(left, width_);
    row_lines_ = cut<Line>(left, rows), column_lines_ = cut<Line>(left, width_);
    by_terms_ = cut<char>(left, rows * width_);
  }

  void run() {
    multiply_whole();
    finish_all();
    for (int i = 0; i < rows_; ++i)
      for (int j = 0; j < columns_; ++j) put(i, j, sums_[0][i * width_ + j]);
  }

  void weigh(const cpu::Weights& to, std::int64_t row, std::int64_t column) {
    multiply_whole();
    for (int i = 0; column == 0 && i < rows_; ++i) to.rows[row + i] = row_lines_[i];
    for (int j = 0; row == 0 && j < columns_; ++j) to.columns[column + j] = column_lines_[j];
    for (int i = 0; i < rows_; ++i)
      for (int j = 0; j < columns_; ++j) {
        const std::int64_t at = (row + i) * to.pitch + column + j;
        const double p = sums_[0][i * width_ + j];
        const Sum kind = kind_of(i, j, p);
        to.far[at] = kind == kFar;
        if (kind == kNear) to.weight[at] = widened(read<S>(to.g + (row + i) * to.g_row + (column + j) * to.g_column)) / p;
        else to.weight[at] = kind == kNone ? 0.0 : from_terms(i, j);
      }
  }

  void tangents(const cpu::Tangents& t, std::int64_t row, std::int64_t column) {
    ta_ = t.a + row * t.a_row, tb_ = t.b + column * t.b_column;
    tangents_ = &t;
    multiply_whole();
    for (int i = 0; i < rows_; ++i)
      for (int j = 0; j < columns_; ++j) {
        const double p = sums_[0][i * width_ + j];
        const Sum kind = kind_of(i, j, p);
        put(i, j, kind == kNear ? sums_[1][i * width_ + j] / p : kind == kNone ? 0.0 : tangent_from_terms(i, j));
      }
  }

 private:
  enum Sum { kNear, kFar, kNone };

  // How a derivative is made: by its P; from terms; of a sum of nothing.
  Sum kind_of(int i, int j, double p) const {
    const int row = row_lines_[i].kind, column = column_lines_[j].kind;
    if (row == kSpecial || column == kSpecial) return kFar;
    if (row == kNothing || column == kNothing) return kNone;
    return p >= kLeastWeight ? kNear : kFar;
  }
  double from_terms(int i, int j) {
    return by_terms<S>(a_ + i * p_.a_row, p_.a_k, nullptr, b_ + j * p_.b_column, p_.b_k, p_.k);
  }
  double tangent_from_terms(int i, int j) {
    const double value = from_terms(i, j);
    if (value == -Limits<double>::infinity) return 0.0;
    if (!is_finite(value)) return is_nan(value) ? value : tangent_beyond(i, j);
    constexpr int kChunk = Geometry<double>::kChunk;
    const Weigher weigher(value);
    const auto add = [](const char* x, std::int64_t x_step, const char* y, std::int64_t y_step, int n, double* to) {
      double ys[kChunk];
      load<S>(x, x_step, n, to);
      load<S>(y, y_step, n, ys);
      for (int k = 0; k < n; ++k) to[k] = to[k] + ys[k];
    };
    double x[kChunk], t[kChunk];
    DD<double> sum = {0.0, 0.0};
    for (std::int64_t first = 0; first < p_.k; first += kChunk) {
      const int n = static_cast<int>(p_.k - first < kChunk ? p_.k - first : kChunk);
      add(a_ + i * p_.a_row + first * p_.a_k, p_.a_k, b_ + j * p_.b_column + first * p_.b_k, p_.b_k, n, x);
      add(ta_ + i * tangents_->a_row + first * tangents_->a_k, tangents_->a_k,
          tb_ + j * tangents_->b_column + first * tangents_->b_k, tangents_->b_k, n, t);
      sum = sum + weighted_sum(weigher, x, t, n);
    }
    return sum.hi;
  }
  double tangent_beyond(int i, int j) const {
    const char *const x = a_ + i * p_.a_row, *const y = b_ + j * p_.b_column;
    const char *const tx = ta_ + i * tangents_->a_row, *const ty = tb_ + j * tangents_->b_column;
    const WeigherOfHalves<S> weigher(x, p_.a_k, y, p_.b_k, p_.k);
    const auto at = [](const char* from, std::int64_t stride, std::int64_t k) { return widened(read<S>(from + k * stride)); };
    double sum = 0.0;
    for (std::int64_t k = 0; k < p_.k; ++k)
      sum += weigher(at(x, p_.a_k, k), at(y, p_.b_k, k)) * (at(tx, tangents_->a_k, k) + at(ty, tangents_->b_k, k));
    return sum;
  }
  void put(int i, int j, double value) {
    value = value == value ? value : Limits<double>::nan();
    write<S>(out_ + i * p_.out_row + j * p_.out_column, narrowed(value, static_cast<S*>(nullptr)));
  }

  void multiply_whole() {
    look_at_rows();
    look_at_columns();
    for (std::int64_t i = 0; p_.k == 0 && i < rows_ * width_; ++i) sums_[0][i] = 0.0;
    for (std::int64_t first = 0; first < p_.k; first += kDepth) {
      const int count = depth(first);
      make_row_factors(first, count);
      make_column_factors(first, count);
      multiply_all(panels_[0], sums_[0], count, first == 0);
      if constexpr (kTangent) add_tangents(first, count);
    }
  }
  // A (B tb) and (A ta) B, one after the other.
  void add_tangents(std::int64_t first, int count) {
    const char* const tb = tb_ + first * tangents_->b_k;
    for (int k = 0; k < count; ++k) {
      load<S>(tb + k * tangents_->b_k, tangents_->b_column, columns_, largest_);
      for (std::int64_t j = columns_; j < width_; ++j) largest_[j] = 0.0;
      for (std::int64_t j = 0; j < width_; ++j) {
        const std::int64_t at = j / kPanel * kPanel * kDepth + k * kPanel + j % kPanel;
        panels_[1][at] = panels_[0][at] * largest_[j];
      }
    }
    multiply_all(panels_[1], sums_[1], count, first == 0);
    for (int i = 0; i < rows_; ++i) {
      load<S>(ta_ + i * tangents_->a_row + first * tangents_->a_k, tangents_->a_k, count, x_);
      for (int k = 0; k < count; ++k) factors_[0][i * kPitch + k] = factors_[0][i * kPitch + k] * x_[k];
    }
    multiply_all(panels_[0], sums_[1], count, false);
  }
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
  void multiply_rows(const double* panels, double* sums, int i, std::int64_t j, int count, bool first) {
    const double *const a = factors_[0] + i * kPitch, *const panel = panels + j * kDepth;
    double* const to = sums + i * width_ + j;
    if constexpr (kPair)
      multiply_pairs<R>(a, factors_[1] - factors_[0], panel, panels_[1] - panels_[0], count, to, width_, sums_[1] - sums_[0],
                        first);
    else multiply<R>(a, panel, count, to, width_, first);
  }
  void multiply_all(const double* panels, double* sums, int count, bool first) {
    constexpr int step = kPair ? kPairStep : kStep;
    for (std::int64_t j = 0; j < width_; j += kPanel) {
      int i = 0;
      for (; i + step <= rows_; i += step) multiply_rows<step>(panels, sums, i, j, count, first);
      if constexpr (step > 4)
        for (; i + 4 <= rows_; i += 4) multiply_rows<4>(panels, sums, i, j, count, first);
      for (; i + 2 <= rows_; i += 2) multiply_rows<2>(panels, sums, i, j, count, first);
      if (i < rows_) multiply_rows<1>(panels, sums, i, j, count, first);
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
        double which[F64::W];
        F64::store(which, r.by_terms);
        for (int u = 0; u < F64::W; ++u) terms[j + u] = static_cast<char>(which[u]);
      }
      for (int j = 0; j < columns_; ++j) {
        const int column = column_lines_[j].kind;
        if (line.kind == kNumbers && column == kNumbers) {
          some |= terms[j] != kNot;
        } else if (line.kind == kSpecial || column == kSpecial) {
          terms[j] = kMissed, some = true;
        } else {
          terms[j] = kNot, p[j] = -infinity;
        }
      }
    }
    if (some) finish_by_terms();
  }
  // |largest a_ik + b_kj|: where it is not small, P will do.
  double largest_term(int i, const double* column) {
    load<S>(a_ + i * p_.a_row, p_.a_k, p_.k, row_);
    F64 best = F64(-Limits<double>::infinity);
    each_vector<F64>(p_.k, [&](std::int64_t k, auto memory) SUMEXP_INLINE {
      const F64 x = memory.template load<F64>(row_ + k, -Limits<double>::infinity);
      best = larger(x + memory.template load<F64>(column + k, 0.0), best);
    });
    const double most = ::sumexp::SUMEXP_NS::largest(best);
    return most < 0.0 ? -most : most;
  }
  void finish_by_terms() {
    for (int j = 0; j < columns_; ++j) {
      const char* const b = b_ + j * p_.b_column;
      double* column = nullptr;
      for (int i = 0; i < rows_; ++i) {
        if (!by_terms_[i * width_ + j]) continue;
        if (!column && p_.k <= kCached) load<S>(b, p_.b_k, p_.k, column = column_);
        if (by_terms_[i * width_ + j] == kSmall && column && largest_term(i, column) >= least()) continue;
        sums_[0][i * width_ + j] = by_terms<S>(a_ + i * p_.a_row, p_.a_k, column, b, p_.b_k, p_.k);
      }
    }
  }

  const Product& p_;
  int rows_, columns_;
  std::int64_t width_;  // of columns, in whole panels
  const char *a_, *b_, *ta_, *tb_;
  const cpu::Tangents* tangents_;
  char* out_;
  double *block_, *panels_[2], *factors_[2], *sums_[2], *x_, *column_, *row_, *exponents_, *anchors_, *largest_;
  Line *row_lines_, *column_lines_;
  char* by_terms_;
};

template <class S>
void tile(const Product& product, std::int64_t row, int rows, std::int64_t column, int columns, void* scratch) {
  Tile<S, std::is_same_v<S, double>>(product, row, rows, column, columns, scratch).run();
}
template <class S>
void jvp(const Product& product, const cpu::Tangents& tangents, std::int64_t row, int rows, std::int64_t column, int columns,
         void* scratch) {
  Tile<S, false, true>(product, row, rows, column, columns, scratch).tangents(tangents, row, column);
}
template <class S>
void weigh(const Product& product, const cpu::Weights& weights, std::int64_t row, int rows, std::int64_t column, int columns,
           void* scratch) {
  Tile<S, false>(product, row, rows, column, columns, scratch).weigh(weights, row, column);
}

// -- gradients -----------------------------------------------------------------------------------------------

template <class S>
void gradient(const cpu::Gradient& g, std::int64_t row, int rows, std::int64_t first_k, int count, void* scratch) {
  char* free = static_cast<char*>(scratch);
  const std::int64_t width = padded(count);
  double *const panels = cut<double>(free, kDepth * width), *const weights = cut<double>(free, rows * kPitch);
  double *const sums = cut<double>(free, rows * width), *const x = cut<double>(free, width),
                *const y = cut<double>(free, width);
  const char *const left = g.left + row * g.left_row + first_k * g.left_k, *const right = g.right + first_k * g.right_k;
  const double* const weight = g.weight + row * g.weight_row;
  const char* const far = g.far + row * g.weight_row;

  bool some = false;
  for (std::int64_t i = 0; i < rows * width; ++i) sums[i] = 0.0;
  for (std::int64_t c0 = 0; c0 < g.columns; c0 += kDepth) {
    const int block = static_cast<int>(g.columns - c0 < kDepth ? g.columns - c0 : kDepth);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < block; ++c) {
        const std::int64_t at = r * g.weight_row + (c0 + c) * g.weight_column;
        some |= far[at];
        weights[r * kPitch + c] = far[at] ? 0.0 : weight[at];
      }
    for (int c = 0; c < block; ++c) {
      const Line& line = g.right_lines[c0 + c];
      if (line.kind == kNumbers) {
        load<S>(right + (c0 + c) * g.right_column, g.right_k, count, x);
        row_factors<false>(x, count, line, y, nullptr);
      }
      for (std::int64_t k = 0; k < width; ++k)
        panels[k / kPanel * kPanel * kDepth + c * kPanel + k % kPanel] = line.kind == kNumbers && k < count ? y[k] : 0.0;
    }
    for (std::int64_t k = 0; k < width; k += kPanel) {
      const auto multiply_rows = [&](auto step, int r) SUMEXP_INLINE {
        multiply<decltype(step)::value>(weights + r * kPitch, panels + k * kDepth, block, sums + r * width + k, width, c0 == 0);
      };
      int r = 0;
      for (; r + kStep <= rows; r += kStep) multiply_rows(std::integral_constant<int, kStep>(), r);
      for (; r < rows; ++r) multiply_rows(std::integral_constant<int, 1>(), r);
    }
  }
  for (int r = 0; r < rows; ++r) {
    const Line& line = g.left_lines[row + r];
    double* const sum = sums + r * width;
    load<S>(left + r * g.left_row, g.left_k, count, x);
    if (line.kind == kNumbers) {
      row_factors<false>(x, count, line, y, nullptr);
      for (int k = 0; k < count; ++k) sum[k] = sum[k] * y[k];
    }
    for (std::int64_t c = 0; some && c < g.columns; ++c) {
      if (!far[r * g.weight_row + c * g.weight_column]) continue;
      const double value = weight[r * g.weight_row + c * g.weight_column];
      const double gradient = widened(read<S>(g.g + (row + r) * g.g_row + c * g.g_column));
      if (value == -Limits<double>::infinity) continue;
      if (is_nan(value)) {
        for (int k = 0; k < count; ++k) sum[k] = value;
        continue;
      }
      if (!is_finite(value)) {
        const WeigherOfHalves<S> weigher(g.left + (row + r) * g.left_row, g.left_k, g.right + c * g.right_column, g.right_k,
                                         g.k);
        load<S>(right + c * g.right_column, g.right_k, count, y);
        for (int k = 0; k < count; ++k) sum[k] += weigher(x[k], y[k]) * gradient;
        continue;
      }
      const Weigher weigher(value);
      load<S>(right + c * g.right_column, g.right_k, count, y);
      each_vector<F64>(count, [&](std::int64_t k, auto memory) SUMEXP_INLINE {
        const F64 t = memory.template load<F64>(x + k, -Limits<double>::infinity) + memory.template load<F64>(y + k, 0.0);
        memory.store(sum + k, fma(weigher(t), F64(gradient), memory.template load<F64>(sum + k, 0.0)));
      });
    }
    char* const out = g.out + (row + r) * g.out_row + first_k * g.out_k;
    for (int k = 0; k < count; ++k) {
      const double value = sum[k] == sum[k] ? sum[k] : Limits<double>::nan();
      write<S>(out + k * g.out_k, narrowed(value, static_cast<S*>(nullptr)));
    }
  }
}

const cpu::LogMatmulKernels kTable = {{tile<f16>, tile<bf16>, tile<float>, tile<double>},
                                      {jvp<f16>, jvp<bf16>, jvp<float>, jvp<double>},
                                      {weigh<f16>, weigh<bf16>, weigh<float>, weigh<double>},
                                      {gradient<f16>, gradient<bf16>, gradient<float>, gradient<double>},
                                      scratch_bytes};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(LogMatmulKernels, log_matmul_kernels_, SUMEXP_NS::kTable)
