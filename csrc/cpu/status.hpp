// How a Status with a message is made. For baseline files: nothing inline is shared with those of an instruction set.
#pragma once

#include <cstdarg>
#include <cstdio>
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
