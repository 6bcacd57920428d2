// The tree over a streamed row's chunks, and what is left of the row: kernels by Finish, which know the compute type and
// not what is stored.
#pragma once

#include "run.hpp"
#include "tile_io.cuh"
#include "workspace.cuh"

namespace sumexp::SUMEXP_NS {

// The tree over `count` <= kFan states.
template <class State>
SUMEXP_DEVICE State merge_few(const State* in, int count) {
  State s[kFan];
#pragma unroll
  for (int i = 0; i < kFan; ++i) s[i] = in[i < count ? i : 0];
#pragma unroll
  for (int step = 1; step < kFan; step *= 2)
#pragma unroll
    for (int i = 0; i < kFan; i += 2 * step)
      if (i + step < count) s[i] = merge(s[i], s[i + step]);
  return s[0];
}

// The numbers of a row, whatever they are stored as: an input with one value a row, and results.
template <class T>
class RowNumbers {
 public:
  SUMEXP_DEVICE RowNumbers(const Job& job, std::int64_t row) : job_(job) { row_offsets(job, row, offset_); }
  template <int k>
  SUMEXP_DEVICE T row_input() const {
    if constexpr (k >= 0) {
      return job_.n == 0 ? T(0) : stored(job_.data[k] + offset_[k]);
    }
    return T(0);
  }
  template <int k>
  SUMEXP_DEVICE bool has_index() const {
    return is_index(job_, read_index(job_.data[k] + offset_[k]));
  }
  template <int k>
  SUMEXP_DEVICE T element_at_index() const {
    const std::int64_t i = read_index(job_.data[k] + offset_[k]);
    return is_index(job_, i) ? stored(job_.data[0] + offset_[0] + along_row(job_, 0, i)) : Limits<T>::nan();
  }
  SUMEXP_DEVICE void put(int k, T value) const {
    char* const at = job_.data[k] + offset_[k];
    if constexpr (sizeof(T) == 4) {
      if (job_.stored == cuda::Stored::f16) return put_as<f16>(at, value);
      if (job_.stored == cuda::Stored::bf16) return put_as<bf16>(at, value);
    }
    put_as<T>(at, value);
  }

 private:
  SUMEXP_DEVICE T stored(const char* at) const {
    if constexpr (sizeof(T) == 4) {
      if (job_.stored == cuda::Stored::f16) return widen(*reinterpret_cast<const f16*>(at));
      if (job_.stored == cuda::Stored::bf16) return widen(*reinterpret_cast<const bf16*>(at));
    }
    return *reinterpret_cast<const T*>(at);
  }
  template <class S>
  SUMEXP_DEVICE static void put_as(char* at, T value) {
    *reinterpret_cast<S*>(at) = Narrow<S>::from(value);
  }
  const Job& job_;
  std::int64_t offset_[cuda::kOperands];
};

// A block per row: the tree over its chunks' states, eight children at a time.
template <class T, class Finish>
__global__ void __launch_bounds__(kMergeThreads, 1)
    merge_rows(SUMEXP_PARAMETER Job job, int pass, const typename Finish::State* states, typename Finish::State* scratch,
               typename Finish::Row* rows) {
  using State = typename Finish::State;
  SUMEXP_SHARED(State, board, 2 * kBoard);
  const std::int64_t r = blockIdx.x;
  const State* in = states + r * job.chunks;
  State* beyond = scratch + r * scratch_states(job.chunks);
  std::int64_t count = job.chunks;
  for (int level = 0; count > 1; ++level) {
    const std::int64_t parents = (count + kFan - 1) / kFan;
    State* out = parents > kBoard ? beyond : board + level % 2 * kBoard;
    for (std::int64_t i = threadIdx.x; i < parents; i += kMergeThreads) {
      const std::int64_t children = count - i * kFan;
      out[i] = merge_few(in + i * kFan, children < kFan ? int(children) : kFan);
    }
    arch::block_sync();
    if (parents > kBoard) beyond += parents;
    in = out;
    count = parents;
  }
  if (threadIdx.x != 0) return;
  typename Finish::Row row = {};
  if (pass > 0) row = rows[r];
  const RowNumbers<T> numbers(job, r);
  const TemperatureFactor<T> factor = {static_cast<T>(job.factor), static_cast<T>(job.late)};
  Finish::template finish<FullTerms>(numbers, *in, row, pass, factor);
  if constexpr (Finish::kRowOutput) {
    Finish::emit(numbers, row, job.data[cuda::kExtra] != nullptr);
  } else {
    rows[r] = row;
  }
}

template <class Finish>
cudaError_t Merge<Finish>::run(const Job& job, int pass, void* workspace, cudaStream_t stream) {
  const Workspace<Finish> w(job, workspace);
  const typename Finish::State* states = w.states;
  arch::Launch how;
  how.stream = stream;
  how.grid = dim3(unsigned(job.rows));
  how.block = dim3(kMergeThreads);
  return arch::launch(merge_rows<typename Finish::T, Finish>, how, job, pass, states, w.scratch, w.rows);
}

}  // namespace sumexp::SUMEXP_NS
