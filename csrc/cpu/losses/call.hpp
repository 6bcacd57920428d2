// A call of a loss as CPU and GPUs see it: checked, and its rows laid out.
#pragma once

#include "../../include/sumexp/losses.hpp"
#include "../../numerics/platform.hpp"
#include "../plan.hpp"

namespace sumexp::SUMEXP_NS {

// An integer of the caller's as it is: u64 beyond what i64 holds is `huge`.
struct Index {
  std::int64_t value;
  bool huge;
};
template <class I>
SUMEXP_FN std::int64_t read_as(const char* p) {
  I value;
  memcpy(&value, p, sizeof(value));
  return static_cast<std::int64_t>(value);
}
SUMEXP_FN Index read_index(IndexType type, const char* p) {
  switch (type) {
    case IndexType::i8: return {read_as<std::int8_t>(p), false};
    case IndexType::i16: return {read_as<std::int16_t>(p), false};
    case IndexType::i32: return {read_as<std::int32_t>(p), false};
    case IndexType::u8: return {read_as<std::uint8_t>(p), false};
    case IndexType::u16: return {read_as<std::uint16_t>(p), false};
    case IndexType::u32: return {read_as<std::uint32_t>(p), false};
    case IndexType::u64: {
      const std::int64_t value = read_as<std::uint64_t>(p);
      return {value, value < 0};
    }
    default: return {read_as<std::int64_t>(p), false};
  }
}

}  // namespace sumexp::SUMEXP_NS

namespace sumexp::cpu {

// The operands of a plan, of what is not an operation of the table.
enum { kLogits = kIn0, kTarget = kIn1, kToken = kIn2, kPairWeight = kWhere, kGradient = kOut, kFactor = kExtra };

Status check_loss_options(const CrossEntropyCall& call);
// Rows and their dimensions, of all operands; without missing ones.
Status lay_out_losses(const CrossEntropyCall& call, Plan& plan);

}  // namespace sumexp::cpu
