// The mass of an element as an integer, so that sums of masses have no order: what top_p compares.
//
//   q_j = the integer nearest to t_j 2^88, ties to even; 0 where t_j < 2^-64
//   t_j = e^(x_j) 2^-N as FullTerms::term rounds it to T, N = rint(m log2 e), m the row's maximum (e^(x_j - m) for |m| >=
//         Format::direct)
//
// Contract   |q_j 2^-88 - e^(x_j) 2^-N| <= 1.15 * 2^-24 (float), 2^-53 (double) of itself, + 2^-64. The largest is
//            0.7 * 2^88 to 1.42 * 2^88: sums of 2^31 masses stay below 2^120. Equal elements have equal masses.
//
// Masses are added as hi + lo, two doubles. hi starts so high that adding a term rounds it to a multiple of 2^-43; the rest,
// exact, goes to lo, a multiple of 2^-88 below 2^-43. All sums of kMassBlock such numbers are exact, in any order: how a term
// is shared out between the two shows in neither's sum.
#pragma once

#include "state.hpp"

namespace sumexp {
__extension__ using Mass = unsigned __int128;
}

namespace sumexp::SUMEXP_NS {

inline constexpr int kMassBlock = 256;

// Of terms as they are made, times 2^carry.
template <class T>
struct MassFormat;
template <>
struct MassFormat<float> {
  using Bits = std::uint32_t;
  static constexpr float least = 0x1p8f;  // 2^(carry - 64)
  static constexpr double start = 0x1p81, high_unit = 0x1p-29, low_unit = 0x1p16;
};
template <>
struct MassFormat<double> {
  using Bits = std::uint64_t;
  static constexpr double least = 0x1p236;
  static constexpr double start = 0x1p309, high_unit = 0x1p-257, low_unit = 0x1p-212;
  static constexpr double low_magic = 0x1.8p264;  // adding it rounds to a multiple of 2^(carry - 88)
};

// t_j 2^carry, 0 below 2^-64
template <class V>
SUMEXP_FN V mass_term(V x, V anchor, const Reduction<V>& reduce) {
  using T = ElementOf<V>;
  const V t = FullTerms::term(FullTerms::parts(x - anchor, reduce));
  return pick(at_or_above(t, V(MassFormat<T>::least)), t, V(T(0)));
}

// The sum of up to kMassBlock masses, of terms of T widened to D.
template <class T, class D>
struct MassSum {
  using F = MassFormat<T>;
  D high = D(F::start), low = D(0.0);

  SUMEXP_FN void add(D t) {
    const D next = high + t;
    const D rest = t - (next - high);
    high = next;
    if constexpr (sizeof(T) == 8) low = low + ((rest + D(F::low_magic)) - D(F::low_magic));
    else low = low + rest;  // a float from 2^-64 up is a multiple of 2^-88
  }
  SUMEXP_FN D high_part() const { return high - D(F::start); }
};
template <class T>
SUMEXP_FN Mass mass_of(double high_part, double low) {
  using F = MassFormat<T>;
  return (static_cast<Mass>(static_cast<std::int64_t>(high_part * F::high_unit)) << 45) +
         static_cast<Mass>(static_cast<std::int64_t>(low * F::low_unit));
}
// The same of one term, by integers: t = m 2^k with m of 24 or 53 bits. A float's is exact.
template <class T>
SUMEXP_FN Mass mass_of_term(T t) {
  constexpr bool single = sizeof(T) == 4;
  constexpr int digits = single ? 23 : 52;
  constexpr int least = single ? 150 - 16 : 1075 + 212;  // the exponent's field where m is in units of 2^(carry - 88)
  using Bits = typename MassFormat<T>::Bits;
  const auto bits = bit_cast<Bits>(t);
  if (bits == 0) return 0;
  const int up = static_cast<int>(bits >> digits) - least;
  const Bits m = (bits & ((Bits{1} << digits) - 1)) | Bits{1} << digits;
  if (single || up >= 0) return static_cast<Mass>(m) << up;
  const int down = -up;
  return (m + ((Bits{1} << (down - 1)) - 1) + (m >> down & 1)) >> down;
}

// log z rounded to double, z > 0 and finite; within 0.51 ulp. log 1 is 0.
SUMEXP_FN double log_of(double z) {
  double k, below = 0;
  if (z < 0x1p-1022) z *= 0x1p54, below = 54;
  const double m = exponent_split(z, k);
  k -= below;
  const DD<double> l = log1p_wide(DD<double>{m - 1.0, 0.0});
  const DD<double> head = two_sum(k * LogConstants::ln2_hi, l.hi);
  return head.hi + (head.lo + fma(k, LogConstants::ln2_lo, l.lo));
}

}  // namespace sumexp::SUMEXP_NS
