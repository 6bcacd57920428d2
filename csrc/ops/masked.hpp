// Attention rows (include/sumexp/ragged.hpp): what the options make of an element, which elements count, what a row gives, and
// how gradients are summed over rows. With v = x / T and z the logits of a row's elements,
//
//   z = c tanh(v / c) + bias         dx = dz (1 - tanh^2(v / c)) / T
//
// What is left out is z = -inf, which adds nothing to a sum. A sink is a row of one element, whose state merges last.
#pragma once

#include "../include/sumexp/sumexp.hpp"
#include "../numerics/state.hpp"
#include "../numerics/tanh.hpp"

namespace sumexp::SUMEXP_NS {

// -- an element ---------------------------------------------------------------------------------------------

// What is done to all elements alike; V: float, double or a vector of them.
template <class V>
struct MaskedOptions {
  V temperature, softcap, factor;    // factor: 1 / temperature
  bool divides, caps, vanish, late;  // vanish: temperature is infinite; late: factor overflows

  SUMEXP_FN static MaskedOptions of(double temperature, double softcap) {
    using T = ElementOf<V>;
    return {V(static_cast<T>(temperature)),
            V(static_cast<T>(softcap)),
            V(static_cast<T>(1.0 / temperature)),
            temperature != 1.0,
            softcap != 0.0,
            temperature == Limits<double>::infinity,
            !is_finite(static_cast<T>(1.0 / temperature))};
  }
  SUMEXP_FN bool none() const { return !divides && !caps; }
  SUMEXP_FN V divided(V x) const {
    if (!divides) return x;
    const V zero = V(ElementOf<V>(0));
    return vanish ? pick(equal(x - x, zero), zero, x) : x / temperature;
  }
  // The logit but for its bias.
  SUMEXP_FN V logit(V x) const { return of_quotient(divided(x)); }
  SUMEXP_FN V of_quotient(V v) const { return caps ? capped(v, softcap).value : v; }
  // dx of dz
  SUMEXP_FN V back(V dz, V x) const {
    if (caps) dz = dz * capped(divided(x), softcap).slope;
    return quiet(late ? dz / temperature : dz * factor);
  }
};

// -- a row --------------------------------------------------------------------------------------------------

// Which elements of its n count, beside those that a mask leaves out.
struct MaskedLimits {
  std::int64_t n, causal_rows, causal_offset;  // causal_rows: of the last dimension but the row's own
  bool causal;

  // Of row r, whose length is given (n where there is none): the first so many.
  SUMEXP_FN std::int64_t count(std::int64_t r, std::int64_t length) const {
    std::int64_t count = length < 0 ? 0 : length < n ? length : n;
    if (!causal) return count;
    const std::int64_t i = r % causal_rows;  // no i + offset + 1 may overflow
    if (causal_offset < -i) return 0;
    if (causal_offset >= n - i) return count;
    return count < i + causal_offset + 1 ? count : i + causal_offset + 1;
  }
};

// What a row's state, its sink included, says of its sum. All of a row of `nothing` are as Empty has it, their gradient 0.
enum class MaskedKind { number, nothing, nan };

template <class T>
SUMEXP_FN MaskedKind masked_kind(const ExpState<T>& state) {
  if (is_nan(state.R) || state.m == Limits<T>::infinity) return MaskedKind::nan;
  return state.m == -Limits<T>::infinity ? MaskedKind::nothing : MaskedKind::number;
}

// The result where an element is left out.
template <class T>
SUMEXP_FN T masked_absent(Op op) {
  return op == Op::log_softmax ? -Limits<T>::infinity : T(0);
}

// -- sums over rows -----------------------------------------------------------------------------------------

// A sum of doubles that rounds once, at its end: hi + lo.
struct LongSum {
  double hi = 0.0, lo = 0.0;

  SUMEXP_FN void add(double x) {
    const DD<double> sum = two_sum(hi, x);
    hi = sum.hi, lo += sum.lo;
  }
  SUMEXP_FN double value() const { return lo == lo && is_finite(hi) ? hi + lo : hi; }
  template <class T>
  SUMEXP_FN T rounded_to() const {
    const T x = static_cast<T>(value());
    return x == x ? x : Limits<T>::nan();
  }
};

// The order in which they are added. The rows of a group, those that share a number of the bias or sink, are its members 0, 1,
// .. in C order.
//
//   a bias along the row       element j: members in kSumBlocks blocks, each in order, then the blocks
//   a bias of one number       the same for kSumStreams sums, of which stream i has elements j = i mod kSumStreams of a row in
//                              order; then the streams
//   a sink                     stream i has members m = i mod kSumStreams in order; then the streams
inline constexpr int kSumBlocks = 8, kSumStreams = 32;

// Rows by group and member, from the batch dimensions of a call and which of them are summed.
template <int kMost>
struct RowGroups {
  std::int64_t groups = 1, members = 1;
  int kept = 0, summed = 0;
  std::int64_t kept_size[kMost], kept_step[kMost], summed_size[kMost], summed_step[kMost];  // innermost first

  // Dimensions are added from the innermost on; step: rows from an index of it to the next.
  SUMEXP_FN void add(std::int64_t size, std::int64_t step, bool is_summed) {
    if (size == 1) return;
    if (is_summed) summed_size[summed] = size, summed_step[summed++] = step, members *= size;
    else kept_size[kept] = size, kept_step[kept++] = step, groups *= size;
  }
  SUMEXP_FN std::int64_t row(std::int64_t group, std::int64_t member) const {
    return at(kept, kept_size, kept_step, group) + at(summed, summed_size, summed_step, member);
  }
  SUMEXP_FN std::int64_t block_size() const { return (members + kSumBlocks - 1) / kSumBlocks; }

 private:
  SUMEXP_FN static std::int64_t at(int count, const std::int64_t* size, const std::int64_t* step, std::int64_t i) {
    std::int64_t row = 0;
    for (int d = 0; d + 1 < count; ++d) row += i % size[d] * step[d], i /= size[d];
    return count > 0 ? row + i * step[count - 1] : 0;
  }
};

}  // namespace sumexp::SUMEXP_NS
