// The filters of sampling (include/sumexp/filters.hpp): what a sequence of them keeps of a row.
//
// Larger logits come first, of equal ones the lower index. Every filter keeps a prefix of this order; so the row is described
// by its last kept element, and an implementation needs three answers about the row (RowOfFilters below), however it finds
// them. None depends on an order of addition: counts and masses are integers (numerics/mass.hpp), thresholds are functions of
// the maximum alone.
#pragma once

#include "../numerics/mass.hpp"

namespace sumexp::SUMEXP_NS {

// -- ordered bits: integers in the order of the numbers; -0 has those of +0 -------------------------------------------------

template <class T>
struct OrderedBits;
template <>
struct OrderedBits<float> {
  using Bits = std::uint32_t;
};
template <>
struct OrderedBits<double> {
  using Bits = std::uint64_t;
};
template <class T>
using Bits = typename OrderedBits<T>::Bits;
template <class T>
inline constexpr Bits<T> kSign = Bits<T>{1} << (8 * sizeof(T) - 1);

template <class T>
SUMEXP_FN Bits<T> bits_of(T x) {
  const auto i = bit_cast<Bits<T>>(x + T(0));
  return i & kSign<T> ? ~i : i | kSign<T>;
}
template <class T>
SUMEXP_FN T from_bits(Bits<T> i) {
  return bit_cast<T>(i & kSign<T> ? i & ~kSign<T> : ~i);
}
template <class T>
SUMEXP_FN T next_above(T x) {
  return from_bits<T>(bits_of(x) + 1);
}

SUMEXP_FN int bit_length(std::uint64_t x) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(x));
#else
  return x ? 64 - __builtin_clzll(x) : 0;
#endif
}

// -- thresholds ---------------------------------------------------------------------------------------------------------------

// min_p: the smallest T that is at least m + log(min_p), but no larger than m.
template <class T>
SUMEXP_FN T lowest_kept(T m, double min_p) {
  const DD<double> sum = two_sum(static_cast<double>(m), log_of(min_p));
  T bound = static_cast<T>(sum.hi);
  if (bound < sum.hi || (bound == sum.hi && sum.lo > 0)) bound = next_above(bound);
  return bound < m ? bound : m;
}

// top_p: the smallest integer that is at least p times q, and at least 1; p in (0, 1), q below 2^120.
SUMEXP_FN Mass ceil_product(double p, Mass q) {
  if (!(p > 0)) return 1;
  const auto bits = bit_cast<std::uint64_t>(p);
  const int field = static_cast<int>(bits >> 52);
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const Mass a = field ? fraction | std::uint64_t{1} << 52 : fraction;  // p = a 2^-down
  const int down = 1075 - (field ? field : 1);                          // 53 or more
  const Mass low = a * static_cast<std::uint64_t>(q), high = a * (q >> 64) + (low >> 64);
  const auto last = static_cast<std::uint64_t>(low);  // a q = high 2^64 + last
  if (down >= 192) return 1;
  Mass result;
  bool rest;
  if (down >= 64) {
    result = high >> (down - 64);
    rest = last != 0 || (result << (down - 64)) != high;
  } else {
    result = (high << (64 - down)) | (last >> down);
    rest = (last & ((std::uint64_t{1} << down) - 1)) != 0;
  }
  result += rest;
  return result > 0 ? result : 1;
}

// How many elements of a mass of `each` reach a target: target / each, below 2^40, rounded up. GPUs divide numbers of 128 bits
// by a call; the quotient of doubles is off by 2^-10 or less, so that the result is its integer part or one or two more.
SUMEXP_FN std::int64_t ties_that_reach(Mass target, Mass each) {
  if (each <= 1) return static_cast<std::int64_t>(target);
  const auto wide = [](Mass q) {
    return static_cast<double>(static_cast<std::uint64_t>(q >> 64)) * 0x1p64 +
           static_cast<double>(static_cast<std::uint64_t>(q));
  };
  auto ties = static_cast<std::int64_t>(wide(target) / wide(each)) - 1;
  for (int i = 0; i < 3; ++i) ties += ties < 1 || static_cast<Mass>(ties) * each < target;
  return ties;
}

// -- the sequence -------------------------------------------------------------------------------------------------------------

inline constexpr std::int64_t kEveryTie = INT64_MAX;

// What is kept ends at a logit: of the elements that equal it, the first `ties`.
template <class T>
struct FilterEnd {
  T logit;
  std::int64_t ties, kept;
};

// Row:  from(bound)     the elements that are not below a bound: the least of them, every tie, and their number
//       first(k, end)   the first k, of `end.kept` > k that are left
//       share(p, end)   the shortest prefix of those whose mass reaches p of theirs
// end: of all elements above -inf, of which there are some; all.logit is their least.
template <class T, class Row, class Filters>
SUMEXP_FN FilterEnd<T> end_of_filters(Row& row, const Filters& filters, bool min_p_first, T largest, FilterEnd<T> end) {
  const T bound = filters.min_p > 0 ? lowest_kept(largest, filters.min_p) : -Limits<T>::infinity;
  if (min_p_first && bound > end.logit) end = row.from(bound);
  if (filters.top_k >= 1 && filters.top_k < end.kept) end = row.first(filters.top_k, end);
  if (filters.top_p < 1 && end.kept > 1) end = row.share(filters.top_p, end);
  if (!min_p_first && bound > end.logit) end = row.from(bound);
  return end;
}

}  // namespace sumexp::SUMEXP_NS
