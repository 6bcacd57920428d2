// How a Status with a message is made. For baseline files: nothing inline is shared with those of an instruction set.
#pragma once

#include <cstdarg>
#include <cstdio>

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

}  // namespace sumexp::cpu
