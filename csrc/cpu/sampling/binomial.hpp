// How many of n independent trials succeed: the split of a node's draws between its two sides.
#pragma once

#include "../../numerics/philox.hpp"

namespace sumexp::cpu {

// Binomial(n, p) for 0 <= n <= 2^53 and 0 <= p <= 1/2, from the blocks of (Purpose::count, which). Probabilities of counts are
// right to a relative 1e-9 down to 2^-100, however large n and small p are.
//
//   n p < 10   inversion from the upper tail: P(K >= k) is a sum of positive terms, and is compared with a uniform number that
//   has
//              full precision near 0. P(K > 0) = 1 - (1 - p)^n is made without cancellation.
//   else       transformed rejection, BTRS: W. Hörmann, "The generation of binomial random variates", Journal of Statistical
//              Computation and Simulation 46 (1993). Its acceptance compares with f(k) / f(mode) of the probability function f,
//              which is made of deviances: C. Loader, "Fast and accurate computation of binomial probabilities" (2000), so that
//              nothing large cancels at n = 10^13 or 10^15.
std::int64_t binomial(std::int64_t n, double p, const SUMEXP_NS::RowRandom& random, std::uint64_t which);

}  // namespace sumexp::cpu
