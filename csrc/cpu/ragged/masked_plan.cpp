#include "masked_plan.hpp"

#include "../status.hpp"
#include "masked_call.hpp"

namespace sumexp::cpu {

MaskedPlan::MaskedPlan(const MaskedCall& call, const RaggedJob& forward, const RaggedJob* backward)
    : call(call), forward(forward), backward(backward) {
  const View* views[kViews] = {&call.x,    &call.g,   &call.where, &call.lengths, &call.bias,
                               &call.sink, &call.out, &call.dbias, &call.dsink};
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  for (int k = 0; k < kViews; ++k) data[k] = static_cast<char*>(views[k]->data);
  for (int d = 0; d < call.ndim; ++d) {
    if (d != axis) batch[batch_dims].size = call.shape[d], rows *= call.shape[d];
    for (int k = 0; k < kViews; ++k) (d == axis ? stride : batch[batch_dims].stride)[k] = data[k] ? views[k]->strides[d] : 0;
    batch_dims += d != axis;
  }
  n = call.shape[axis];
  causal_rows = batch_dims ? batch[batch_dims - 1].size : 1;
  back = is_vjp(call);
  row_value = call.op == Op::logsumexp;
  options = call.where.data || call.bias.data || call.temperature != 1.0 || call.softcap != 0.0;
  absent = call.op == Op::log_softmax ? -kInfinity : 0.0;
  scale = SUMEXP_NS::masked_scale(call.dtype, call.temperature, call.softcap);
}

MaskedPlan MaskedPlan::distinct(int k) const {
  MaskedPlan plan = *this;
  plan.rows = 1;
  for (int d = 0; d < batch_dims; ++d) {
    if (batch[d].stride[k] == 0) plan.batch[d].size = 1;
    plan.rows *= plan.batch[d].size;
  }
  return plan;
}

Status check_lengths(const MaskedPlan& plan) {
  if (!plan.data[kLengths]) return Status{};
  const MaskedPlan distinct = plan.distinct(kLengths);
  for (std::int64_t r = 0; r < distinct.rows; ++r) {
    std::int64_t length;
    std::memcpy(&length, distinct.addresses(r).of[kLengths], sizeof(length));
    if (length >= 0 && length <= plan.n) continue;
    std::int64_t row = 0, step = 1, rest = r;  // of the plan: the first with this length
    for (int d = plan.batch_dims - 1; d >= 0; --d) {
      row += rest % distinct.batch[d].size * step;
      rest /= distinct.batch[d].size, step *= plan.batch[d].size;
    }
    return fail(Code::invalid_argument, "lengths has %lld for row %lld, accepted: 0 to %lld, the length of the axis",
                static_cast<long long>(length), static_cast<long long>(row), static_cast<long long>(plan.n));
  }
  return Status{};
}

}  // namespace sumexp::cpu
