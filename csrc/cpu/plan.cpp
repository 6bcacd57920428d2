#include "plan.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "../ops/table.hpp"
#include "status.hpp"
#include "threads/machine.hpp"

namespace sumexp::cpu {

namespace {

constexpr unsigned bit(int operand) { return 1u << operand; }

template <class Op>
constexpr OpInfo describe(const char* name) {
  const unsigned row_like = bit(kExtra) | (Op::kRowOutput ? bit(kOut) : 0) | (Op::kRowInput < 0 ? 0 : bit(Op::kRowInput));
  return {name,      Op::kInputs,      Op::kRowInput, Op::kPasses, Op::kRowOutput, Op::kLogits, Op::kProbability,
          Op::kMask, Op::kTemperature, Op::kExtra,    Op::kIndex,  Op::kApart,     row_like};
}
#define SUMEXP_DESCRIBE(name, Op, Family) describe<SUMEXP_NS::Op>(#name),
constexpr OpInfo kOps[] = {SUMEXP_OPERATIONS(SUMEXP_DESCRIBE)};
static_assert(sizeof(kOps) / sizeof(kOps[0]) == kOpCount, "ops/table.hpp has a row for every sumexp::Op");

// A result of stream_bytes() and more (stream_bytes_of_columns) is written around the cache, in which it does not stay.
// But not rows shorter than this whose ends lie within cache lines: lines that are not written whole cost more than the
// others save. csrc/README.md has the figures.
constexpr std::int64_t kStreamRow = 1280, kLine = 64;

// Bytes of rows side by side that are taken from where they begin, not from a boundary on: the rows ahead of it are no whole
// vector, and take as long as several.
constexpr std::int64_t kNarrow = 2 * kColumnRun;

// Terms of a long row wait in scratch as long as those that all threads keep stay in the cache. Measured on the Zen 4
// (2026-11-22, softmax, 2 threads, interleaved): rows of 4 MB of float terms take 0.83 and 0.88 of the time of computing them
// twice, of 8 MB of double ones 0.81; on one thread 16 MB are even, and more lose.
constexpr std::int64_t kKeptBytes = std::int64_t(16) << 20;

// 1 / T^power. Where T^power is subnormal or less, that may be no number of the type: then late is a power of two and factor
// some 2^100 (double: 2^1000), enough for a product with it to be normal, so that late^2 rounds nothing.
void set_factor(Plan& plan, int power) {
  plan.factor = plan.late = 1.0;
  if (power <= 0) return;
  const double t = plan.temperature, product = power == 2 ? t * t : t;
  const bool wide = plan.dtype == DType::f64;
  if (product >= (wide ? std::numeric_limits<double>::min() : double{std::numeric_limits<float>::min()})) {
    plan.factor = 1.0 / product;
    return;
  }
  int exponent;
  const double m = std::frexp(t, &exponent);
  int rest = -exponent * power - (wide ? 1000 : 100);
  rest += rest & 1;
  plan.factor = std::ldexp(power == 2 ? 1.0 / (m * m) : 1.0 / m, -exponent * power - rest);
  plan.late = std::ldexp(1.0, rest / 2);
}

// Calls body(k) for each operand of a set.
template <class Body>
void each(unsigned operands, Body body) {
  for (; operands; operands &= operands - 1) body(__builtin_ctz(operands));
}

// Merges neighbours that every operand walks through as if they were one dimension.
int coalesce(Dim* dims, int count) {
  int last = 0;
  for (int d = 1; d < count; ++d) {
    bool joined = true;
    for (int k = 0; joined && k < kOperands; ++k) joined = dims[last].stride[k] == dims[d].stride[k] * dims[d].size;
    const std::int64_t size = joined ? dims[last].size * dims[d].size : dims[d].size;
    if (!joined) ++last;
    dims[last] = dims[d];
    dims[last].size = size;
  }
  return last + 1;
}

}  // namespace

std::int64_t item_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

const OpInfo& op_info(Op op) { return kOps[static_cast<int>(op)]; }

Offsets Plan::row_offsets(std::int64_t r) const {
  Offsets offsets = {};
  if (r == 0) return offsets;
  for (int d = batch_dims - 1; d >= 0; --d) {
    const std::int64_t i = d > 0 ? r % batch[d].size : r;
    if (d > 0) r /= batch[d].size;
    for (int k = 0; k < kOperands; ++k) offsets.at[k] += i * batch[d].stride[k];
  }
  return offsets;
}

std::int64_t Plan::rows_to_boundary(std::int64_t r, std::int64_t bytes) const {
  const int k = op_info(op).row_output ? kIn0 : kOut;
  const std::int64_t item = item_size(dtype);
  if (inner().size * item <= kNarrow || row[0].stride[k] % bytes) return 0;
  const auto address = reinterpret_cast<std::uintptr_t>(data[k]) + static_cast<std::uintptr_t>(row_offsets(r).at[k]);
  const std::int64_t past = static_cast<std::int64_t>(address % static_cast<std::uintptr_t>(bytes));
  return past % item ? 0 : (bytes - past) % bytes / item;
}

Status make_plan(const Call& call, Plan& plan) {
  const int op = static_cast<int>(call.op);
  if (op < 0 || op >= kOpCount) return fail(Code::invalid_argument, "op is code %d, accepted: 0 to %d", op, kOpCount - 1);
  if (const Status status = check_shape(call.dtype, call.ndim, call.shape); !status.ok()) return status;
  if (call.ndim < 64 && (call.axes >> call.ndim) != 0)
    return fail(Code::invalid_argument, "axes: a bit is set at or above ndim = %d", call.ndim);
  if (const Status status = check_temperature(call.dtype, call.temperature); !status.ok()) return status;
  const OpInfo& info = op_info(call.op);
  if (info.temperature == 0 && call.temperature != 1.0)
    return fail(Code::invalid_argument, "temperature is %g; %s takes none (1)", call.temperature, info.name);
  if (call.where.data && !info.mask) return fail(Code::invalid_argument, "where: %s takes no mask", info.name);

  plan.op = call.op;
  plan.dtype = call.dtype;
  plan.temperature = call.temperature;
  set_factor(plan, info.temperature);
  if (call.extra.data && !info.extra) return fail(Code::invalid_argument, "extra: %s has no second result", info.name);
  static constexpr const char* kNames[kOperands] = {"in[0]", "in[1]", "in[2]", "where", "out", "extra"};
  const View* const views[kOperands] = {&call.in[0], &call.in[1], &call.in[2], &call.where, &call.out, &call.extra};
  unsigned present = 0;
  for (int k = 0; k < kOperands; ++k) {
    plan.data[k] = views[k]->data;
    if (!plan.data[k]) continue;
    if (call.ndim > 0 && !views[k]->strides) return fail(Code::invalid_argument, "%s has no strides", kNames[k]);
    present |= bit(k);
  }
  const unsigned elementwise = present & ~info.row_like;
  const int inputs = info.inputs + (info.row_input >= 0 ? 1 : 0);
  if (const unsigned more = present & (bit(kMaxInputs) - bit(inputs)))
    return fail(Code::invalid_argument, "in[%d] is given; %s takes %d inputs", __builtin_ctz(more), info.name, inputs);
  plan.rows = plan.n = 1;
  plan.batch_dims = plan.row_dims = 0;
  for (int d = 0; d < call.ndim; ++d) {
    const std::int64_t size = call.shape[d];
    if (size == 1) continue;
    const bool on_row = (call.axes >> d) & 1;
    Dim& dim = on_row ? plan.row[plan.row_dims++] : plan.batch[plan.batch_dims++];
    dim = {size, {}};
    (on_row ? plan.n : plan.rows) *= size;
    each(on_row ? elementwise : present, [&](int k) { dim.stride[k] = views[k]->strides[d]; });
  }
  const bool empty = plan.rows == 0 || (plan.n == 0 && !info.row_output);
  if (!empty) {
    for (int k = 0; k < inputs; ++k)
      if (!plan.data[k] && (plan.n > 0 || (info.index && k == info.row_input)))
        return fail(Code::invalid_argument, "in[%d] is missing; %s takes %d inputs", k, info.name, inputs);
    if (!plan.data[kOut]) return fail(Code::invalid_argument, "out is missing");
  }

  if (plan.batch_dims > 1) plan.batch_dims = coalesce(plan.batch, plan.batch_dims);
  if (plan.row_dims > 1) plan.row_dims = coalesce(plan.row, plan.row_dims);
  const std::int64_t item = item_size(call.dtype);
  plan.direct = plan.row_dims <= 1 && !plan.data[kWhere] && !(info.temperature == -1 && call.temperature != 1.0);
  plan.columns = plan.batch_dims > 0 && plan.row_dims == 1;
  each(elementwise & ~bit(kWhere), [&](int k) {
    if (plan.row_dims == 1 && plan.row[0].stride[k] != item) plan.direct = false;
    if (plan.columns && plan.inner().stride[k] != item) plan.columns = false;
  });
  if (plan.direct) plan.columns = false;
  const std::int64_t stream_from = plan.columns ? cpu::stream_bytes_of_columns(item) : stream_bytes();
  plan.stream = !info.row_output && plan.rows * plan.n * item >= stream_from;
  if (plan.stream && plan.direct && plan.n * item < kStreamRow) {
    auto ends = reinterpret_cast<std::uintptr_t>(plan.data[kOut]);  // of rows, within lines of the cache
    for (int d = 0; d < plan.batch_dims; ++d) ends |= static_cast<std::uintptr_t>(plan.batch[d].stride[kOut]);
    plan.stream = ends % kLine == 0;
  }
  plan.kept_bytes = kKeptBytes / get_num_threads();
  return Status{};
}

Status check_indices(const Plan& plan) {
  const OpInfo& info = op_info(plan.op);
  if (!info.index || !plan.data[info.row_input]) return Status{};
  const int k = info.row_input;
  const std::int64_t inner = plan.inner().size, step = plan.inner().stride[k];
  for (std::int64_t r = 0; r < plan.rows; r += inner) {
    const char* at = static_cast<const char*>(plan.data[k]) + plan.row_offsets(r).at[k];
    for (std::int64_t i = 0; i < inner; ++i, at += step) {
      std::int64_t index;
      std::memcpy(&index, at, sizeof(index));
      if (index < 0 || index >= plan.n)
        return fail(Code::invalid_argument, "in[%d] is %lld for row %lld, accepted: indices from 0 below %lld", k,
                    static_cast<long long>(index), static_cast<long long>(r + i), static_cast<long long>(plan.n));
    }
  }
  return Status{};
}

}  // namespace sumexp::cpu
