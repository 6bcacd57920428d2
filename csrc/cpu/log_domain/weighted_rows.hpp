// Sums with weights over rows: what their arrays are, checked alike for the CPU and for GPUs.
#pragma once

#include "../../include/sumexp/log_domain.hpp"
#include "walk.hpp"

namespace sumexp::cpu {

// The three arrays beside x and b.
struct WeightedKind {
  bool along[3];  // they have the last dimension too
  const char* names[3];
  unsigned required;  // a bit each
};
inline constexpr WeightedKind kMeanOfRows = {{false, false, false}, {"count", "value", "sign"}, 2},
                              kVjpOfRows = {{false, true, true}, {"g", "dx", "db"}, 1},
                              kJvpOfRows = {{true, true, false}, {"t", "tb", "out"}, 4};

Status check_weighted(const WeightedRows& given, const View (&more)[3], const WeightedKind& kind);

}  // namespace sumexp::cpu
