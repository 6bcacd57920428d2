// Segments: a warp a short one, a warp a chunk of longer ones, with the adapters of operations.cuh.
//
// Work is shared out by elements although the host knows only how many there are. A segment of up to a chunk is one warp's. A
// longer one, from element a to b, has the slots 2 floor(a / C) .. 2 floor(a / C) + ceil((b - a) / C) - 1, C the chunk: the
// next long segment begins at b or later, and floor(b / C) - floor(a / C) >= ceil((b - a) / C) - 1 >= ceil((b - a) / C) / 2, so
// that no two share a slot and 2 floor(elements / C) are enough. What a slot has is found without a scan: the last segment that
// begins in chunk floor(slot / 2) of the array or before. So
//
//   short_segments   up to a lane row: the usual case, with few registers
//   chunk_segments   the others: up to a chunk they end here, of longer ones it leaves a state a slot
//   merge_segments   a block a long segment: the tree over its states
//   map_segments     the results of long segments, a warp a slot
//
// Each once a feature; neighbouring warps take neighbouring features. Offsets are cut to what there is, so that whatever they
// are, nothing beside the arrays is read or written.
#pragma once

#include "../kernels.cuh"
#include "../workspace.cuh"
#include "row.cuh"
#include "segments.hpp"

namespace sumexp::SUMEXP_NS {

using cuda::SegmentsJob;

struct Segment {
  std::int64_t first, n, number, feature;
};

SUMEXP_DEVICE std::int64_t offset_at(const SegmentsJob& job, std::int64_t s) {
  const std::int64_t at = job.offsets[s];
  return at < 0 ? 0 : at < job.elements ? at : job.elements;
}
SUMEXP_DEVICE Segment segment_at(const SegmentsJob& job, std::int64_t s, std::int64_t feature) {
  const std::int64_t first = offset_at(job, s), end = offset_at(job, s + 1);
  return {first, end > first ? end - first : 0, s, feature};
}

// The long segment that has a slot, and which of its chunks; false where there is none.
struct Slot {
  Segment segment;
  std::int64_t chunk, first;  // first: the segment's first slot
};
template <int kChunk>
SUMEXP_DEVICE bool find_slot(const SegmentsJob& job, std::int64_t slot, std::int64_t feature, Slot& found) {
  std::int64_t low = 0, high = job.segments - 1;
  while (low < high) {
    const std::int64_t middle = high - (high - low) / 2;
    if (offset_at(job, middle) / kChunk <= slot / 2) low = middle;
    else high = middle - 1;
  }
  found.segment = segment_at(job, low, feature);
  found.first = 2 * (found.segment.first / kChunk);
  found.chunk = slot - found.first;
  return found.segment.n > kChunk && found.chunk >= 0 && found.chunk * kChunk < found.segment.n;
}

// As TileIo: a warp's chunk, from memory to registers by way of shared memory, for a segment begins anywhere.
template <class S, int kRows>
class SegmentIo {
 public:
  using T = Compute<S>;
  using L = Tile<S>;
  using W = Stage<T>;
  static constexpr int kStaged = kRows * L::G::kLanes;

  static constexpr std::size_t stage_bytes(int warps) { return std::size_t(warps) * W::pitch(kStaged, warps) * sizeof(T); }

  SUMEXP_DEVICE SegmentIo(const SegmentsJob& job, const Segment& segment, std::int64_t chunk = 0, T* stage = nullptr)
      : job_(job), segment_(segment), first_(segment.first + chunk * L::G::kChunk), stage_(stage) {
    const std::int64_t left = segment.n - chunk * L::G::kChunk;
    count_ = left < kStaged ? int(left) : kStaged;
    if (stage) stage_ += arch::warp() * W::pitch(kStaged, warps());
  }

  template <int k>
  SUMEXP_DEVICE T row_input() const {
    if constexpr (k >= 0) return widen(*reinterpret_cast<const S*>(at(k, segment_.number)));
    else return T(0);
  }
  SUMEXP_DEVICE void put(int, T value) const { *reinterpret_cast<S*>(at(2, segment_.number)) = Narrow<S>::from(value); }

  SUMEXP_DEVICE void load(int k, T (&v)[kRows][L::kValues], T fill) {
    arch::warp_sync();  // others may still read what was there
    const char* p = at(k, first_) + arch::lane() * job_.stride[k][0];
#pragma unroll 4
    for (int i = arch::lane(); i < kStaged; i += arch::lane_count, p += arch::lane_count * job_.stride[k][0])
      stage_[W::place(i)] = i < count_ ? widen(*reinterpret_cast<const S*>(p)) : fill;
    arch::warp_sync();
    each([&](int r, int i, T& staged) { v[r][i] = staged; });
  }
  template <bool kNumbers = false>
  SUMEXP_DEVICE void store(const T (&v)[kRows][L::kValues]) {
    each([&](int r, int i, T& staged) { staged = v[r][i]; });
    arch::warp_sync();
    char* p = at(2, first_) + arch::lane() * job_.stride[2][0];
#pragma unroll 4
    for (int i = arch::lane(); i < count_; i += arch::lane_count, p += arch::lane_count * job_.stride[2][0])
      *reinterpret_cast<S*>(p) = Narrow<S>::from(stage_[W::place(i)]);
  }
  SUMEXP_DEVICE bool wrote_nan(bool) const { return false; }

 private:
  SUMEXP_DEVICE char* at(int k, std::int64_t i) const {
    return job_.data[k] + i * job_.stride[k][0] + segment_.feature * job_.stride[k][1];
  }
  // The places of the stage that this thread holds in registers.
  template <class Body>
  SUMEXP_DEVICE void each(Body body) const {
    T* const own = stage_ + W::place(arch::lane() * L::kPack);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) body(r, i, own[W::place(r * L::G::kLanes + i / L::kPack * L::kSpan) + i % L::kPack]);
  }

  const SegmentsJob& job_;
  const Segment segment_;
  const std::int64_t first_;
  T* stage_;
  int count_;
};

// -- segments of a chunk at most ----------------------------------------------------------------------------------

template <class S, class Op, int kRows>
SUMEXP_DEVICE void whole_segment(const SegmentsJob& job, const Segment& segment) {
  using T = Compute<S>;
  SegmentIo<S, kRows> io(job, segment, 0, arch::dynamic_shared<T>());
  T v[Op::kHeld][kRows][Tile<S>::kValues];
  typename Op::Row row = {};
  const auto state = Op::template reduce<0>(io, v, row);
  Op::Finish::template finish<TermsOf<S>>(io, state, row, 0, {T(1), T(1)});
  if constexpr (Op::kRowOutput) {
    if (arch::lane() == 0) Op::Finish::emit(io, row, false);
  } else {
    Op::map(io, v, Op::maximum(state), row);
  }
}

// Those of more than `above` elements among the segments that this warp looks at, one after the other: each thread looks at
// one, so that none is looked for twice.
template <class S, class Op, int kRows>
SUMEXP_DEVICE void whole_segments(const SegmentsJob& job, std::int64_t above) {
  const std::int64_t item = (std::int64_t(blockIdx.x) * warps() + arch::warp()) * job.together + arch::lane();
  Segment mine = {};
  if (arch::lane() < job.together && item < job.segments * job.features) {
    mine = segment_at(job, item / job.features, item % job.features);
    if constexpr (Op::kRowOutput) {
      if (above == 0 && mine.n == 0) SegmentIo<S, 1>(job, mine).put(cuda::kOut, static_cast<Compute<S>>(job.empty));
    }
  }
  const unsigned wanted = arch::ballot(mine.n > above && mine.n <= SegmentIo<S, kRows>::kStaged);
#pragma unroll 1
  for (int i = 0; i < job.together; ++i)
    if (wanted >> i & 1) whole_segment<S, Op, kRows>(job, arch::shfl(mine, i));
}

template <class S, class Op, class B = WarpBounds<Op, true>>
__global__ void __launch_bounds__(B::threads, B::blocks) short_segments(SUMEXP_PARAMETER SegmentsJob job) {
  whole_segments<S, Op, 1>(job, 0);
}

// -- and more ------------------------------------------------------------------------------------------------------

// Where the slots' states are, and what is left of each long segment.
template <class S, class Op>
struct SegmentSpace {
  using T = Compute<S>;
  typename Op::State* states;
  T* maxima;  // of chunks: states become those of the tree
  typename Op::Row* rows;
  std::size_t bytes;

  SegmentSpace(const SegmentsJob& job, void* at) {
    const auto chunks = std::size_t(job.elements / Geometry<T>::kChunk) * std::size_t(job.features);
    const std::size_t a = aligned(2 * chunks * sizeof(*states)), b = aligned(2 * chunks * sizeof(T));
    char* const p = static_cast<char*>(at);
    states = reinterpret_cast<typename Op::State*>(p);
    maxima = reinterpret_cast<T*>(p + a);
    rows = reinterpret_cast<typename Op::Row*>(p + a + b);
    bytes = a + b + aligned(chunks * sizeof(*rows));
  }
};

// Blocks from `scans` on have a slot a warp.
template <class S, class Op, class B = WarpBounds<Op, true>>
__global__ void __launch_bounds__(B::threads, B::blocks)
    chunk_segments(SUMEXP_PARAMETER SegmentsJob job, std::int64_t scans, typename Op::State* states, Compute<S>* maxima) {
  using T = Compute<S>;
  constexpr int kRows = Geometry<T>::kLaneRows, kChunk = Geometry<T>::kChunk;
  if (blockIdx.x < scans) return whole_segments<S, Op, kRows>(job, Geometry<T>::kLanes);
  const std::int64_t item = (blockIdx.x - scans) * warps() + arch::warp();
  Slot slot;
  if (item >= 2 * (job.elements / kChunk) * job.features) return;
  if (!find_slot<kChunk>(job, item / job.features, item % job.features, slot)) return;
  SegmentIo<S, kRows> io(job, slot.segment, slot.chunk, arch::dynamic_shared<T>());
  T v[Op::kHeld][kRows][Tile<S>::kValues];
  const auto state = Op::template reduce<0>(io, v, typename Op::Row{});
  if (arch::lane() != 0) return;
  states[item] = state;
  maxima[item] = Op::maximum(state);
}

inline constexpr int kSegmentMergeThreads = 128;

// The tree in place: after the level of `step`, state i has those from i to i + 2 step.
template <class S, class Finish>
__global__ void __launch_bounds__(kSegmentMergeThreads, 1)
    merge_segments(SUMEXP_PARAMETER SegmentsJob job, typename Finish::State* states, typename Finish::Row* rows) {
  using T = Compute<S>;
  constexpr int kChunk = Geometry<T>::kChunk;
  const std::int64_t feature = blockIdx.x % job.features;
  Slot slot;
  if (!find_slot<kChunk>(job, blockIdx.x / job.features * 2, feature, slot) || slot.chunk != 0) return;
  const std::int64_t chunks = chunk_count<T>(slot.segment.n);
  typename Finish::State* const own = states + slot.first * job.features + feature;
#pragma unroll 1
  for (std::int64_t step = 1; step < chunks; step *= 2) {
    for (std::int64_t i = threadIdx.x * 2 * step; i + step < chunks; i += 2 * step * kSegmentMergeThreads)
      own[i * job.features] = merge(own[i * job.features], own[(i + step) * job.features]);
    arch::block_sync();
  }
  if (threadIdx.x != 0) return;
  const SegmentIo<S, 1> io(job, slot.segment);
  typename Finish::Row row = {};
  Finish::template finish<TermsOf<S>>(io, *own, row, 0, {T(1), T(1)});
  if constexpr (Finish::kRowOutput) Finish::emit(io, row, false);
  else rows[slot.first / 2 * job.features + feature] = row;
}

template <class S, class Op, class B = WarpBounds<Op, true>>
__global__ void __launch_bounds__(B::threads, B::blocks)
    map_segments(SUMEXP_PARAMETER SegmentsJob job, const Compute<S>* maxima, const typename Op::Row* rows) {
  using T = Compute<S>;
  constexpr int kRows = Geometry<T>::kLaneRows, kChunk = Geometry<T>::kChunk;
  // from the end: there the cache still has what was read last
  const std::int64_t item = std::int64_t(gridDim.x - 1 - blockIdx.x) * warps() + arch::warp();
  Slot slot;
  if (item >= 2 * (job.elements / kChunk) * job.features) return;
  if (!find_slot<kChunk>(job, item / job.features, item % job.features, slot)) return;
  SegmentIo<S, kRows> io(job, slot.segment, slot.chunk, arch::dynamic_shared<T>());
  T v[Op::kHeld][kRows][Tile<S>::kValues];
  const T maximum = maxima[item];
  Op::remake(io, v, maximum);
  Op::map(io, v, maximum, rows[slot.first / 2 * job.features + slot.segment.feature]);
}

// -- host ----------------------------------------------------------------------------------------------------------

template <class Op_>
struct OfOp {
  using Op = Op_;
};
template <class S, class Use>
auto with_segment_op(Op op, Use use) {
  switch (op) {
    case Op::softmax: return use(OfOp<LogitsOf<S, Softmax>>{});
    case Op::log_softmax: return use(OfOp<LogitsOf<S, LogSoftmax>>{});
    case Op::logsumexp: return use(OfOp<LogitsOf<S, LogSumExp>>{});
    case Op::softmax_vjp: return use(OfOp<SumsOf<S, SoftmaxVjp>>{});
    case Op::log_softmax_vjp: return use(OfOp<SumsOf<S, LogSoftmaxVjp>>{});
    case Op::log_softmax_jvp: return use(OfOp<SumsOf<S, LogSoftmaxJvp>>{});
    case Op::logsumexp_vjp: return use(OfOp<LogitsOf<S, LogSumExpVjp>>{});
    default: return use(OfOp<WeightedOf<S, LogSumExpJvp>>{});
  }
}

template <class S>
std::size_t SegmentRows<S>::workspace(Op op, const SegmentsJob& job) {
  return with_segment_op<S>(op, [&](auto of) { return SegmentSpace<S, typename decltype(of)::Op>(job, nullptr).bytes; });
}

template <class S>
cudaError_t SegmentRows<S>::run(Op op, const SegmentsJob& job, void* workspace, cudaStream_t stream) {
  using T = Compute<S>;
  constexpr int kRows = Geometry<T>::kLaneRows, kWarps = cuda::kPackedWarps;
  return with_segment_op<S>(op, [&](auto of) {
    using Op = typename decltype(of)::Op;
    const SegmentSpace<S, Op> space(job, workspace);
    const std::int64_t a_block = std::int64_t(kWarps) * job.together;
    const std::int64_t scans = (job.segments * job.features + a_block - 1) / a_block;
    const std::int64_t chunks = job.elements / Geometry<T>::kChunk * job.features, slots = (2 * chunks + kWarps - 1) / kWarps;
    if (scans + slots > 0x7fffffff || chunks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    arch::Launch how;
    how.stream = stream;
    how.block = dim3(kWarps * arch::lane_count);
    how.grid = dim3(unsigned(scans));
    how.dynamic_shared = SegmentIo<S, 1>::stage_bytes(kWarps);
    cudaError_t error = arch::launch(short_segments<S, Op>, how, job);
    if (error != cudaSuccess || job.elements <= Geometry<T>::kLanes) return error;
    how.grid = dim3(unsigned(scans + slots));
    how.dynamic_shared = SegmentIo<S, kRows>::stage_bytes(kWarps);
    error = arch::launch(chunk_segments<S, Op>, how, job, scans, space.states, space.maxima);
    if (error != cudaSuccess || chunks == 0) return error;
    arch::Launch merging;
    merging.stream = stream;
    merging.block = dim3(kSegmentMergeThreads);
    merging.grid = dim3(unsigned(chunks));
    error = arch::launch(merge_segments<S, typename Op::Finish>, merging, job, space.states, space.rows);
    if constexpr (!Op::kRowOutput) {
      how.grid = dim3(unsigned(slots));
      const T* const maxima = space.maxima;
      const typename Op::Row* const rows = space.rows;
      if (error == cudaSuccess) error = arch::launch(map_segments<S, Op>, how, job, maxima, rows);
    }
    return error;
  });
}

}  // namespace sumexp::SUMEXP_NS
