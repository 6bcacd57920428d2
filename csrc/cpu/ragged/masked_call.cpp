#include "masked_call.hpp"

#include <cmath>

#include "../status.hpp"

namespace sumexp::cpu {

Status check_masked(const MaskedCall& call) {
  if (call.op != Op::softmax && call.op != Op::log_softmax && call.op != Op::logsumexp)
    return fail(Code::unsupported, "op is code %d, accepted: softmax, log_softmax and logsumexp", static_cast<int>(call.op));
  bool empty = false;
  if (const Status status = check_shape(call.dtype, call.ndim, call.shape, call.axis, &empty); !status.ok()) return status;
  if (const Status status = check_temperature(call.dtype, call.temperature); !status.ok()) return status;
  const double cap = call.dtype == DType::f64 ? call.softcap : static_cast<float>(call.softcap);
  if (!(call.softcap >= 0.0) || !std::isfinite(cap) || (cap == 0.0 && call.softcap != 0.0))
    return fail(Code::invalid_argument, "softcap is %g, accepted: numbers above 0 that the dtype has, or none", call.softcap);
  if (call.empty != Empty::zero && call.empty != Empty::nan)
    return fail(Code::invalid_argument, "empty is code %d, accepted: 0 and 1 (zero, nan)", static_cast<int>(call.empty));
  if (call.causal && call.ndim < 2)
    return fail(Code::invalid_argument, "causal is set and x has 1 dimension, accepted: two and more");
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  bool no_rows = false;
  for (int d = 0; d < call.ndim; ++d) no_rows |= d != axis && call.shape[d] == 0;
  const bool back = is_vjp(call), row_value = call.op == Op::logsumexp;
  const View* const given[] = {&call.x,    &call.out, &call.where, &call.lengths, &call.bias,
                               &call.sink, &call.g,   &call.dbias, &call.dsink};
  constexpr const char* kNames[] = {"x", "out", "where", "lengths", "bias", "sink", "g", "dbias", "dsink"};
  for (int k = 0; k < 9; ++k) {
    const bool needed = k < 2 || (k == 6 && back), of_rows = row_value && k == (back ? 6 : 1);
    if (needed && !given[k]->data && !(of_rows ? no_rows : empty))
      return fail(Code::invalid_argument, "%s is missing", kNames[k]);
    if (given[k]->data && !given[k]->strides) return fail(Code::invalid_argument, "%s has no strides", kNames[k]);
  }
  if (!back && (call.dbias.data || call.dsink.data))
    return fail(Code::invalid_argument, "%s is given without g, accepted: of a VJP alone", call.dbias.data ? "dbias" : "dsink");
  return Status{};
}

}  // namespace sumexp::cpu
