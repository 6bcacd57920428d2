// Cross-entropy on a device: a mean's denominator, the rows (losses.cuh), their sum. Rows are added as a binary tree over their
// index, in the wide type, as cpu/losses/rows.hpp adds them.
#include "losses.hpp"

#include <cstring>

#include "../../cpu/status.hpp"
#include "../on_device.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {
namespace {

constexpr int kThreads = 256, kEach = 8, kRound = kThreads * kEach;
constexpr std::int64_t kMostBlocks = 4096;

template <class W>
struct RowNode {
  W sum;
};
template <class W>
SUMEXP_FN RowNode<W> merge(const RowNode<W>& a, const RowNode<W>& b) {
  return {sum_or_infinity(a.sum, b.sum)};
}
template <class W>
struct TreeBoard {
  MergeTree<RowNode<W>> tree;
  RowNode<W> node[kThreads];
};

// get(first) + ... + get(first + count - 1), for thread 0 of a block.
template <class W, class Get>
SUMEXP_DEVICE W tree_of(std::int64_t first, std::int64_t count, TreeBoard<W>& board, Get get) {
  RowNode<W> root = {};
  if (threadIdx.x == 0) board.tree.clear();
#pragma unroll 1
  for (std::int64_t round = 0; round < count; round += kRound) {
    const std::int64_t here = count - round < kRound ? count - round : kRound, own = std::int64_t(threadIdx.x) * kEach;
    RowNode<W> v[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      v[i] = {};
      if (own + i < here) v[i].sum = get(first + round + own + i);
    }
#pragma unroll
    for (int step = 1; step < kEach; step *= 2)
#pragma unroll
      for (int i = 0; i < kEach; i += 2 * step)
        if (own + i + step < here) v[i] = merge(v[i], v[i + step]);
    RowNode<W>& mine = board.node[threadIdx.x];
    mine = v[0];
    const int nodes = int((here + kEach - 1) / kEach);
    for (int step = 1; step < kThreads; step *= 2) {
      arch::block_sync();
      if (threadIdx.x % (2 * step) == 0 && int(threadIdx.x) + step < nodes) mine = merge(mine, board.node[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
      if (round + here < count) board.tree.push(mine);
      else root = board.tree.finish(mine);
    }
    arch::block_sync();
  }
  return root.sum;
}

// Where a sum goes, by its last kernel: to a place of its own, and to the loss.
struct SumResult {
  double* sum;
  void* loss;
  DType dtype;
  bool mean, zero_if_empty;
  const double* denominator_at;  // or null, where it is `denominator`
  double denominator;
};
SUMEXP_DEVICE void put_sum(const SumResult& to, double sum) {
  if (to.sum) *to.sum = quiet(sum);
  if (!to.loss) return;
  if (to.mean) {
    const double denominator = to.denominator_at ? *to.denominator_at : to.denominator;
    sum = mean_of(sum, denominator, to.zero_if_empty);
  }
  sum = quiet(sum);
  switch (to.dtype) {
    case DType::f16: *static_cast<f16*>(to.loss) = Narrow<f16>::from(quiet(static_cast<float>(sum))); return;
    case DType::bf16: *static_cast<bf16*>(to.loss) = Narrow<bf16>::from(quiet(static_cast<float>(sum))); return;
    case DType::f32: *static_cast<float*>(to.loss) = quiet(static_cast<float>(sum)); return;
    default: *static_cast<double*>(to.loss) = sum;
  }
}

// What a row counts for in a mean: 0 where it is ignored; of an index out of range as if its class had weight 1.
template <class T>
SUMEXP_DEVICE double row_weight(const LossJob& job, std::int64_t row) {
  char* at[cpu::kOperands];
  place_row(job.rows, row, at);
  if (is_ignored(job, at[cpu::kTarget])) return 0.0;
  const double token = at[cpu::kToken] ? *reinterpret_cast<const double*>(at[cpu::kToken]) : 1.0;
  if (job.kind != TargetKind::index || !job.weight) return token;
  const Index t = read_index(job.index_type, at[cpu::kTarget]);
  if (t.huge || t.value < 0 || t.value >= job.rows.n) return token;
  return token * static_cast<double>(static_cast<const T*>(job.weight)[t.value]);
}

// A block adds `each` rows, a power of two of rounds, to parts[blockIdx.x]; or one all of them.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    loss_weights(SUMEXP_PARAMETER LossJob job, std::int64_t each, double* parts, SumResult to) {
  auto& board = *arch::dynamic_shared<TreeBoard<double>>();
  const std::int64_t first = std::int64_t(blockIdx.x) * each, left = job.rows.rows - first;
  const double sum =
      tree_of<double>(first, left < each ? left : each, board, [&](std::int64_t r) { return row_weight<T>(job, r); });
  if (threadIdx.x != 0) return;
  if (parts) parts[blockIdx.x] = sum;
  else put_sum(to, sum);
}

// The same of contiguous losses, or of the sums of blocks before.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    loss_sum(const T* losses, const Wide<T>* before, std::int64_t count, std::int64_t each, Wide<T>* parts, SumResult to) {
  auto& board = *arch::dynamic_shared<TreeBoard<Wide<T>>>();
  const std::int64_t first = std::int64_t(blockIdx.x) * each, left = count - first;
  const Wide<T> sum = tree_of<Wide<T>>(first, left < each ? left : each, board,
                                       [&](std::int64_t i) { return before ? before[i] : WideOf<T>::from(losses[i]); });
  if (threadIdx.x != 0) return;
  if (parts) parts[blockIdx.x] = sum;
  else put_sum(to, head(sum));
}

// -- host ----------------------------------------------------------------------------------------------------------------

struct Blocks {
  std::int64_t each = kRound, count;
  explicit Blocks(std::int64_t rows) {
    while ((rows + each - 1) / each > kMostBlocks) each *= 2;
    count = rows > each ? (rows + each - 1) / each : 1;
  }
};
std::size_t aligned(std::int64_t bytes) { return (static_cast<std::size_t>(bytes) + 255) / 256 * 256; }

arch::Launch launch_of(std::int64_t blocks, cudaStream_t stream) {
  arch::Launch how;
  how.grid = dim3(unsigned(blocks)), how.block = dim3(kThreads), how.stream = stream;
  how.dynamic_shared = sizeof(TreeBoard<DD<double>>);
  return how;
}
template <class T>
cudaError_t add_losses(const void* losses, std::int64_t rows, void* parts, const SumResult& to, cudaStream_t stream) {
  const Blocks blocks(rows);
  auto* const sums = static_cast<Wide<T>*>(parts);
  const auto launch = [&](const void* values, const Wide<T>* before, std::int64_t count, const Blocks& over,
                          Wide<T>* to_parts) {
    return arch::launch(loss_sum<T>, launch_of(over.count, stream), static_cast<const T*>(values), before, count, over.each,
                        to_parts, to);
  };
  if (blocks.count == 1) return launch(losses, nullptr, rows, blocks, nullptr);
  const cudaError_t error = launch(losses, nullptr, rows, blocks, sums);
  Blocks one(0);
  one.each = blocks.count;
  return error == cudaSuccess ? launch(nullptr, sums, blocks.count, one, nullptr) : error;
}
cudaError_t add_weights(const LossJob& job, bool wide, void* parts, double* denominator, cudaStream_t stream) {
  const Blocks blocks(job.rows.rows);
  SumResult to = {};
  to.sum = denominator;
  auto* const sums = blocks.count > 1 ? static_cast<double*>(parts) : nullptr;
  const arch::Launch how = launch_of(blocks.count, stream);
  const cudaError_t error = wide ? arch::launch(loss_weights<double>, how, job, blocks.each, sums, to)
                                 : arch::launch(loss_weights<float>, how, job, blocks.each, sums, to);
  if (error != cudaSuccess || !sums) return error;
  Blocks one(0);
  one.each = blocks.count;
  return arch::launch(loss_sum<float>, launch_of(1, stream), static_cast<const float*>(nullptr),
                      static_cast<const double*>(sums), blocks.count, one.each, static_cast<double*>(nullptr), to);
}

}  // namespace

std::size_t parts_bytes(std::int64_t rows) {
  const Blocks blocks(rows);
  return blocks.count > 1 ? aligned(blocks.count * std::int64_t{sizeof(DD<double>)}) : 0;
}

Status job_of(const CrossEntropyCall& call, LossJob& job) {
  Status status = cpu::check_loss_options(call);
  if (!status.ok()) return status;
  cpu::Plan plan;
  status = cpu::lay_out_losses(call, plan);
  if (!status.ok()) return status;
  std::memset(static_cast<void*>(&job), 0, sizeof(job));
  auto& rows = job.rows;
  if (plan.batch_dims > cuda::kBatchDims) {
    status.code = Code::unsupported;
    std::snprintf(status.message, sizeof status.message,
                  "shape: %d batch dimensions are left after joining neighbours; CUDA accepts up to %d", plan.batch_dims,
                  cuda::kBatchDims);
    return status;
  }
  rows.rows = plan.rows, rows.n = plan.n, rows.batch_dims = plan.batch_dims;
  for (int k = 0; k < cpu::kOperands; ++k) {
    rows.data[k] = static_cast<char*>(plan.data[k]), rows.stride[k] = plan.row[0].stride[k];
    for (int d = 0; d < plan.batch_dims; ++d) rows.step[d][k] = plan.batch[d].stride[k];
  }
  for (int d = 0; d < plan.batch_dims; ++d) rows.size[d] = plan.batch[d].size;
  job.options = {plan.n,
                 call.label_smoothing,
                 call.z_loss,
                 call.temperature,
                 call.kind == TargetKind::probabilities,
                 call.weight != nullptr};
  job.kind = call.kind, job.index_type = call.index_type, job.target_dtype = call.target_dtype;
  job.pairs = call.pairs, job.ignore_index = call.ignore_index, job.weight = call.weight, job.softcap = call.softcap;
  job.mean = call.reduction == LossReduction::mean, job.zero_if_empty = call.zero_if_empty;
  job.denominator = call.given_denominator ? call.denominator : 1.0;
  job.denominator_at = call.given_denominator ? call.denominator_at : nullptr;
  job.loss = call.reduction == LossReduction::none ? call.loss : nullptr;
  job.row_loss = call.row_loss, job.lse = call.lse, job.log_prob = call.log_prob, job.entropy = call.entropy;
  job.z_loss = call.z_loss_part, job.predicted = call.predicted, job.correct = call.correct;
  return status;
}

cudaError_t reduce_losses(const CrossEntropyCall& call, std::int64_t rows, void* parts, cudaStream_t stream) {
  const double* const at = call.given_denominator ? call.denominator_at : nullptr;
  const bool mean = call.reduction == LossReduction::mean;
  const SumResult to = {
      nullptr, call.loss, call.dtype, mean, call.zero_if_empty, at, call.given_denominator ? call.denominator : 1.0};
  return call.dtype == DType::f64 ? add_losses<double>(call.row_loss, rows, parts, to, stream)
                                  : add_losses<float>(call.row_loss, rows, parts, to, stream);
}

namespace {

cudaError_t launch_rows(DType dtype, const LossJob& job, cudaStream_t stream) {
  if (job.rows.rows == 0) return cudaSuccess;
  switch (dtype) {
    case DType::f16: return LossRows<f16>::launch(job, stream);
    case DType::bf16: return LossRows<bf16>::launch(job, stream);
    case DType::f32: return LossRows<float>::launch(job, stream);
    default: return LossRows<double>::launch(job, stream);
  }
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS

namespace sumexp::cuda {

namespace gpu = ::sumexp::SUMEXP_NS;

Status cross_entropy(const CrossEntropyCall& call, Target& target) noexcept {
  gpu::LossJob job;
  const Status status = gpu::job_of(call, job);
  if (!status.ok()) return status;
  if (job.rows.rows && job.rows.n && !job.rows.data[cpu::kLogits])
    return cpu::fail(Code::invalid_argument, "logits is missing");
  const bool wide = call.dtype == DType::f64, sums = call.reduction != LossReduction::none && call.loss;
  const bool counts = job.mean && !call.given_denominator;
  const std::int64_t rows = job.rows.rows;
  // Workspace: sums of blocks, the denominator, the rows' losses.
  const std::size_t parts = sums || counts ? gpu::parts_bytes(rows) : 0, denominator = counts ? 256 : 0;
  const std::size_t losses = sums && !call.row_loss ? gpu::aligned(rows * (wide ? 8 : 4)) : 0;
  return on_device(target, parts + denominator + losses, [&](void* workspace, cudaStream_t stream) {
    char* const at = static_cast<char*>(workspace);
    if (losses) job.row_loss = at + parts + denominator;
    cudaError_t error = cudaSuccess;
    if (counts) {
      auto* const place = reinterpret_cast<double*>(at + parts);
      error = gpu::add_weights(job, wide, at, place, stream);
      job.denominator_at = place;
    }
    if (error == cudaSuccess) error = gpu::launch_rows(call.dtype, job, stream);
    if (error != cudaSuccess || !sums) return error;
    CrossEntropyCall made = call;
    made.row_loss = job.row_loss;
    if (counts) made.given_denominator = true, made.denominator_at = job.denominator_at;
    return gpu::reduce_losses(made, rows, at, stream);
  });
}

Status cross_entropy_denominator(const CrossEntropyCall& call, double* denominator, Target& target) noexcept {
  gpu::LossJob job;
  const Status status = gpu::job_of(call, job);
  if (!status.ok()) return status;
  if (!denominator) return cpu::fail(Code::invalid_argument, "denominator is missing");
  return on_device(target, gpu::parts_bytes(job.rows.rows), [&](void* workspace, cudaStream_t stream) {
    return gpu::add_weights(job, call.dtype == DType::f64, workspace, denominator, stream);
  });
}

Status sum_rows(const void* values, DType dtype, std::int64_t rows, double* sum, Target& target) noexcept {
  if (rows < 0)
    return cpu::fail(Code::invalid_argument, "rows is %lld, accepted: integers from 0", static_cast<long long>(rows));
  if ((rows && !values) || !sum) return cpu::fail(Code::invalid_argument, "%s is missing", sum ? "values" : "sum");
  return on_device(target, gpu::parts_bytes(rows), [&](void* workspace, cudaStream_t stream) {
    gpu::SumResult to = {};
    to.sum = sum;
    return dtype == DType::f64 ? gpu::add_losses<double>(values, rows, workspace, to, stream)
                               : gpu::add_losses<float>(values, rows, workspace, to, stream);
  });
}

}  // namespace sumexp::cuda
