// Draws from rows of any length (ops/sampling.hpp): a block takes a row, or some of the draws from it.
//
//   states   a warp reduces a chunk to its state; the tree over chunks grows level by level in the workspace
//   draws    a thread walks a draw over chunks. Then, chunk by chunk of those that were come to, the block makes the tree
//            of the chunk's terms in shared memory, in which the threads walk on
//
// A row with NaN, +inf or nothing to draw from, or with a temperature that is none, gives -1, and NaN, 0 kept and a cut of
// (NaN, -1) as information; without replacement so do the draws for which no class is left.
#pragma once

#include "sampling_block.cuh"

namespace sumexp::SUMEXP_NS {

// Part `part` of `parts` of so many.
struct Share {
  std::int64_t first, end;
};
SUMEXP_FN Share share_of(std::int64_t all, std::int64_t part, std::int64_t parts) {
  const std::int64_t step = (all + parts - 1) / parts, first = part * step;
  return {first < all ? first : all, first + step < all ? first + step : all};
}

template <class Body>
SUMEXP_DEVICE void each_part(const cuda::SampleRows& rows, Body body) {
#pragma unroll 1
  for (std::int64_t i = blockIdx.x; i < rows.views.rows * rows.parts; i += gridDim.x) {
    body(i / rows.parts, i % rows.parts);
    arch::block_sync();
  }
}

struct SampleShared {
  SampleBoard board;
  alignas(16) double tree[1];  // as long as the chunks here need
};

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) draw_rows(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t part) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const Share draws = share_of(rows.draws, part, rows.parts);
    const bool finite = block.prepare(rows.kept != nullptr);
    const LargestElement first = block.largest;
    std::int64_t made = -1;
    if (finite) {
      made = rows.draws;
      if (rows.replacement) block.draw(draws.first, draws.end);
      else made = block.draw_apart();
    }
    block.x.taken = nullptr;
    arch::block_sync();
    block.tell(draws.first, draws.end, made, first, part == 0);
  });
}

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) count_rows(SUMEXP_PARAMETER cuda::SampleRows rows, int tree_bytes) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  auto* const inside = reinterpret_cast<std::int64_t*>(reinterpret_cast<char*>(shared.tree) + tree_bytes);
  each_part(rows, [&](std::int64_t row, std::int64_t part) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const Share chunks = share_of(rows.chunks, part, rows.parts);
    const bool finite = block.prepare(false);
    if (finite && !block.greedy) block.count_chunks();
#pragma unroll 1
    for (std::int64_t c = chunks.first; c < chunks.end; ++c) {
      if (finite) block.count_elements(c, inside);
      else block.put_counts(c, nullptr, -1);
    }
  });
}

// For each chunk here its state, and the class in it that each draw takes if it comes to it. A part is a chunk.
template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 2) draw_in_pieces(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t c) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const std::int64_t at = row * rows.all_chunks + rows.first_chunk + c;
    if (arch::warp() == 0) {
      ChunkFacts facts = {false, 0};
      const ExpState<T> state = reduce_sampled(block.x, c, facts);
      if (arch::lane() == 0) reinterpret_cast<ExpState<T>*>(rows.states)[at] = state;
    }
    const int leaves = block.make_terms(c);
    const double all = block.tree[1];
    const bool any = all > 0.0 && all < Limits<double>::infinity;
    for (std::int64_t d = threadIdx.x; d < rows.draws; d += blockDim.x)
      rows.classes[at * rows.draws + d] = static_cast<std::int16_t>(any ? block.walk_of(d).inside(block.tree, leaves) : 0);
  });
}

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) finish_pieces(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const auto* const given = reinterpret_cast<const ExpState<T>*>(rows.states) + row * rows.chunks;
    for (std::int64_t c = threadIdx.x; c < rows.chunks; c += blockDim.x) block.states[c] = given[c];
    arch::block_sync();
    bool finite = false;
    if (rows.chunks > 0 && !block.greedy) finite = block.grow(block.states, block.nodes).kind == RowKind::finite;
    for (std::int64_t d = threadIdx.x; d < rows.draws; d += blockDim.x) {
      std::int64_t drawn = -1;
      if (finite) {
        Walk walk = block.walk_of(d);
        const std::int64_t c = block.chunk_of(walk);
        drawn = c * Geometry<T>::kChunk + rows.classes[(row * rows.chunks + c) * rows.draws + d];
      }
      rows.out[row * rows.draws + d] = drawn;
    }
  });
}

template <class T>
cudaError_t SamplingOf<T>::run(SampleTask task, const cuda::SampleRows& rows, std::int64_t blocks, cudaStream_t stream) {
  if constexpr (sizeof(T) >= 4) {
    constexpr int kChunk = Geometry<T>::kChunk;
    const int longest = rows.views.n < kChunk ? int(rows.views.n) : kChunk;
    unsigned width = 1;
    while (width < kSampleWarps && (rows.chunks > 1 || int(width) * 256 < longest)) width *= 2;
    arch::Launch how;
    how.grid = dim3(unsigned(blocks));
    how.block = dim3(width * arch::lane_count);
    const int tree_bytes = 16 * leaves_of(longest);
    how.dynamic_shared = sizeof(SampleShared) + std::size_t(tree_bytes);
    how.stream = stream;
    switch (task) {
      case SampleTask::draws: return arch::launch(draw_rows<T>, how, rows);
      case SampleTask::pieces: return arch::launch(draw_in_pieces<T>, how, rows);
      case SampleTask::finish: return arch::launch(finish_pieces<T>, how, rows);
      default: how.dynamic_shared += std::size_t(tree_bytes); return arch::launch(count_rows<T>, how, rows, tree_bytes);
    }
  } else {
    return cudaErrorInvalidValue;  // served by those of float
  }
}

}  // namespace sumexp::SUMEXP_NS
