// Random bits by Philox4x32-10, a counter-based generator: 128 bits that are a function of a 64-bit key and a 128-bit counter,
// by ten rounds of two 32 x 32 multiplications. Integers alone, so every machine agrees, and whoever knows where a draw is
// made knows its bits.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the vectors of Random123's
// kat_vectors are a test.
//
// How the library uses it:
//   key      the row's seed
//   counter  words 0 and 1: the row's stream, low word first; words 2 and 3: where in the row, 64 bits, low word first:
//            bits 0 .. 47   which draw, node or element (by purpose)
//            bits 48 .. 59  which block of 128 bits of it
//            bits 60 .. 63  purpose
#pragma once

#include "platform.hpp"

namespace sumexp::SUMEXP_NS {

struct Bits128 {
  std::uint32_t word[4];
  // the halves as numbers, the lower word first
  SUMEXP_FN std::uint64_t half(int i) const { return word[2 * i] | static_cast<std::uint64_t>(word[2 * i + 1]) << 32; }
};

SUMEXP_FN Bits128 philox4x32(Bits128 counter, std::uint32_t key0, std::uint32_t key1) {
  Bits128 c = counter;
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xd2511f53u} * c.word[0], p1 = std::uint64_t{0xcd9e8d57u} * c.word[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<std::uint32_t>(p0)}};
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;  // the golden ratio and sqrt(3) - 1
  }
  return c;
}

// What a block of random bits is for.
enum class Purpose : std::uint64_t { draw = 0, draw_low = 1, count = 2, noise = 3 };

// The bits of one row.
struct RowRandom {
  std::uint64_t seed, stream;

  // `which` < 2^48, `block` < 2^12
  SUMEXP_FN Bits128 at(Purpose purpose, std::uint64_t which, std::uint64_t block) const {
    const std::uint64_t where = which | block << 48 | static_cast<std::uint64_t>(purpose) << 60;
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
    return philox4x32({{low(stream), high(stream), low(where), high(where)}}, low(seed), high(seed));
  }
};

// A decision of probability p, 0 <= p <= 1/2: U < floor(2^126 p) of 126 random bits U. `first` has the upper 63 of them in its
// upper bits, and so has lower(), which is wanted once in 2^63 times, the others.
struct Threshold {
  std::int64_t upper;
  std::uint64_t lower;
  SUMEXP_FN double probability() const {
    return static_cast<double>(upper) * 0x1p-63 + static_cast<double>(static_cast<std::int64_t>(lower)) * 0x1p-126;
  }
};
SUMEXP_FN Threshold threshold_of(double p) {
  const double scaled = p * 0x1p63;
  const std::int64_t upper = static_cast<std::int64_t>(scaled);
  const double rest = scaled - static_cast<double>(upper);  // exact, below 1
  return {upper, static_cast<std::uint64_t>(static_cast<std::int64_t>(rest * 0x1p63))};
}
template <class Lower>
SUMEXP_FN bool happens(double p, std::uint64_t first, Lower lower) {
  const std::int64_t bits = static_cast<std::int64_t>(first >> 1), upper = static_cast<std::int64_t>(p * 0x1p63);
  if (__builtin_expect(bits == upper, 0)) return (lower() >> 1) < threshold_of(p).lower;
  return bits < upper;
}

// A uniform number in (0, 1) with 53 bits behind its leading zeros, of which there may be 128: 2^-129 <= u < 1, rounded down.
SUMEXP_FN double open_uniform(std::uint64_t high, std::uint64_t low) {
  if (high >> 11) {
    const int zeros = __builtin_clzll(high);
    const std::uint64_t bits = zeros ? high << zeros | low >> (64 - zeros) : high;  // the first is a 1
    return bit_cast<double>(static_cast<std::uint64_t>(1022 - zeros) << 52 | (bits << 1 >> 12));
  }
  const double rest = static_cast<double>(static_cast<std::int64_t>(low >> 11)) * 0x1p-117;
  return static_cast<double>(static_cast<std::int64_t>(high)) * 0x1p-64 + (rest + 0x1p-129);
}

}  // namespace sumexp::SUMEXP_NS
