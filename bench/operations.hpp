// The operations as the benchmark sees them: names, inputs, the byte model.
#pragma once

#include <cstdint>

#include "../tests/cpp/elements.hpp"

namespace bench {

using sumexp::DType;
using sumexp::Op;
using elements::get;
using elements::put;

enum class Role { none, logits, cotangent, probability, log_probability };

struct Operation {
  const char* name;  // op_direction
  Op op;
  Role in[3];
  int row_input;    // the input with one value a row, or -1
  bool row_output;  // one value a row
};

inline constexpr Operation kOperations[] = {
    {"softmax_forward", Op::softmax, {Role::logits}, -1, false},
    {"softmax_vjp", Op::softmax_vjp, {Role::cotangent, Role::probability}, -1, false},  // also the JVP
    {"softmax_hvp", Op::softmax_hvp, {Role::cotangent, Role::cotangent, Role::probability}, -1, false},
    {"log_softmax_forward", Op::log_softmax, {Role::logits}, -1, false},
    {"log_softmax_vjp", Op::log_softmax_vjp, {Role::cotangent, Role::log_probability}, -1, false},
    {"log_softmax_jvp", Op::log_softmax_jvp, {Role::cotangent, Role::log_probability}, -1, false},
    {"log_softmax_hvp", Op::log_softmax_hvp, {Role::cotangent, Role::cotangent, Role::log_probability}, -1, false},
    {"logsumexp_forward", Op::logsumexp, {Role::logits}, -1, true},
    {"logsumexp_vjp", Op::logsumexp_vjp, {Role::logits, Role::cotangent}, 1, false},
    {"logsumexp_jvp", Op::logsumexp_jvp, {Role::logits, Role::cotangent}, -1, true},
};

struct Format {
  const char* name;
  DType dtype;
  int size;    // bytes
  int digits;  // of the significand
  int lowest;  // exponent of the smallest subnormal
};
inline constexpr Format kFormats[] = {
    {"f32", DType::f32, 4, 24, -149},
    {"f64", DType::f64, 8, 53, -1074},
    {"bf16", DType::bf16, 2, 8, -133},
    {"f16", DType::f16, 2, 11, -24},
};

// One driver of csrc/cpu and a shape that lands in it.
struct Shape {
  const char* driver;
  std::int64_t rows, n;
  bool first_axis;  // (n, rows) reduced over its first axis, instead of (rows, n) over its last
  int apart = 1;    // elements from one of a row to the next, along the last axis
};
inline constexpr Shape kShapes[] = {
    {"tile", 4096, 10, false},          // transposed tiles: rows that do not fill vectors
    {"panel", 4096, 16, false},         // a vector of rows at a time, each of one chunk: the shortest
    {"panel", 1 << 20, 16, false},      // the same from memory
    {"panel", 131072, 100, false},      // with a part of a vector at the end
    {"panel", 131072, 128, false},      // one head of attention
    {"cached", 32, 4096, false},        // whole chunks, little enough for the second-level cache where they are of 16 bits
    {"streaming", 4096, 4096, false},   // results written around the cache
    {"streaming", 128, 131072, false},  // long rows
    {"split", 1, 1 << 22, false},       // one row over all threads (reached with two or more)
    {"columns", 65536, 16, true},       // rows side by side, short
    {"columns", 4096, 1024, true},      // rows side by side, of one chunk
    {"columns", 4096, 4096, true},      // of some chunks
    {"packed", 2048, 1000, false, 2},   // elements 2 apart: copied into the cache first
};

// The byte model: every full input once in, a full result once out; values one a row are not counted.
inline std::int64_t moved_bytes(const Operation& operation, const Format& format, const Shape& shape) {
  std::int64_t streams = operation.row_output ? 0 : 1;
  for (int k = 0; k < 3; ++k) streams += operation.in[k] != Role::none && k != operation.row_input;
  return streams * shape.rows * shape.n * format.size;
}

}  // namespace bench
