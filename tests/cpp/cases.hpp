// The operations as tests see them, the inputs they are tried on, and how a result is asked for.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/cpu/drivers/driver.hpp"
#include "check.hpp"
#include "elements.hpp"
#include "sumexp/sumexp.hpp"

namespace cases {

using check::Random;
using elements::get;
using elements::put;
using sumexp::Call;
using sumexp::DType;
using sumexp::Op;
using sumexp::Status;

enum class Role { logits, cotangent, probability, log_probability, weight, index };

struct OpCase {
  const char* name;
  Op op;
  int inputs;
  Role role[3];
  int row_input;    // the input that has one value a row, or -1
  bool row_output;  // one value a row
  bool where, temperature, extra;

  constexpr bool is_index(int k) const { return k < inputs && role[k] == Role::index; }
  constexpr bool has_index() const { return is_index(1); }  // then a row has an element
};

inline constexpr OpCase kOps[] = {
    {"softmax", Op::softmax, 1, {Role::logits}, -1, false, true, true, false},
    {"log_softmax", Op::log_softmax, 1, {Role::logits}, -1, false, true, true, false},
    {"logsumexp", Op::logsumexp, 1, {Role::logits}, -1, true, true, false, false},
    {"logsumexp_weighted", Op::weighted_logsumexp, 2, {Role::logits, Role::weight}, -1, true, true, false, true},
    {"softmax_vjp", Op::softmax_vjp, 2, {Role::cotangent, Role::probability}, -1, false, false, true, false},
    {"log_softmax_vjp", Op::log_softmax_vjp, 2, {Role::cotangent, Role::log_probability}, -1, false, false, true, false},
    {"log_softmax_jvp", Op::log_softmax_jvp, 2, {Role::cotangent, Role::log_probability}, -1, false, false, true, false},
    {"logsumexp_vjp", Op::logsumexp_vjp, 2, {Role::logits, Role::cotangent}, 1, false, false, false, false},
    {"logsumexp_jvp", Op::logsumexp_jvp, 2, {Role::logits, Role::cotangent}, -1, true, false, false, false},
    {"softmax_hvp", Op::softmax_hvp, 3, {Role::cotangent, Role::cotangent, Role::probability}, -1, false, false, true, false},
    {"log_softmax_hvp",
     Op::log_softmax_hvp,
     3,
     {Role::cotangent, Role::cotangent, Role::log_probability},
     -1,
     false,
     false,
     true,
     false},
    {"cross_entropy", Op::cross_entropy, 2, {Role::logits, Role::index}, 1, true, false, false, false},
    {"cross_entropy_with_grad", Op::cross_entropy_with_grad, 2, {Role::logits, Role::index}, 1, false, false, false, true},
};

struct DTypeCase {
  const char* name;
  DType dtype;
  std::int64_t size;
};
inline constexpr DTypeCase kDTypes[] = {
    {"f16", DType::f16, 2}, {"bf16", DType::bf16, 2}, {"f32", DType::f32, 4}, {"f64", DType::f64, 8}};

using Bytes = std::vector<unsigned char>;

// Bytes of an element of input k.
inline std::int64_t item_of(const OpCase& op, const DTypeCase& type, int k) { return op.is_index(k) ? 8 : type.size; }

// -- inputs ---------------------------------------------------------------------------------------------

// What a row looks like. Every kind is there for something that went wrong somewhere, or could.
enum Kind {
  kNormal,  // logits of scale 1
  kScale4,
  kScale100,   // most terms underflow
  kWide,       // +-1e4
  kOffset1e6,  // x - max is where others lose their digits
  kOffset1e30,
  kWinner,  // one element ahead by 1 to 200
  kTies,    // few distinct values
  kEqual,
  kMasked,    // a third of it -inf (zero, for inputs that are not logits)
  kNaN,       // one NaN, of either sign
  kInfinity,  // one +inf
  kEmpty,     // all -inf (zero)
  kRamp,      // down to and past underflow
  kAnyBits,   // any exponent at all
  kSteps,     // chunks far below each other
  kCrossing,  // chunks on both sides of the limit up to which x itself is reduced
  kKinds
};

inline double infinity() { return static_cast<double>(__builtin_inff()); }

inline double any_bits(Random& random, DType dtype) {
  for (;;) {
    const std::uint64_t word = random.next();
    const double value = get(dtype, &word);
    if (value - value == 0.0) return value;
  }
}

inline double element(Random& random, Role role, Kind kind, DType dtype, std::int64_t i) {
  const bool half = dtype == DType::f16;
  const double normal = random.normal(), uniform = random.uniform();
  switch (role) {
    case Role::logits:
      switch (kind) {
        case kScale4: return 4 * normal;
        case kScale100: return 100 * normal;
        case kWide: return (uniform - 0.5) * 2e4;
        case kOffset1e6: return (half ? 3e4 : 1e6) + 4 * normal;
        case kOffset1e30: return half ? -6e4 + 40 * normal : 1e30 * (1.0 + normal * 0x1p-22);
        case kTies: return static_cast<double>(random.below(4)) * 0.75 - 1.5;
        case kEqual: return 1.5;
        case kMasked: return random.below(3) ? 4 * normal : -infinity();
        case kEmpty: return -infinity();
        case kRamp: return -0.37 * static_cast<double>(i % 3000);
        case kAnyBits: return any_bits(random, dtype);
        case kSteps: return normal - 61.0 * static_cast<double>(i / 512 * 7 % 29);
        case kCrossing: return normal + (half ? 1e4 : 1e5) * static_cast<double>(i / 512 * 5 % 3 - 1);
        default: return normal;
      }
    case Role::cotangent:
      switch (kind) {
        case kScale100:
        case kWide: return 1e3 * normal;
        case kTies: return static_cast<double>(random.below(3)) - 1.0;
        case kEqual: return 1.0;
        case kMasked: return random.below(3) ? normal : 0.0;
        case kEmpty: return 0.0;
        case kRamp: return normal * 0x1p-12;
        case kAnyBits: return any_bits(random, dtype);
        default: return normal;
      }
    case Role::probability:
      switch (kind) {
        case kMasked: return random.below(3) ? uniform : 0.0;
        case kEmpty: return 0.0;
        case kEqual: return 0.125;
        case kRamp: return uniform * check::power_of_two(-static_cast<int>(i % (half ? 24 : 150)));
        default: return uniform * uniform * uniform;
      }
    case Role::log_probability:
      switch (kind) {
        case kMasked: return random.below(3) ? -8 * uniform : -infinity();
        case kEmpty: return -infinity();
        case kEqual: return 0.0;
        case kRamp: return -0.37 * static_cast<double>(i % 3000);
        case kTies: return -0.5 * static_cast<double>(random.below(4));
        default: return -20 * uniform;
      }
    default:  // weights (indices: make_input), of both signs, some of which cancel exactly
      switch (kind) {
        case kTies:
        case kEqual: return random.below(2) ? 1.0 : -1.0;
        case kMasked: return random.below(3) ? normal : 0.0;
        case kEmpty: return 0.0;
        case kAnyBits: return any_bits(random, dtype);
        case kNormal: return uniform;
        default: return normal;
      }
  }
}

// n elements of one input.
inline Bytes make_input(Random& random, Role role, Kind kind, const DTypeCase& type, std::int64_t n) {
  Bytes bytes(static_cast<std::size_t>(n * type.size) + 1);  // one more: never a null pointer
  unsigned char* at = bytes.data();
  for (std::int64_t i = 0; i < n; ++i) put(type.dtype, at + i * type.size, element(random, role, kind, type.dtype, i));
  const std::int64_t special = n ? random.below(n) : 0;
  unsigned char* there = at + special * type.size;
  if (n && kind == kWinner && role == Role::logits)
    put(type.dtype, there, get(type.dtype, there) + static_cast<double>(1 + random.below(200)));
  if (n && kind == kInfinity && role != Role::probability && role != Role::log_probability) put(type.dtype, there, infinity());
  if (n && kind == kNaN && role != Role::weight) {
    put(type.dtype, there, static_cast<double>(__builtin_nanf("")));
    if (random.below(2)) there[type.size - 1] |= 0x80;  // its sign (little endian)
  }
  return bytes;
}

// -- calls --------------------------------------------------------------------------------------------------

// Input k of an op on `rows` rows of n elements.
inline Bytes make_input(Random& random, const OpCase& op, int k, Kind kind, const DTypeCase& type, std::int64_t rows,
                        std::int64_t n) {
  if (!op.is_index(k)) return make_input(random, op.role[k], kind, type, rows * (k == op.row_input ? 1 : n));
  Bytes bytes(static_cast<std::size_t>(rows) * 8 + 1);
  for (std::int64_t r = 0; r < rows && n; ++r) {
    const std::int64_t index = random.below(n);
    std::memcpy(bytes.data() + r * 8, &index, 8);
  }
  return bytes;
}

// `rows` rows of n elements, one after the other, everything contiguous.
struct Contiguous {
  Call call;
  std::int64_t shape[2], full[2], row[2], index[2], mask[2];

  Contiguous(const OpCase& op, const DTypeCase& type, std::int64_t rows, std::int64_t n, const void* const* in, void* out,
             void* extra = nullptr)
      : shape{rows, n}, full{n * type.size, type.size}, row{type.size, 0}, index{8, 0}, mask{n, 1} {
    call.op = op.op, call.dtype = type.dtype, call.ndim = 2, call.shape = shape, call.axes = 2;
    for (int k = 0; k < op.inputs; ++k)
      call.in[k] = {const_cast<void*>(in[k]), op.is_index(k) ? index : k == op.row_input ? row : full};
    call.out = {out, op.row_output ? row : full};
    if (extra) call.extra = {extra, row};
  }
  Contiguous(const Contiguous&) = delete;
};

using sumexp::run;

// Makes the library use the instruction set that the command line or SUMEXP_ISA names. False: this CPU or this build has no
// such thing.
inline bool choose_isa(const char* name) {
  if (!name) return true;
  const Status status = sumexp::set_isa(name);
  if (!status.ok()) std::printf("skipped: %s\n", status.message);
  check::software_fma = std::string(name) == "portable";
  return status.ok();
}

}  // namespace cases
