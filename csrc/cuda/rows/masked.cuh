// softmax, log_softmax and logsumexp of masked rows, and their VJPs (masked_vjp.cuh). A row whose chunks find a warp each is
// read once; others are read again for their results.
#pragma once

#include "../../cpu/ragged/masked_call.hpp"
#include "masked_logits.cuh"
#include "masked_vjp.cuh"

namespace sumexp::SUMEXP_NS {

// -- forward --------------------------------------------------------------------------------------------------

template <class S, class Op, int kRows>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1)
    masked_rows(SUMEXP_PARAMETER MaskedJob job, SUMEXP_PARAMETER MaskedOptions<Compute<S>> options) {
  using T = Compute<S>;
  using Terms = TermsOf<S>;
  using State = ExpState<T>;
  constexpr int kChunk = Geometry<T>::kChunk, kValues = Tile<S>::kValues;
  char* const shared = arch::dynamic_shared<char>();
  each_row(job.views.rows, [&](std::int64_t row) {
    MaskedRow<S> in(job, options, row);
    T v[kRows][kValues], maximum = -Limits<T>::infinity;
    std::uint64_t kept = 0;
    const State state = state_of_row<S, Op::kApart>(in, shared, Op::kRowOutput, [&](std::int64_t c) {
      kept = in.logits(c, v);
      const State mine = exp_chunk<S, Op::kApart, Op::kProbability>(v);
      maximum = mine.m;
      return mine;
    });
    const MaskedKind kind = masked_kind(state);
    if constexpr (Op::kRowOutput) {
      if (threadIdx.x != 0) return;
      const T result =
          kind == MaskedKind::number ? Op::emit(Op::finish(row_sum(state), T(0))) : Op::special(state.m, is_nan(state.R));
      *reinterpret_cast<S*>(in.at[kMaskedResult]) = Narrow<S>::from(result);
    } else {
      const T absent = T(job.absent), fill = kind == MaskedKind::nothing ? T(job.nothing) : absent;
      const std::int64_t n = job.views.n, stride = job.views.stride[kMaskedResult];
      const auto own = Op::finish(row_sum(state), T(0));
      for (std::int64_t c = arch::warp(); c * kChunk < n; c += warps()) {
        if (kind == MaskedKind::nothing || c >= in.chunks) {
          each_kept(v, 0, fill, [](T x) { return x; });
        } else {
          if (in.chunks > warps()) {  // another chunk is in v
            kept = in.logits(c, v);
            if constexpr (Op::kProbability) {
              maximum = chunk_max<S>(v);
              exp_terms<S>(v, maximum);
            }
          }
          if (kind == MaskedKind::nan) {
            each_kept(v, kept, absent, [](T) { return Limits<T>::nan(); });
          } else if constexpr (Op::kProbability) {
            const ChunkScale<T> chunk = chunk_scale<Terms>(normalizer<Terms>(state), maximum);
            TermScale<T> scale = chunk.near;
            if (chunk.far) {  // rare
              each_kept(v, ~std::uint64_t(0), absent, [&](T term) { return far_term<Terms>(term, chunk); });
              scale = unit_scale<T>();
            }
            each_kept(v, kept, absent, [&](T term) { return Op::map(probability<Terms>(term, scale), own); });
          } else {
            each_kept(v, kept, absent, [&](T z) { return Op::map(z, own); });
          }
        }
        store_chunk<S, kRows>(in.at[kMaskedResult] + c * kChunk * stride, stride, chunk_size<S>(n, c), v);
      }
    }
  });
}

// -- host ---------------------------------------------------------------------------------------------------

inline MaskedGroups groups_of(const MaskedJob& job, int view) {
  MaskedGroups groups;
  std::int64_t step = 1;
  for (int d = job.views.batch_dims - 1; d >= 0; --d) {
    groups.add(job.views.size[d], step, job.views.step[d][view] == 0);
    step *= job.views.size[d];
  }
  return groups;
}
inline unsigned grid_of(std::int64_t blocks) { return unsigned(blocks < 0x7fffffff ? blocks : 0x7fffffff); }

template <class S, class Op>
cudaError_t run_masked(const MaskedJob& job, cudaStream_t stream) {
  using T = Compute<S>;
  const auto options = MaskedOptions<T>::of(job.scale);
  const auto how = launch_of_rows<MaskedState<T>>(job.views.rows, chunk_count<T>(job.views.n), stream);
  if (job.views.n <= Geometry<T>::kLanes) return arch::launch(masked_rows<S, Op, 1>, how, job, options);
  return arch::launch(masked_rows<S, Op, Geometry<T>::kLaneRows>, how, job, options);
}

template <class S>
cudaError_t sum_sinks(const MaskedJob& job, const double* sinks, const MaskedGroups& groups, cudaStream_t stream) {
  arch::Launch sum;
  sum.grid = dim3(grid_of((groups.groups + kRowWarps - 1) / kRowWarps));
  sum.block = dim3(kRowWarps * arch::lane_count);
  sum.stream = stream;
  return arch::launch(masked_sink<S>, sum, job, sinks, groups);
}

template <class S, class Back>
cudaError_t run_masked_vjp(const MaskedJob& job, void* workspace, cudaStream_t stream) {
  using T = Compute<S>;
  const auto options = MaskedOptions<T>::of(job.scale);
  MaskedScratch<S, Back> scratch(job, workspace);
  auto how = launch_of_rows<MaskedState<T>>(job.views.rows, chunk_count<T>(job.views.n), stream);
  if (sizeof(RowBoard<BackState<T, Back>>) > how.dynamic_shared) how.dynamic_shared = sizeof(RowBoard<BackState<T, Back>>);
  const auto rows = [&](const MaskedJob& job, const MaskedScratch<S, Back>& scratch) {
    if (job.views.n <= Geometry<T>::kLanes) return arch::launch(masked_rows_vjp<S, Back, 1>, how, job, options, scratch);
    return arch::launch(masked_rows_vjp<S, Back, Geometry<T>::kLaneRows>, how, job, options, scratch);
  };
  const auto& data = job.views.data;
  // What the bias's gradient reads is not written over before.
  const bool apart = scratch.records && (data[kMaskedResult] == data[kMaskedX] || data[kMaskedResult] == data[kMaskedG]);
  MaskedJob first = job;
  if (apart) first.views.data[kMaskedResult] = nullptr;
  cudaError_t error = rows(first, scratch);
  if (error == cudaSuccess && scratch.records) {
    const MaskedGroups groups = groups_of(job, kMaskedDBias);
    const bool along = job.views.stride[kMaskedDBias] != 0;
    arch::Launch sum;
    sum.grid = dim3(grid_of(groups.groups * (along ? (job.views.n + kSumStreams - 1) / kSumStreams : 1)));
    sum.block = dim3(kSumBlocks * arch::lane_count);
    sum.stream = stream;
    if (sum.grid.x > 0) error = arch::launch(masked_bias<S, Back>, sum, job, options, scratch, groups, along);
  }
  if (error == cudaSuccess && scratch.sinks) error = sum_sinks<S>(job, scratch.sinks, groups_of(job, kMaskedDSink), stream);
  if (error != cudaSuccess || !apart) return error;
  scratch.records = nullptr, scratch.chunks = nullptr, scratch.sinks = nullptr;
  return rows(job, scratch);
}

template <class S>
std::size_t MaskedRows<S>::workspace(const MaskedCall& call, const MaskedJob& job) {
  if (!cpu::is_vjp(call)) return 0;
  if (call.op == Op::softmax) return MaskedScratch<S, MaskedSoftmaxBack>(job, nullptr).bytes;
  if (call.op == Op::log_softmax) return MaskedScratch<S, MaskedLogSoftmaxBack>(job, nullptr).bytes;
  return MaskedScratch<S, MaskedLogSumExpBack>(job, nullptr).bytes;
}

template <class S>
cudaError_t MaskedRows<S>::clear_sinks(const MaskedJob& job, cudaStream_t stream) {
  if (job.views.rows == 0) return cudaSuccess;
  MaskedGroups groups = groups_of(job, kMaskedDSink);
  groups.members = 0;
  return sum_sinks<S>(job, nullptr, groups, stream);
}

template <class S>
cudaError_t MaskedRows<S>::run(const MaskedCall& call, const MaskedJob& job, void* workspace, cudaStream_t stream) {
  if (cpu::is_vjp(call)) {
    if (call.op == Op::softmax) return run_masked_vjp<S, MaskedSoftmaxBack>(job, workspace, stream);
    if (call.op == Op::log_softmax) return run_masked_vjp<S, MaskedLogSoftmaxBack>(job, workspace, stream);
    return run_masked_vjp<S, MaskedLogSumExpBack>(job, workspace, stream);
  }
  if (call.op == Op::softmax) return run_masked<S, Softmax>(job, stream);
  if (call.op == Op::log_softmax) return run_masked<S, LogSoftmax>(job, stream);
  return run_masked<S, LogSumExp>(job, stream);
}

}  // namespace sumexp::SUMEXP_NS
