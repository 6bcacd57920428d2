// From a call to a plan to kernel launches: the host side, with the table of operations and types.
#include "launch.hpp"

#include <cstdio>
#include <cstring>

#include "../cpu/plan.hpp"
#include "operations.cuh"
#include "run.hpp"

namespace sumexp::cuda {
namespace {

namespace gpu = ::sumexp::SUMEXP_NS;

struct Entry {
  bool packed;  // there are kernels for packed rows
  void (*describe)(Row&);
  std::size_t (*workspace)(const Job&);
  bool (*can_cluster)(const Job&, const Choice&);
  cudaError_t (*run)(const Job&, const Choice&, void*, cudaStream_t);
};
template <class S, class Op>
constexpr Entry entry() {
  using R = gpu::Run<S, Op>;
  return {!Op::Inputs::kWeighted, R::describe, R::workspace, R::can_cluster, R::run};
}
#define SUMEXP_FOUR_TYPES(name, Op, Family)                                                                        \
  {entry<gpu::f16, gpu::Family##Of<gpu::f16, gpu::Op>>(), entry<gpu::bf16, gpu::Family##Of<gpu::bf16, gpu::Op>>(), \
   entry<float, gpu::Family##Of<float, gpu::Op>>(), entry<double, gpu::Family##Of<double, gpu::Op>>()},
// by Op and DType
constexpr Entry kEntries[][4] = {SUMEXP_OPERATIONS(SUMEXP_FOUR_TYPES)};
#undef SUMEXP_FOUR_TYPES

const Entry& entry_of(const Plan& plan) { return kEntries[int(plan.op)][int(plan.dtype)]; }

void copy_dim(const cpu::Dim& from, JobDim& to) {
  to.size = from.size;
  for (int k = 0; k < kOperands; ++k) to.stride[k] = from.stride[k];
}

// Contiguous rows whose every start is a multiple of 16 bytes, read as they are?
bool all_packed(const cpu::Plan& plan, const cpu::OpInfo& info, int item) {
  if (plan.row_dims > 1 || plan.data[kWhere]) return false;
  if (info.temperature == gpu::kOfLogits && plan.temperature != 1.0) return false;
  for (int k = 0; k < kOperands; ++k) {
    if (!plan.data[k] || (info.row_like >> k & 1)) continue;
    if (plan.row_dims == 1 && plan.row[0].stride[k] != item) return false;
    if (reinterpret_cast<std::uintptr_t>(plan.data[k]) % 16) return false;
    for (int d = 0; d < plan.batch_dims; ++d)
      if (plan.batch[d].stride[k] % 16) return false;
  }
  return true;
}

// Do rows lie side by side, so that going along them is what coalesces?
bool side_by_side(const cpu::Plan& plan, const cpu::OpInfo& info, int item) {
  if (plan.batch_dims == 0 || plan.row_dims > 1 || plan.inner().size < 4) return false;
  for (int k = 0; k < kOperands; ++k) {
    if (!plan.data[k] || (info.row_like >> k & 1) || k == kWhere) continue;
    if (plan.inner().stride[k] != item) return false;
  }
  return true;
}

Status too_many_dims(int dims) {
  Status status;
  status.code = Code::unsupported;
  std::snprintf(status.message, sizeof status.message,
                "axes: the reduced axes stay %d separate dimensions after joining neighbours; CUDA accepts up to %d", dims,
                kJobDims);
  return status;
}

}  // namespace

Status make_plan(const Call& call, Plan& plan, Path path) noexcept {
  cpu::Plan rows;
  const Status status = cpu::make_plan(call, rows);
  if (!status.ok()) return status;
  const cpu::OpInfo& info = cpu::op_info(call.op);
  if (rows.row_dims > kJobDims) return too_many_dims(rows.row_dims);
  const int item = int(cpu::item_size(call.dtype));

  plan.op = call.op;
  plan.dtype = call.dtype;
  plan.nothing = rows.rows == 0 || (rows.n == 0 && !info.row_output);
  plan.workspace = 0;
  plan.outer_dims = rows.batch_dims > kJobDims ? rows.batch_dims - kJobDims : 0;
  plan.repeats = 1;
  for (int d = 0; d < plan.outer_dims; ++d) {
    copy_dim(rows.batch[d], plan.outer[d]);
    plan.repeats *= rows.batch[d].size;
  }
  if (plan.nothing) return status;

  Job& job = plan.job;
  std::memset(&job, 0, sizeof job);
  for (int k = 0; k < kOperands; ++k) job.data[k] = static_cast<char*>(rows.data[k]);
  job.batch_dims = rows.batch_dims - plan.outer_dims;
  for (int d = 0; d < job.batch_dims; ++d) copy_dim(rows.batch[plan.outer_dims + d], job.batch[d]);
  job.row_dims = rows.row_dims;
  for (int d = 0; d < job.row_dims; ++d) copy_dim(rows.row[d], job.row[d]);
  job.rows = rows.rows / plan.repeats;
  job.n = rows.n;
  job.row_input = info.row_input;
  job.read_again = !info.row_output;
  job.divide = info.temperature == gpu::kOfLogits && call.temperature != 1.0;
  job.temperature = call.temperature;
  const double largest = call.dtype == DType::f64   ? 1.7976931348623157e308
                         : call.dtype == DType::f16 ? 65504.0
                                                    : 3.4028234663852886e38;
  job.overflow = job.divide && call.temperature * (call.dtype == DType::f16 ? 3.4e38 : largest) < largest;
  job.factor = rows.factor;
  job.late = rows.late;
  job.access = entry_of(plan).packed && all_packed(rows, info, item) ? Access::packed
               : side_by_side(rows, info, item)                      ? Access::columns
                                                                     : Access::gather;
  job.stored = call.dtype == DType::f16 ? Stored::f16 : call.dtype == DType::bf16 ? Stored::bf16 : Stored::own;
  Row& row = plan.row;
  row.lanes = call.dtype == DType::f64 ? gpu::Geometry<double>::kLanes : gpu::Geometry<float>::kLanes;
  const std::int64_t chunk = std::int64_t(row.lanes) * gpu::Geometry<float>::kLaneRows;
  job.chunks = rows.n > chunk ? (rows.n + chunk - 1) / chunk : 1;
  row.rows = job.rows;
  row.n = job.n;
  row.chunks = job.chunks;
  row.item = item;
  row.access = job.access;
  row.stage = job.access == Access::packed ? 0
              : call.dtype == DType::f64   ? gpu::Stage<double>::pitch(int(chunk), 1) * 8
                                           : gpu::Stage<float>::pitch(int(chunk), 1) * 4;
  entry_of(plan).describe(row);

  arch::Device device;
  if (arch::query(device) != cudaSuccess) device = arch::Device{};  // the launch will say why
  plan.choice = choose(device, row, path);
  if (plan.choice.path == Path::cluster && !entry_of(plan).can_cluster(job, plan.choice))
    plan.choice = choose(device, row, Path::stream);
  if (plan.choice.path == Path::stream) plan.workspace = entry_of(plan).workspace(job);
  return status;
}

cudaError_t launch(const Plan& plan, void* workspace, cudaStream_t stream) noexcept {
  if (plan.nothing) return cudaSuccess;
  if (plan.workspace > 0 && !workspace) return cudaErrorInvalidValue;
  for (std::int64_t i = 0; i < plan.repeats; ++i) {
    Job job = plan.job;
    std::int64_t rest = i;
    for (int d = plan.outer_dims - 1; d >= 0; --d) {
      const std::int64_t at = rest % plan.outer[d].size;
      rest /= plan.outer[d].size;
      for (int k = 0; k < kOperands; ++k)
        if (job.data[k]) job.data[k] += at * plan.outer[d].stride[k];
    }
    const cudaError_t error = entry_of(plan).run(job, plan.choice, workspace, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace sumexp::cuda
