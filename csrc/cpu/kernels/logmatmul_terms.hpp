// A sum of products from its terms a_ik + b_kj, and their weights: where P has missed some. For logmatmul.cpp.
#pragma once

#include "../../ops/logsumexp.hpp"
#include "logmatmul_products.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

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

}  // namespace
}  // namespace sumexp::SUMEXP_NS
