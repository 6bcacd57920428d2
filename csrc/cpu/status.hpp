// How a Status with a message is made. For baseline files: nothing inline is shared with those of an instruction set.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../include/sumexp/sumexp.hpp"

namespace sumexp::cpu {

__attribute__((format(printf, 2, 3))) inline Status fail(Code code, const char* format, ...) {
  Status status;
  status.code = code;
  va_list args;
  va_start(args, format);
  std::vsnprintf(status.message, sizeof(status.message), format, args);
  va_end(args);
  return status;
}

// Whether 63 bits can count the bytes of an array; a length of 0 does not make others smaller.
inline bool is_countable(std::int64_t item, std::initializer_list<std::int64_t> sizes) {
  for (const std::int64_t size : sizes)
    if (size && __builtin_mul_overflow(item, size, &item)) return false;
  return true;
}

inline bool is_dtype(DType dtype) { return static_cast<unsigned>(dtype) < 4; }
inline Status bad_dtype(const char* name, DType given) {
  return fail(Code::invalid_argument, "%s is code %d, accepted: 0 to 3 (f16, bf16, f32, f64)", name, static_cast<int>(given));
}

// What any call says of its arrays: then every size is from 0, and their products, the bytes of an array too, can be counted.
// *empty becomes true where such an array has no element.
inline Status check_shape(DType dtype, int ndim, const std::int64_t* shape, bool* empty = nullptr) {
  if (!is_dtype(dtype)) return bad_dtype("dtype", dtype);
  if (ndim < 0 || ndim > kMaxDims) return fail(Code::invalid_argument, "ndim is %d, accepted: 0 to %d", ndim, kMaxDims);
  if (ndim > 0 && !shape) return fail(Code::invalid_argument, "shape is missing; ndim is %d", ndim);
  std::int64_t bytes = 8;
  for (int d = 0; d < ndim; ++d) {
    if (shape[d] < 0)
      return fail(Code::invalid_argument, "shape: dimension %d is %lld, accepted: sizes from 0", d,
                  static_cast<long long>(shape[d]));
    if (empty) *empty |= shape[d] == 0;
    if (shape[d] && __builtin_mul_overflow(bytes, shape[d], &bytes))
      return fail(Code::invalid_argument, "shape has more bytes than 63 bits can count");
  }
  return Status{};
}
// Of arrays whose rows run along an axis.
inline Status check_shape(DType dtype, int ndim, const std::int64_t* shape, int axis, bool* empty = nullptr) {
  if (const Status status = check_shape(dtype, ndim, shape, empty); !status.ok()) return status;
  if (ndim < 1) return fail(Code::invalid_argument, "ndim is 0, accepted: 1 to %d", kMaxDims);
  if (axis < -ndim || axis >= ndim)
    return fail(Code::invalid_argument, "axis is %d for ndim = %d, accepted: %d to %d", axis, ndim, -ndim, ndim - 1);
  return Status{};
}

// Temperatures are infinite, or numbers that the type has which rows of a dtype are computed in.
inline Status check_temperature(DType dtype, double temperature) {
  const double most = dtype == DType::f64 ? 1.7976931348623157e308 : 3.4028234663852886e38;
  if (!(temperature > 0.0)) return fail(Code::invalid_argument, "temperature is %g, accepted: numbers above 0", temperature);
  const bool kept = dtype == DType::f64 || static_cast<float>(temperature) > 0.0f;
  if (kept && (temperature <= most || temperature > 1.7976931348623157e308)) return Status{};
  return fail(Code::invalid_argument, "temperature is %g, accepted: infinity and numbers that float32 has, above 0",
              temperature);
}

// body(), which returns nothing or a Status, where scratch memory may run out.
template <class Body>
Status with_scratch(const Body& body) {
  try {
    if constexpr (std::is_void_v<decltype(body())>) body();
    else return body();
  } catch (const std::bad_alloc&) {
    return fail(Code::out_of_memory, "no memory for scratch space; results may be partly written");
  }
  return Status{};
}

}  // namespace sumexp::cpu
