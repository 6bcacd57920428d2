// ops/binomial.hpp, compiled once.
#pragma once

#include "../../ops/binomial.hpp"

namespace sumexp::cpu {

std::int64_t binomial(std::int64_t n, double p, const SUMEXP_NS::RowRandom& random, std::uint64_t which);

}  // namespace sumexp::cpu
