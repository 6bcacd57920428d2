#include "binomial.hpp"

namespace sumexp::cpu {

std::int64_t binomial(std::int64_t n, double p, const SUMEXP_NS::RowRandom& random, std::uint64_t which) {
  return SUMEXP_NS::binomial(n, p, random, which);
}

}  // namespace sumexp::cpu
