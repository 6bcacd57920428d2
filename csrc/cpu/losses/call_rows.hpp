// The rows of a call: their targets and factors, in whatever type these have.
#pragma once

#include <cstring>

#include "../../numerics/formats.hpp"
#include "../kernels/losses.hpp"
#include "call.hpp"
#include "rows.hpp"

namespace sumexp::cpu {

namespace base = SUMEXP_NS;
using base::Index;

inline double read_double(const char* p) {
  double value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
inline double read_number(DType dtype, const char* p) {
  if (dtype == DType::f64) return read_double(p);
  float f;
  std::uint16_t bits;
  std::memcpy(&f, p, dtype == DType::f32 ? sizeof(f) : 0);
  if (dtype == DType::f32) return f;
  std::memcpy(&bits, p, sizeof(bits));
  return dtype == DType::f16 ? base::to_float(base::f16{bits}) : base::to_float(base::bf16{bits});
}
inline void write_number(DType dtype, char* p, double value) {
  if (dtype == DType::f64) {
    std::memcpy(p, &value, sizeof(value));
    return;
  }
  const float f = static_cast<float>(value);
  const std::uint16_t bits = dtype == DType::f16 ? base::to_f16(f).bits : dtype == DType::bf16 ? base::to_bf16(f).bits : 0;
  if (dtype == DType::f32) std::memcpy(p, &f, sizeof(f));
  else std::memcpy(p, &bits, sizeof(bits));
}

// A call and its rows, laid out.
struct Rows {
  const CrossEntropyCall& call;
  const Plan& plan;

  bool is_index() const { return call.kind == TargetKind::index; }
  const char* at(int k, const Offsets& offsets) const { return static_cast<const char*>(plan.data[k]) + offsets.at[k]; }
  bool is_ignored(Index index) const { return !index.huge && index.value == call.ignore_index; }
  Index index(const Offsets& offsets, std::int64_t k = 0) const {
    const std::int64_t step = is_index() ? 0 : plan.row[0].stride[kTarget];
    return base::read_index(call.index_type, at(kTarget, offsets) + k * step);
  }
  double factor(int k, const Offsets& offsets) const { return plan.data[k] ? read_double(at(k, offsets)) : 1.0; }
  double class_weight(std::int64_t j) const {
    if (!call.weight) return 1.0;
    return call.dtype == DType::f64 ? static_cast<const double*>(call.weight)[j] : static_cast<const float*>(call.weight)[j];
  }
  // The parts of a row's target, without those ignored; 0 of an ignored row (and of one with probabilities).
  std::int64_t parts(const Offsets& offsets, TargetPart* to) const {
    if (is_index()) {
      const Index t = index(offsets);
      if (is_ignored(t)) return 0;
      to[0] = {t.value, 1.0};
      return 1;
    }
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < call.pairs; ++k) {
      const Index t = index(offsets, k);
      if (is_ignored(t)) continue;
      const char* const weight = at(kPairWeight, offsets) + k * plan.row[0].stride[kPairWeight];
      to[count++] = {t.value, read_number(call.target_dtype, weight)};
    }
    return count;
  }
};

}  // namespace sumexp::cpu
