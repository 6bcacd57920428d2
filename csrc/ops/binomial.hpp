// How many of n independent trials succeed: the split of a node's draws between its two sides.
#pragma once

#include <cmath>

#include "../numerics/mass.hpp"
#include "../numerics/philox.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr int kTail = 256;  // of the terms above n p = 10 that can matter

// log n! - log(sqrt(2 pi n) (n / e)^n): exact values, then Stirling's series, whose next term is below 2^-53 of the first
// there.
SUMEXP_FN double stirling_error(double n) {
  constexpr double kExact[16] = {0,
                                 0x1.4c071bcda0a5bp-4,
                                 0x1.52a9b923ea649p-5,
                                 0x1.c579a268d80b3p-6,
                                 0x1.54a2662fd78a9p-6,
                                 0x1.10b4e513fcbedp-6,
                                 0x1.c6b167bebdf36p-7,
                                 0x1.85d4d612e4a86p-7,
                                 0x1.552805e7b3076p-7,
                                 0x1.2f4871b12ab64p-7,
                                 0x1.10f9d4c0743a7p-7,
                                 0x1.f0593088014f8p-8,
                                 0x1.c7018733aa9c6p-8,
                                 0x1.a40514700f36cp-8,
                                 0x1.86076c002d4a7p-8,
                                 0x1.6c08f6f194a10p-8};
  if (n < 16) return kExact[static_cast<int>(n)];
  const double r = 1 / n, r2 = r * r;
  return r * (1.0 / 12 - r2 * (1.0 / 360 - r2 * (1.0 / 1260 - r2 * (1.0 / 1680 - r2 * (1.0 / 1188 - r2 * (691.0 / 360360))))));
}

// x log(x / M) + M - x for M = x - d, x > 0
SUMEXP_FN double deviance(double x, double d) {
  const double M = x - d;
  if (std::fabs(d) < 0.1 * (x + M)) {
    const double v = d / (x + M), v2 = v * v;
    double s = d * v, e = 2 * x * v;
    for (int j = 3;; j += 2) {
      e *= v2;
      const double next = s + e / j;
      if (next == s) return s;
      s = next;
    }
  }
  return x * log_of(x / M) - d;
}

// The probability function f of Binomial(n, p), relative to its mode, n p >= 10. The logarithm is within 1e-12, plus 2^-50 of
// itself.
class BinomialMass {
 public:
  SUMEXP_FN BinomialMass(double n, double p) : n_(n), p_(p), mean_(two_product(n, p)) {
    mode_ = static_cast<double>(static_cast<std::int64_t>(mean_.hi + p));
    at_mode_ = rest(mode_);
  }
  SUMEXP_FN double mode() const { return mode_; }
  SUMEXP_FN double mean_over_mode() const { return (mean_.hi - mode_) + mean_.lo; }
  // log f(k) / f(mode), 0 <= k <= n
  SUMEXP_FN double log_ratio(double k) const {
    if (k > 0 && k < n_) return rest(k) - at_mode_;
    constexpr double kHalfLog2Pi = 0x1.d67f1c864beb5p-1;
    const double end = n_ * (k == 0 ? log1p_wide(-p_) : log_of(p_));
    return end - (at_mode_ + stirling_error(n_) + 0.5 * log_of(n_) - kHalfLog2Pi);
  }

 private:
  // log f(k), but for what is common to all k; 0 < k < n
  SUMEXP_FN double rest(double k) const {
    const double d = (k - mean_.hi) - mean_.lo;
    return -(stirling_error(k) + stirling_error(n_ - k) + deviance(k, d) + deviance(n_ - k, -d) +
             0.5 * (log_of(k) + log_of(n_ - k)));
  }
  double n_, p_;
  DD<double> mean_;
  double mode_, at_mode_;
};

SUMEXP_FN std::int64_t by_inversion(std::int64_t n, double p, double v) {
  const Probability<double> none = probability_of_log(static_cast<double>(n) * log1p_wide(-p));
  if (v >= none.rest) return 0;
  const double odds = p / (1 - p);
  const auto ratio = [=](int k) { return static_cast<double>(n - k + 1) * odds / k; };  // f(k) / f(k - 1)
  // Every 16th f is kept, and those between are made again: an array of all would be 2 KB of each thread of a GPU.
  constexpr int kEvery = 16;
  double start[kTail / kEvery];
  double f = start[0] = none.value;
  int last = 0;
  for (int k = 1; k < kTail && k <= n; ++k) {
    f *= ratio(k);
    if (k % kEvery == 0) start[k / kEvery] = f;
    last = k;
    if (f < 0x1p-170 * v) break;  // n p < 10: the terms fall by then
  }
  double above = 0;  // P(K > k)
  for (int first = last / kEvery * kEvery; first >= 0; first -= kEvery) {
    const int count = last - first < kEvery ? last - first + 1 : kEvery;
    double run[kEvery];
    run[0] = start[first / kEvery];
    for (int i = 1; i < count; ++i) run[i] = run[i - 1] * ratio(first + i);
    for (int i = count - 1; i >= 0 && first + i > 1; --i) {
      above += run[i];
      if (v < above) return first + i;
    }
  }
  return 1;
}

SUMEXP_FN std::int64_t by_rejection(std::int64_t n, double p, const RowRandom& random, std::uint64_t which) {
  const double size = static_cast<double>(n);
  const BinomialMass f(size, p);
  const double spread = std::sqrt(size * p * (1 - p));
  const double b = 1.15 + 2.53 * spread, a = -0.0873 + 0.0248 * b + 0.01 * p, v_r = 0.92 - 4.2 / b;
  const double alpha = (2.83 + 5.1 / b) * spread;
  const double centre = f.mean_over_mode() + 0.5;
  for (std::uint64_t trial = 0;; ++trial) {
    const Bits128 bits = random.at(Purpose::count, which, trial % 2048);
    const double u = (static_cast<double>(static_cast<std::int64_t>(bits.half(0) >> 11)) + 0.5) * 0x1p-53 - 0.5;
    const std::uint64_t low = bits.half(1) >> 32 ? 0 : random.at(Purpose::count, which, 2048 + trial % 2048).half(0);
    const double v = open_uniform(bits.half(1), low);
    const double us = 0.5 - std::fabs(u), offset = (2 * a / us + b) * u + centre;
    if (!(std::fabs(offset) < 0x1p53)) continue;
    const double k = f.mode() + std::floor(offset);
    if (us >= 0.07 && v <= v_r) return static_cast<std::int64_t>(k);
    if (k < 0 || k > size) continue;
    if (log_of(v * alpha / (a / (us * us) + b)) <= f.log_ratio(k)) return static_cast<std::int64_t>(k);
  }
}

// Binomial(n, p) for 0 <= n <= 2^53 and 0 <= p <= 1/2, from the blocks of (Purpose::count, which). Probabilities of counts are
// right to a relative 1e-9 for n up to 10^13 and 1e-7 for 2^53, however small p is, and counts of probability 2^-100 have
// theirs.
//
//   n p < 10   inversion from the upper tail: P(K >= k) is a sum of positive terms, and is compared with a uniform number
//              that has full precision near 0. P(K > 0) = 1 - (1 - p)^n is made without cancellation.
//   else       transformed rejection, BTRS: W. Hörmann, "The generation of binomial random variates", Journal of Statistical
//              Computation and Simulation 46 (1993). Its acceptance compares with f(k) / f(mode) of the probability function f,
//              which is made of deviances: C. Loader, "Fast and accurate computation of binomial probabilities" (2000), so that
//              nothing large cancels at n = 10^13 or 10^15.
SUMEXP_FN std::int64_t binomial(std::int64_t n, double p, const RowRandom& random, std::uint64_t which) {
  if (n == 0 || !(p > 0)) return 0;
  if (static_cast<double>(n) * p >= 10) return by_rejection(n, p, random, which);
  const Bits128 bits = random.at(Purpose::count, which, 0);
  return by_inversion(n, p, open_uniform(bits.half(0), bits.half(1)));
}

}  // namespace sumexp::SUMEXP_NS
