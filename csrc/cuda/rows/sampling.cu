// Sampling on a device: checks of what the host knows, the layout of the workspace, and which kernel.
#include "sampling.hpp"

#include <sumexp/cuda.hpp>

#include "../../cpu/sampling/check.hpp"
#include "../../cpu/status.hpp"
#include "../../ops/sampling.hpp"
#include "../on_device.hpp"

namespace sumexp::SUMEXP_NS {

template <class T>
__global__ void __launch_bounds__(256, 1)
    gumbel_rows(PerRow<std::uint64_t> seed, PerRow<std::int64_t> stream, std::int64_t rows, std::int64_t n, T* out) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * n; i += step) {
    const std::int64_t row = i / n;
    const RowRandom random = {seed.data[row * seed.step],
                              static_cast<std::uint64_t>(stream.data ? stream.data[row * stream.step] : row)};
    const Uniforms u = noise_uniforms(random, i - row * n);
    out[i] = gumbel_of(u.low, u.high);
  }
}

}  // namespace sumexp::SUMEXP_NS

namespace sumexp::cuda {

namespace {

constexpr std::int64_t kMostBlocks = 4096;  // at once: each has workspace
constexpr std::int64_t kDrawsAPart = 8192;
constexpr std::int64_t kChunksAPart = 4;

using SUMEXP_NS::SampleTask;

// The rows of a call, with room in a workspace for each of `blocks`.
struct Job {
  SampleRows rows = {};
  std::int64_t blocks = 0;
  std::size_t bytes = 0;

  Status make(const SampleCall& call, SampleTask task, std::int64_t* counts, const std::int64_t* count_strides) {
    const bool reads = task != SampleTask::finish;
    if (const Status status = cpu::check_draws(call, counts, count_strides, reads); !status.ok()) return status;
    const View views[] = {call.logits, call.where, {counts, count_strides}};
    if (Status status = lay_rows(call.ndim, call.shape, call.axis < 0 ? call.axis + call.ndim : call.axis, views, rows.views);
        !status.ok())
      return status;
    if (rows.views.rows == 0) return Status{};
    if (!call.seed.data) return cpu::fail(Code::invalid_argument, "seed is missing");
    const bool double_rows = call.dtype == DType::f64;
    const std::int64_t chunk = double_rows ? SUMEXP_NS::Geometry<double>::kChunk : SUMEXP_NS::Geometry<float>::kChunk;
    const std::int64_t state = double_rows ? sizeof(SUMEXP_NS::ExpState<double>) : sizeof(SUMEXP_NS::ExpState<float>);
    rows.dtype = call.dtype, rows.seed = call.seed, rows.stream = call.stream, rows.temperature = call.temperature;
    rows.late = call.order == FilterOrder::llama_cpp, rows.replacement = call.replacement;
    rows.draws = call.num_samples, rows.out = call.out;
    rows.log_prob = call.log_prob, rows.filtered_log_prob = call.filtered_log_prob, rows.kept = call.kept;
    rows.cut_logit = call.cut_logit, rows.cut_index = call.cut_index;
    rows.chunks = (rows.views.n + chunk - 1) / chunk;
    rows.nodes = SUMEXP_NS::tree_nodes(rows.chunks), rows.levels = SUMEXP_NS::tree_levels(rows.chunks);
    rows.parts = 1;
    if (task == SampleTask::pieces) rows.parts = rows.chunks;
    if (task == SampleTask::draws && call.replacement) rows.parts = parts_of(rows.draws, kDrawsAPart);
    if (task == SampleTask::counts) rows.parts = parts_of(rows.chunks, kChunksAPart);
    std::int64_t at = 0;
    const auto place = [&](bool wanted, std::int64_t size) {
      const std::int64_t place = at;
      if (wanted) at += (size + 15) / 16 * 16;
      return place;
    };
    const bool grows = task != SampleTask::pieces;
    place(grows, rows.nodes * state);
    rows.nodes_at = place(grows, rows.nodes * static_cast<std::int64_t>(sizeof(SumNode)));
    rows.raw_at = place(call.log_prob != nullptr, rows.nodes * state);
    rows.counts_at = place(task == SampleTask::counts, rows.nodes * 8);
    rows.taken_at = place(task == SampleTask::draws && !call.replacement, (rows.views.n + 31) / 32 * 4);
    rows.block_bytes = at;
    blocks = rows.views.rows * rows.parts < kMostBlocks ? rows.views.rows * rows.parts : kMostBlocks;
    bytes = static_cast<std::size_t>(blocks * at);
    return Status{};
  }
  // Few rows are shared out, so that more of the chip works.
  std::int64_t parts_of(std::int64_t all, std::int64_t least) const {
    const std::int64_t wanted = (all + least - 1) / least, room = kMostBlocks / 4 / rows.views.rows;
    return wanted < room ? (wanted > 1 ? wanted : 1) : room > 1 ? room : 1;
  }

  Status run(SampleTask task, Target& target, std::size_t more, const FilterRows* filters) {
    if (rows.views.rows == 0) return Status{};
    return on_device(target, bytes + more, [&](void* workspace, cudaStream_t stream) {
      rows.workspace = static_cast<char*>(workspace);
      if (filters) {
        auto* const cuts = reinterpret_cast<RowCut*>(rows.workspace + bytes);
        rows.cuts = cuts;
        if (const cudaError_t error = find_cuts(rows.dtype, *filters, cuts, stream); error != cudaSuccess) return error;
      }
      return rows.dtype == DType::f64 ? SUMEXP_NS::SamplingOf<double>::run(task, rows, blocks, stream)
                                      : SUMEXP_NS::SamplingOf<float>::run(task, rows, blocks, stream);
    });
  }
};

}  // namespace

Status sample(const SampleCall& call, Target& target) noexcept {
  Job job;
  if (Status status = job.make(call, SampleTask::draws, nullptr, nullptr); !status.ok()) return status;
  const bool told = call.kept || call.cut_logit || call.cut_index;  // of rows
  if (job.rows.views.rows == 0 || (call.num_samples == 0 && !told)) return Status{};
  if (call.num_samples && !call.out) return cpu::fail(Code::invalid_argument, "out is missing");
  if (!call.top_k.data && !call.top_p.data && !call.min_p.data) return job.run(SampleTask::draws, target, 0, nullptr);
  if (job.rows.views.n > kLongestFiltered)
    return cpu::fail(Code::invalid_argument, "shape: rows of more than 2^32 - 1 elements have no filters on CUDA");
  FilterRows filters;
  const View views[] = {call.logits, call.where};
  if (Status status = lay_rows(call.ndim, call.shape, call.axis < 0 ? call.axis + call.ndim : call.axis, views, filters.views);
      !status.ok())
    return status;
  filters.temperature = call.temperature, filters.top_k = call.top_k, filters.top_p = call.top_p, filters.min_p = call.min_p;
  filters.order = call.order;
  return job.run(SampleTask::draws, target, static_cast<std::size_t>(job.rows.views.rows) * sizeof(RowCut), &filters);
}

Status sample_counts(const SampleCall& call, std::int64_t* counts, const std::int64_t* strides, Target& target) noexcept {
  if (!counts && call.shape)
    for (int d = 0; d < call.ndim; ++d)
      if (call.shape[d] == 0) return Status{};
  if (!counts) return cpu::fail(Code::invalid_argument, "counts is missing");
  Job job;
  if (Status status = job.make(call, SampleTask::counts, counts, strides); !status.ok()) return status;
  if (job.rows.views.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "sample_counts"); !status.ok()) return status;
  return job.run(SampleTask::counts, target, 0, nullptr);
}

Status sample_piece(const SampleCall& call, std::int64_t chunk, std::int64_t chunks, void* states, std::int16_t* classes,
                    Target& target) noexcept {
  Job job;
  if (Status status = job.make(call, SampleTask::pieces, nullptr, nullptr); !status.ok()) return status;
  SampleRows& rows = job.rows;
  if (rows.views.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "sample_piece"); !status.ok()) return status;
  if (const Status status = cpu::check_piece(call, chunk, rows.chunks, chunks, states, classes); !status.ok()) return status;
  if (rows.chunks == 0) return Status{};
  rows.first_chunk = chunk, rows.all_chunks = chunks;
  rows.states = static_cast<char*>(states), rows.classes = classes;
  return job.run(SampleTask::pieces, target, 0, nullptr);
}

Status finish_pieces(const SampleCall& call, std::int64_t chunks, const void* states, const std::int16_t* classes,
                     Target& target) noexcept {
  Job job;
  if (Status status = job.make(call, SampleTask::finish, nullptr, nullptr); !status.ok()) return status;
  SampleRows& rows = job.rows;
  if (rows.views.rows == 0) return Status{};
  if (const Status status = cpu::check_plain(call, "finish_pieces"); !status.ok()) return status;
  if (const Status status = cpu::check_finish(call, rows.chunks, chunks, states, classes); !status.ok()) return status;
  if (call.num_samples == 0) return Status{};
  rows.states = static_cast<char*>(const_cast<void*>(states)), rows.classes = const_cast<std::int16_t*>(classes);
  return job.run(SampleTask::finish, target, 0, nullptr);
}

Status gumbel_noise(PerRow<std::uint64_t> seed, PerRow<std::int64_t> stream, std::int64_t rows, std::int64_t n, double* out,
                    Target& target) noexcept {
  if (const Status status = cpu::check_noise(seed, rows, n, out); !status.ok()) return status;
  if (rows == 0 || n == 0) return Status{};
  return on_device(target, 0, [&](void*, cudaStream_t on) {
    const std::int64_t blocks = (rows * n + 255) / 256;
    arch::Launch how;
    how.grid = dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)), how.block = dim3(256), how.stream = on;
    return arch::launch(SUMEXP_NS::gumbel_rows<double>, how, seed, stream, rows, n, out);
  });
}

}  // namespace sumexp::cuda
