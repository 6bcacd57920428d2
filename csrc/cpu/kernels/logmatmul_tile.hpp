// A tile of results, from P or from terms, and of their derivatives. For logmatmul.cpp.
#pragma once

#include "logmatmul_terms.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::Product;

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
    write<S>(out_ + i * p_.out_row + j * p_.out_column, narrowed(quiet(value), static_cast<S*>(nullptr)));
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

}  // namespace
}  // namespace sumexp::SUMEXP_NS
