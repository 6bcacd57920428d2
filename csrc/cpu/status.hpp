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

// Temperatures are infinite, or numbers that the type has which rows of a dtype are computed in.
inline Status check_temperature(DType dtype, double temperature) {
  const double most = dtype == DType::f64 ? 1.7976931348623157e308 : 3.4028234663852886e38;
  if (!(temperature > 0.0))
    return fail(Code::invalid_argument, "temperature: got %g; accepted are numbers above 0", temperature);
  const bool kept = dtype == DType::f64 || static_cast<float>(temperature) > 0.0f;
  if (kept && (temperature <= most || temperature > 1.7976931348623157e308)) return Status{};
  return fail(Code::invalid_argument, "temperature: got %g; accepted are infinity and numbers that float32 has, above 0",
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
