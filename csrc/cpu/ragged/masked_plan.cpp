#include "masked_plan.hpp"

#include "../status.hpp"

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
  row_value = call.op == Op::logsumexp;
  options = call.where.data || call.bias.data || call.temperature != 1.0 || call.softcap != 0.0;
  absent = call.op == Op::log_softmax ? -kInfinity : 0.0;
  scale = SUMEXP_NS::masked_scale(call.dtype, call.temperature, call.softcap);
}

Status check_lengths(const MaskedPlan& plan) {
  if (!plan.data[kLengths]) return Status{};
  MaskedPlan distinct = plan;
  distinct.rows = 1;
  for (int d = 0; d < distinct.batch_dims; ++d) {
    if (distinct.batch[d].stride[kLengths] == 0 && distinct.batch[d].size > 1) distinct.batch[d].size = 1;
    distinct.rows *= distinct.batch[d].size;
  }
  for (std::int64_t r = 0; r < distinct.rows; ++r) {
    std::int64_t length;
    std::memcpy(&length, distinct.addresses(r).of[kLengths], sizeof(length));
    if (length < 0 || length > plan.n)
      return fail(Code::invalid_argument, "lengths: got %lld for row %lld; accepted are 0 to %lld, the length of the axis",
                  static_cast<long long>(length), static_cast<long long>(r), static_cast<long long>(plan.n));
  }
  return Status{};
}

}  // namespace sumexp::cpu
