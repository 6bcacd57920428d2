// How a Status with a message is made. For baseline files: nothing inline is shared with those of an instruction set.
#pragma once

#include <cstdio>

#include "../include/sumexp/sumexp.hpp"

namespace sumexp::cpu {

template <class... Args>
Status fail(Code code, const char* format, Args... args) {
  Status status;
  status.code = code;
  std::snprintf(status.message, sizeof(status.message), format, args...);
  return status;
}

}  // namespace sumexp::cpu
