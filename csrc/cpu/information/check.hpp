// What is refused of a call of include/sumexp/information.hpp before anything is done, on any device.
#pragma once

#include "../../include/sumexp/information.hpp"

namespace sumexp::cpu {

enum ArgumentKind { kAbsent, kFull, kOneARow, kPicked };

struct Argument {
  const char* name;
  const View* view;
  ArgumentKind kind;
};
inline bool is_given(const View& view) { return view.data || view.strides; }
struct RowShape {
  int axis;  // from 0
  std::int64_t rows, n;
};

Status check_rows(const LogitsRows& rows, const Argument* arguments, int count, RowShape& shape);
Status check_no_temperature(const LogitsRows& rows, const char* function);

}  // namespace sumexp::cpu
