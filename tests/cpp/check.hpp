// What the C++ tests share: checks that count, bytes that compare, a generator that is the same everywhere.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace check {

inline int failures = 0;
inline long passed = 0;

// Prints the first 40 failures; `format` says what was going on.
__attribute__((format(printf, 4, 5))) inline void that(bool ok, const char* file, int line, const char* format, ...) {
  if (ok) {
    ++passed;
    return;
  }
  if (++failures > 40) return;
  std::printf("%s:%d: ", file, line);
  va_list args;
  va_start(args, format);
  std::vprintf(format, args);
  va_end(args);
  std::printf("\n");
  std::fflush(stdout);
}
#define CHECK(condition, ...) ::check::that((condition), __FILE__, __LINE__, __VA_ARGS__)

inline int finish() {
  std::printf("%s: %ld checks, %d failures\n", failures ? "FAILED" : "ok", passed + failures, failures);
  return failures ? 1 : 0;
}
inline constexpr int kSkipped = 77;  // the SKIP_RETURN_CODE of every test

// Under emulation (tests/neon.sh) an instruction costs some fifty.
inline bool emulated() { return std::getenv("SUMEXP_EMULATED") != nullptr; }

// Under AddressSanitizer an element costs some hundred nanoseconds: what needs many of them to take a path takes no more of
// them than that.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// Under either, and where fma is software, tests that walk a grid of cases take every k-th one.
inline bool software_fma = false;  // choose_isa says so
inline bool slow() { return kSanitized || emulated() || software_fma; }

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline std::uint64_t bits(float x) { return bits_as<std::uint32_t>(x); }
inline std::uint64_t bits(double x) { return bits_as<std::uint64_t>(x); }

// memcpy and memcmp that may be given no bytes at no address
inline void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
inline bool equal_bytes(const void* a, const void* b, std::size_t bytes) { return bytes == 0 || std::memcmp(a, b, bytes) == 0; }

inline double power_of_two(int e) { return bits_as<double>(static_cast<std::uint64_t>(e + 1023) << 52); }  // normal ones

// Equal bytes; which NaN is the machine's business until a result is stored.
template <class T>
bool same(T a, T b) {
  return bits(a) == bits(b) || (a != a && b != b);
}

// splitmix64: integers only, hence the same inputs on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
  // Four uniforms: near enough to a normal of variance 1, and exact arithmetic throughout.
  double normal() {
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<std::int64_t>(next() >> 16);
    return static_cast<double>(sum - (std::int64_t(1) << 49)) * 0x1.bb67ae8584caap-48;  // sqrt(3) 2^-48
  }

 private:
  std::uint64_t state_;
};

}  // namespace check
