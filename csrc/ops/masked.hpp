// Attention rows (include/sumexp/ragged.hpp): what the options make of an element, which elements count, what a row gives, and
// how gradients are summed over rows. With v = x / T and z the logits of a row's elements,
//
//   z = c tanh(v / c) + bias         dx = dz (1 - tanh^2(v / c)) / T
//
// What is left out is z = -inf, which adds nothing to a sum; a bias of -inf leaves out whatever x is. A sink is a row of one
// element, whose state merges last.
#pragma once

#include <cmath>

#include "../include/sumexp/sumexp.hpp"
#include "../numerics/state.hpp"
#include "../numerics/tanh.hpp"

namespace sumexp {

// Plain data, the same for every instruction set.
struct MaskedScale {
  double temperature, softcap;
  double pre, divisor, scale;  // z scale^2 = x pre / divisor + bias scale^2 overflows in no double, without a softcap
};
// The largest logit of a row in which one overflows, z scale^2, and what it is made of.
struct LargestLogit {
  double scaled, x, bias;
};

}  // namespace sumexp

namespace sumexp::SUMEXP_NS {

// -- an element ---------------------------------------------------------------------------------------------

// What is done to all elements alike; V: float, double or a vector of them.
template <class V>
struct MaskedOptions {
  V temperature, softcap, factor;  // factor: 1 / temperature
  bool divides, vanish, late, caps;

  SUMEXP_FN static MaskedOptions of(const MaskedScale& scale) {
    using T = ElementOf<V>;
    const T factor = static_cast<T>(1.0 / scale.temperature);
    return {V(static_cast<T>(scale.temperature)),
            V(static_cast<T>(scale.softcap)),
            V(factor),
            scale.temperature != 1.0,
            scale.temperature == Limits<double>::infinity,
            !is_finite(factor),
            scale.softcap != 0.0};
  }
  SUMEXP_FN bool none() const { return !divides && !caps; }
  // x / T; an infinite T makes every finite x 0
  SUMEXP_FN V divided(V x) const {
    const V zero = V(ElementOf<V>(0));
    if (vanish) return pick(equal(x * zero, zero), zero, x);
    return divides ? x / temperature : x;
  }
  // The logit but for its bias, from x / T.
  SUMEXP_FN V capped_of(V v) const { return caps ? capped(v, softcap).value : v; }
  // The logit, from its part without the bias.
  SUMEXP_FN static V biased(V z, V bias) {
    const V lowest = V(-Limits<ElementOf<V>>::infinity);
    return pick(equal(bias, lowest), lowest, z + bias);
  }
  // dx of dz; divided by T at last where 1 / T overflows
  SUMEXP_FN V back(V dz, V x) const {
    if (caps) dz = dz * capped(divided(x), softcap).slope;
    return quiet(late ? dz / temperature : dz * factor);
  }
};

// -- rows in which a logit overflows ------------------------------------------------------------------------

// They are suspected where x / T or z of an element, counted or not, is not finite and what it is made of is. If one of an
// element that counts overflows, all are taken less the largest, k:
//
//   z_j - z_k = (x_j - x_k) / T + (bias_j - bias_k)
//
// in double, each rounded by itself; where one of these overflows, from the scaled z. logsumexp, whose result may overflow,
// takes them as they are: less nothing.

// softcap(x / temperature), given a softcap
template <class T>
SUMEXP_FN double capped_logit(const MaskedScale& scale, T x) {
  const T most = static_cast<T>(sizeof(T) == 8 ? 0x1.fffffffffffffp1023 : 0x1.fffffep127);
  T v = x / static_cast<T>(scale.temperature);
  if (is_finite(x) && !is_finite(v)) v = x > T(0) ? most : T(0) - most;
  return static_cast<double>(capped(v, static_cast<T>(scale.softcap)).value);
}
template <class T>
SUMEXP_FN double scaled_logit(const MaskedScale& scale, T x, T bias) {
  const double b = static_cast<double>(bias) * scale.scale * scale.scale;
  if (scale.softcap != 0.0) return capped_logit(scale, x) * scale.scale * scale.scale + b;
  return static_cast<double>(x) * scale.pre / scale.divisor + b;
}
// scaled: the scaled logit
template <class T>
SUMEXP_FN bool logit_overflows(const MaskedScale& scale, T x, T bias, double scaled) {
  if (!is_finite(x) || !is_finite(bias)) return false;
  const T quotient = x / static_cast<T>(scale.temperature);
  return !is_finite(quotient) || !is_finite(static_cast<T>(scaled / scale.scale / scale.scale));
}
template <class T>
SUMEXP_FN T logit_apart(const MaskedScale& scale, const LargestLogit& top, T x, T bias) {
  if (bias == -Limits<T>::infinity) return bias;
  double z;
  if (scale.softcap != 0.0) z = capped_logit(scale, x) - capped_logit(scale, static_cast<T>(top.x));
  else z = (static_cast<double>(x) * scale.pre - top.x * scale.pre) / scale.divisor / scale.scale / scale.scale;
  z += static_cast<double>(bias) - top.bias;
  if (!is_finite(z)) z = (scaled_logit<T>(scale, x, bias) - top.scaled) / scale.scale / scale.scale;
  return static_cast<T>(z);
}
template <class T>
SUMEXP_FN LargestLogit larger_with_sink(const MaskedScale& scale, const LargestLogit& top, T sink) {
  const double scaled = static_cast<double>(sink) * scale.scale * scale.scale;
  return scaled > top.scaled ? LargestLogit{scaled, 0.0, static_cast<double>(sink)} : top;
}
template <class T>
SUMEXP_FN T sink_apart(const MaskedScale& scale, const LargestLogit& top, T sink) {
  const double scaled = static_cast<double>(sink) * scale.scale * scale.scale;
  double z = (0.0 - top.x * scale.pre) / scale.divisor / scale.scale / scale.scale + (static_cast<double>(sink) - top.bias);
  if (!is_finite(z) || scale.softcap != 0.0) z = (scaled - top.scaled) / scale.scale / scale.scale;
  return static_cast<T>(z);
}

inline MaskedScale masked_scale(DType dtype, double temperature, double softcap) {
  MaskedScale to = {temperature, softcap, 1.0, temperature, 1.0};
  if (dtype != DType::f64 || !is_finite(temperature)) return to;  // a float's logits are well within a double
  int exponent;
  to.divisor = std::frexp(temperature, &exponent);
  to.pre = 0x1p-4;
  if (exponent > 0) to.divisor = temperature, exponent = 0;
  if (exponent % 2) exponent -= 1, to.divisor *= 2.0;
  to.scale = std::ldexp(1.0, exponent / 2 - 2);
  return to;
}

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
    return quiet(static_cast<T>(value()));
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
