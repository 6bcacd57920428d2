// How many of n independent trials succeed: the split of a node's draws between its two sides.
#pragma once

#include "../../numerics/philox.hpp"
#include "../../numerics/wide.hpp"

namespace sumexp::cpu {

// Binomial(n, p) for 0 <= n <= 2^53 and 0 <= p <= 1/2, from the blocks of (Purpose::count, which). Probabilities of counts are
// right to a relative 1e-9 for n up to 10^13 and 1e-7 for 2^53, however small p is, and counts of probability 2^-100 have
// theirs.
//
//   n p < 10   inversion from the upper tail: P(K >= k) is a sum of positive terms, and is compared with a uniform number that
//   has
//              full precision near 0. P(K > 0) = 1 - (1 - p)^n is made without cancellation.
//   else       transformed rejection, BTRS: W. Hörmann, "The generation of binomial random variates", Journal of Statistical
//              Computation and Simulation 46 (1993). Its acceptance compares with f(k) / f(mode) of the probability function f,
//              which is made of deviances: C. Loader, "Fast and accurate computation of binomial probabilities" (2000), so that
//              nothing large cancels at n = 10^13 or 10^15.
std::int64_t binomial(std::int64_t n, double p, const SUMEXP_NS::RowRandom& random, std::uint64_t which);

// The probability function f of Binomial(n, p), relative to its mode, n p >= 10. The logarithm is within 1e-12, plus 2^-50 of
// itself.
class BinomialMass {
 public:
  BinomialMass(double n, double p);
  double mode() const { return mode_; }
  double mean_over_mode() const { return (mean_.hi - mode_) + mean_.lo; }
  double log_ratio(double k) const;  // log f(k) / f(mode), 0 <= k <= n

 private:
  double rest(double k) const;  // log f(k), but for what is common to all k; 0 < k < n
  double n_, p_;
  SUMEXP_NS::DD<double> mean_;
  double mode_, at_mode_;
};

}  // namespace sumexp::cpu
