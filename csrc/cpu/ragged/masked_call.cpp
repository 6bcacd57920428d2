#include "masked_call.hpp"

#include <cmath>

#include "../status.hpp"

namespace sumexp::cpu {

Status check_masked(const MaskedCall& call) {
  const int op = static_cast<int>(call.op), dtype = static_cast<int>(call.dtype);
  if (call.op != Op::softmax && call.op != Op::log_softmax && call.op != Op::logsumexp)
    return fail(Code::unsupported, "op: got code %d; accepted are softmax, log_softmax and logsumexp", op);
  if (dtype < 0 || dtype > 3)
    return fail(Code::invalid_argument, "dtype: got code %d; accepted are 0 to 3 (f16, bf16, f32, f64)", dtype);
  if (call.ndim < 1 || call.ndim > kMaxDims || call.axis < -call.ndim || call.axis >= call.ndim)
    return fail(Code::invalid_argument, "axis: got %d for ndim = %d; accepted are -ndim to ndim - 1, ndim 1 to %d", call.axis,
                call.ndim, kMaxDims);
  if (!call.shape) return fail(Code::invalid_argument, "shape: missing; ndim is %d", call.ndim);
  std::int64_t elements = 8;
  bool empty = false;
  for (int d = 0; d < call.ndim; ++d) {
    if (call.shape[d] < 0)
      return fail(Code::invalid_argument, "shape: dimension %d is %lld; accepted are sizes from 0", d,
                  static_cast<long long>(call.shape[d]));
    empty |= call.shape[d] == 0;
    if (call.shape[d] && __builtin_mul_overflow(elements, call.shape[d], &elements))
      return fail(Code::invalid_argument, "shape: has more bytes than 63 bits can count");
  }
  if (const Status status = check_temperature(call.dtype, call.temperature); !status.ok()) return status;
  const double cap = call.dtype == DType::f64 ? call.softcap : static_cast<float>(call.softcap);
  if (!(call.softcap >= 0.0) || !std::isfinite(cap) || (cap == 0.0 && call.softcap != 0.0))
    return fail(Code::invalid_argument, "softcap: got %g; accepted are numbers above 0 that the dtype has, or none",
                call.softcap);
  if (call.empty != Empty::zero && call.empty != Empty::nan)
    return fail(Code::invalid_argument, "empty: got code %d; accepted are 0 and 1 (zero, nan)", static_cast<int>(call.empty));
  if (call.causal && call.ndim < 2)
    return fail(Code::invalid_argument, "causal: x has 1 dimension; accepted are arrays of two and more");
  const View* const given[] = {&call.x,    &call.out, &call.where, &call.lengths, &call.bias,
                               &call.sink, &call.g,   &call.dbias, &call.dsink};
  constexpr const char* kNames[] = {"x", "out", "where", "lengths", "bias", "sink", "g", "dbias", "dsink"};
  for (int k = 0; k < 9; ++k) {
    if (k < 2 && !given[k]->data && !empty) return fail(Code::invalid_argument, "%s: missing", kNames[k]);
    if (given[k]->data && !given[k]->strides) return fail(Code::invalid_argument, "%s: has no strides", kNames[k]);
  }
  return Status{};
}

}  // namespace sumexp::cpu
