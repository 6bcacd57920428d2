// What the tests of kernels share: numbers that are the same in every run, the storage types, and what was counted.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/formats.hpp"
#include "sumexp/sumexp.hpp"

inline int failures = 0, checks = 0;

inline std::uint64_t random_state = 11;
inline double uniform() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return double(random_state >> 11) * 0x1p-53;
}
inline double normal() { return std::sqrt(-2 * std::log(uniform() + 1e-300)) * std::cos(6.283185307179586 * uniform()); }

template <class S>
struct Type;
template <>
struct Type<float> {
  static constexpr sumexp::DType dtype = sumexp::DType::f32;
  static constexpr const char* name = "f32";
  static float from(double x) { return float(x); }
};
template <>
struct Type<double> {
  static constexpr sumexp::DType dtype = sumexp::DType::f64;
  static constexpr const char* name = "f64";
  static double from(double x) { return x; }
};
template <>
struct Type<sumexp::gpu::f16> {
  static constexpr sumexp::DType dtype = sumexp::DType::f16;
  static constexpr const char* name = "f16";
  static sumexp::gpu::f16 from(double x) { return sumexp::gpu::to_f16(float(x)); }
};
template <>
struct Type<sumexp::gpu::bf16> {
  static constexpr sumexp::DType dtype = sumexp::DType::bf16;
  static constexpr const char* name = "bf16";
  static sumexp::gpu::bf16 from(double x) { return sumexp::gpu::to_bf16(float(x)); }
};
