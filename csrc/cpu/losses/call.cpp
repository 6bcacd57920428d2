// Checks of a loss's call, and its layout.
#include "call.hpp"

#include "../status.hpp"

namespace sumexp::cpu {

namespace {

bool is_between(double x, double least, double most) { return x >= least && x <= most; }

// Whether all operands walk through both as through one dimension.
bool continues(const Dim& outer, const Dim& inner) {
  for (int k = 0; k < kOperands; ++k)
    if (outer.stride[k] != inner.stride[k] * inner.size) return false;
  return true;
}

}  // namespace

Status check_loss_options(const CrossEntropyCall& call) {
  const int kind = static_cast<int>(call.kind), type = static_cast<int>(call.index_type);
  const int reduction = static_cast<int>(call.reduction);
  const auto code = [](const char* name, int given, const char* accepted) {
    return fail(Code::invalid_argument, "%s is code %d, accepted: %s", name, given, accepted);
  };
  if (const Status status = check_shape(call.dtype, call.ndim, call.shape, call.axis); !status.ok()) return status;
  if (!is_dtype(call.target_dtype)) return bad_dtype("target_dtype", call.target_dtype);
  if (kind < 0 || kind > 2) return code("kind", kind, "0 to 2 (index, probabilities, pairs)");
  if (type < 0 || type > 7) return code("index_type", type, "0 to 7");
  if (reduction < 0 || reduction > 2) return code("reduction", reduction, "0 to 2 (none, mean, sum)");
  const auto number = [](const char* name, double given, const char* accepted) {
    return fail(Code::invalid_argument, "%s is %g, accepted: %s", name, given, accepted);
  };
  const double most = call.dtype == DType::f64 ? 1.7976931348623157e308 : 3.4028234663852886e38;
  const double least = call.dtype == DType::f64 ? 4.9e-324 : 1.5e-45;
  if (!is_between(call.label_smoothing, 0.0, 1.0))
    return number("label_smoothing", call.label_smoothing, "numbers from 0 to 1");
  if (!is_between(call.z_loss, 0.0, most)) return number("z_loss", call.z_loss, "numbers from 0 that the dtype has");
  if (call.softcap != 0.0 && !is_between(call.softcap, least, most))
    return number("softcap", call.softcap, "numbers above 0 that the dtype has");
  if (const Status status = check_temperature(call.dtype, call.temperature); !status.ok()) return status;
  if (call.given_denominator && !is_between(call.denominator, 0.0, 1.7976931348623157e308))
    return number("denominator", call.denominator, "finite numbers from 0");
  if (call.given_denominator && call.reduction != LossReduction::mean)
    return fail(Code::invalid_argument, "denominator is given, accepted: with the mean alone");
  if (call.pairs < 0 || (call.kind == TargetKind::pairs && call.pairs < 1))
    return fail(Code::invalid_argument, "pairs is %lld, accepted: integers from 1", static_cast<long long>(call.pairs));
  return Status{};
}

Status lay_out_losses(const CrossEntropyCall& call, Plan& plan) {
  const View* views[kOperands] = {&call.logits, &call.target, &call.token_weight, &call.target_weight, &call.dlogits, &call.g};
  constexpr const char* kNames[kOperands] = {"logits", "target", "token_weight", "target_weight", "dlogits", "g"};
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  plan.op = Op::cross_entropy, plan.dtype = call.dtype, plan.temperature = 1.0;
  plan.rows = plan.n = 1;
  plan.batch_dims = 0, plan.row_dims = 1;
  plan.direct = plan.columns = plan.stream = false;
  for (int k = 0; k < kOperands; ++k) {
    plan.data[k] = views[k]->data;
    if (views[k]->data && !views[k]->strides) return fail(Code::invalid_argument, "%s has no strides", kNames[k]);
  }
  for (int d = 0; d < call.ndim; ++d) {
    const std::int64_t size = call.shape[d];
    (d == axis ? plan.n : plan.rows) *= size;
    if (d != axis && size == 1) continue;
    Dim dim = {size, {}};
    for (int k = 0; k < kOperands; ++k) dim.stride[k] = views[k]->data ? views[k]->strides[d] : 0;
    if (d == axis) plan.row[0] = dim;
    else if (plan.batch_dims && continues(plan.batch[plan.batch_dims - 1], dim))
      dim.size *= plan.batch[plan.batch_dims - 1].size, plan.batch[plan.batch_dims - 1] = dim;
    else plan.batch[plan.batch_dims++] = dim;
  }
  if (plan.rows && !plan.data[kTarget] && (plan.n || call.kind != TargetKind::probabilities))
    return fail(Code::invalid_argument, "target is missing");
  if (plan.rows && call.kind == TargetKind::pairs && !plan.data[kPairWeight])
    return fail(Code::invalid_argument, "target_weight is missing; pairs have one each");
  return Status{};
}

}  // namespace sumexp::cpu
