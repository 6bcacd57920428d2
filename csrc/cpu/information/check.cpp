#include "check.hpp"

#include "../plan.hpp"
#include "../status.hpp"

namespace sumexp::cpu {

Status check_rows(const LogitsRows& rows, const Argument* arguments, int count, RowShape& shape) {
  if (const Status status = check_shape(rows.dtype, rows.ndim, rows.shape, rows.axis); !status.ok()) return status;
  shape.axis = rows.axis < 0 ? rows.axis + rows.ndim : rows.axis;
  if (const Status status = check_temperature(rows.dtype, rows.temperature); !status.ok()) return status;
  if (rows.picks < 0)
    return fail(Code::invalid_argument, "picks is %lld, accepted: numbers from 0", static_cast<long long>(rows.picks));

  shape.rows = 1, shape.n = rows.shape[shape.axis];
  for (int d = 0; d < rows.ndim; ++d)
    if (d != shape.axis) shape.rows *= rows.shape[d];
  for (const Argument* argument = arguments; argument != arguments + count; ++argument) {
    if (argument->kind == kAbsent) continue;
    const bool nothing =
        shape.rows == 0 || (argument->kind == kFull && shape.n == 0) || (argument->kind == kPicked && !rows.picks);
    if (!argument->view->data && !nothing) return fail(Code::invalid_argument, "%s is missing", argument->name);
    if (!argument->view->strides) return fail(Code::invalid_argument, "%s has no strides", argument->name);
  }
  return Status{};
}

Status check_no_temperature(const LogitsRows& rows, const char* function) {
  if (rows.temperature == 1.0) return Status{};
  return fail(Code::invalid_argument, "temperature is %g; %s takes none (1)", rows.temperature, function);
}

}  // namespace sumexp::cpu
