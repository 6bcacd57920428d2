#include "check.hpp"

#include "../plan.hpp"
#include "../status.hpp"

namespace sumexp::cpu {

Status check_rows(const LogitsRows& rows, const Argument* arguments, int count, RowShape& shape) {
  if (!is_dtype(rows.dtype)) return bad_dtype("dtype", rows.dtype);
  if (rows.ndim < 1 || rows.ndim > kMaxDims)
    return fail(Code::invalid_argument, "ndim: got %d; accepted are 1 to %d", rows.ndim, kMaxDims);
  if (!rows.shape) return fail(Code::invalid_argument, "shape: missing; ndim is %d", rows.ndim);
  shape.axis = rows.axis < 0 ? rows.axis + rows.ndim : rows.axis;
  if (shape.axis < 0 || shape.axis >= rows.ndim)
    return fail(Code::invalid_argument, "axis: got %d; accepted are %d to %d", rows.axis, -rows.ndim, rows.ndim - 1);
  if (const Status status = check_temperature(rows.dtype, rows.temperature); !status.ok()) return status;
  if (rows.picks < 0)
    return fail(Code::invalid_argument, "picks: got %lld; accepted are numbers from 0", static_cast<long long>(rows.picks));

  shape.rows = 1, shape.n = rows.shape[shape.axis];
  std::int64_t bytes = item_size(rows.dtype);
  bool countable = true;
  for (int d = 0; d < rows.ndim; ++d) {
    const std::int64_t size = rows.shape[d];
    if (size < 0)
      return fail(Code::invalid_argument, "shape: dimension %d is %lld; accepted are sizes from 0", d,
                  static_cast<long long>(size));
    if (d != shape.axis) countable &= !__builtin_mul_overflow(shape.rows, size, &shape.rows);
    countable &= !(size && __builtin_mul_overflow(bytes, size, &bytes));
  }
  if (!countable) return fail(Code::invalid_argument, "shape: has more bytes than 63 bits can count");
  for (const Argument* argument = arguments; argument != arguments + count; ++argument) {
    if (argument->kind == kAbsent) continue;
    const bool nothing =
        shape.rows == 0 || (argument->kind == kFull && shape.n == 0) || (argument->kind == kPicked && !rows.picks);
    if (!argument->view->data && !nothing) return fail(Code::invalid_argument, "%s: missing", argument->name);
    if (!argument->view->strides) return fail(Code::invalid_argument, "%s: has no strides", argument->name);
  }
  return Status{};
}

Status check_no_temperature(const LogitsRows& rows, const char* function) {
  if (rows.temperature == 1.0) return Status{};
  return fail(Code::invalid_argument, "temperature: got %g; %s takes none (1)", rows.temperature, function);
}

}  // namespace sumexp::cpu
