// A block takes a row of any length, a warp a chunk: what the families beside ops/table.hpp are made of. A kernel of theirs:
//
//   auto& board = *arch::dynamic_shared<RowBoard<State>>();
//   each_row(views.rows, [&](std::int64_t row) {
//     char* at[kViews];
//     place_row(views, row, at);
//     const State state = reduce_row(chunks, board, [&](std::int64_t chunk) { load_chunk, exp_chunk, ...; return state; });
//     ... what the row gives, a number by one thread; elements chunk by chunk: for (c = warp(); c < chunks; c += warps()) ...
//   });
//
// A warp holds a chunk as T v[kRows][Tile<S>::kValues]: element (r, i) of a thread is number element_of<S>(r, i) of the chunk.
// kRows: 8, or 1 where rows are short.
#pragma once

#include "../formats.cuh"
#include "row_views.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr int kRowWarps = 8;  // of a block at most

SUMEXP_DEVICE int warps() { return int(blockDim.x) / arch::lane_count; }

template <class Body>
SUMEXP_DEVICE void each_row(std::int64_t rows, Body body) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) body(row);
}

template <int kViews>
SUMEXP_DEVICE void place_row(const cuda::RowViews<kViews>& views, std::int64_t row, char* (&at)[kViews]) {
#pragma unroll
  for (int k = 0; k < kViews; ++k) at[k] = views.data[k];
#pragma unroll 1
  for (int d = views.batch_dims - 1; d >= 0; --d) {
    const std::int64_t outer = d > 0 ? row / views.size[d] : 0, i = row - outer * views.size[d];
#pragma unroll
    for (int k = 0; k < kViews; ++k)
      if (at[k]) at[k] += i * views.step[d][k];
    row = outer;
  }
}

// -- one chunk between memory and a warp -----------------------------------------------------------------

template <class S>
SUMEXP_DEVICE int element_of(int r, int i) {
  return r * Tile<S>::G::kLanes + Tile<S>::at(i);
}
// Elements of chunk `chunk` of a row of n.
template <class S>
SUMEXP_DEVICE int chunk_size(std::int64_t n, std::int64_t chunk) {
  constexpr int kChunk = Geometry<Compute<S>>::kChunk;
  const std::int64_t left = n - chunk * kChunk;
  return left < kChunk ? int(left) : kChunk;
}
template <class S>
SUMEXP_DEVICE bool in_packs(const char* p, std::int64_t stride) {
  return stride == sizeof(S) && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

// `count` elements from p on, `stride` bytes apart; `fill` behind them.
template <class S, int kRows>
SUMEXP_DEVICE void load_chunk(const char* p, std::int64_t stride, int count, Compute<S> (&v)[kRows][Tile<S>::kValues],
                              Compute<S> fill) {
  using L = Tile<S>;
  using N = Narrow<S>;
  using Word = typename N::Word;
  const bool packs = in_packs<S>(p, stride);
#pragma unroll
  for (int q = 0; q < kRows * L::kSpans; ++q) {
    const int at = q * L::kSpan + arch::lane() * L::kPack;
    auto& values = v[q / L::kSpans];
    const int first = q % L::kSpans * L::kPack;
    if (packs && at + L::kPack <= count) {
      const auto pack = arch::load16(reinterpret_cast<const Word*>(p) + at / N::kPerWord);
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) values[first + e] = widen(N::element(pack.v[e / N::kPerWord], e % N::kPerWord));
    } else {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e)
        values[first + e] = at + e < count ? widen(*reinterpret_cast<const S*>(p + (at + e) * stride)) : fill;
    }
  }
}

template <class S, int kRows>
SUMEXP_DEVICE void store_chunk(char* p, std::int64_t stride, int count, const Compute<S> (&v)[kRows][Tile<S>::kValues]) {
  using L = Tile<S>;
  using N = Narrow<S>;
  using Word = typename N::Word;
  const bool packs = in_packs<S>(p, stride);
#pragma unroll
  for (int q = 0; q < kRows * L::kSpans; ++q) {
    const int at = q * L::kSpan + arch::lane() * L::kPack;
    const auto& values = v[q / L::kSpans];
    const int first = q % L::kSpans * L::kPack;
    if (packs && at + L::kPack <= count) {
      arch::Pack<Word> pack;
#pragma unroll
      for (int w = 0; w < L::kPack / N::kPerWord; ++w)
        pack.v[w] = N::template word<false>(values[first + w * N::kPerWord], values[first + w * N::kPerWord + N::kPerWord - 1]);
      arch::store16(reinterpret_cast<Word*>(p) + at / N::kPerWord, pack);
    } else {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e)
        if (at + e < count) *reinterpret_cast<S*>(p + (at + e) * stride) = Narrow<S>::from(values[first + e]);
    }
  }
}

// -- the tree over a row's chunks ---------------------------------------------------------------------------

// Shared memory of a block while it reduces a row: of dynamic_shared, which launch_of_rows asks for. It is thread 0 that
// merges, while the other warps go on with their next chunks; the tree's levels are too many for every thread to have them.
template <class State>
struct RowBoard {
  State states[2][kRowWarps], root;
  MergeTree<State> tree;
};

// The state of a row of so many chunks, for every thread of the block. reduce(c): that of chunk c, by a warp. All threads of
// the block meet here, and leave when no warp reads for `reduce` any more.
template <class State, class Reduce>
SUMEXP_DEVICE State reduce_row(std::int64_t chunks, RowBoard<State>& board, Reduce reduce) {
  if (threadIdx.x == 0) board.tree.clear();
  if (chunks == 0) return State::empty();
  const int width = warps();
#pragma unroll 1
  for (std::int64_t first = 0, round = 0; first < chunks; first += width, ++round) {
    State* const states = board.states[round % 2];
    const std::int64_t left = chunks - first;
    if (arch::warp() < left) {
      const State mine = reduce(first + arch::warp());
      if (arch::lane() == 0) states[arch::warp()] = mine;
    }
    arch::block_sync();
    if (threadIdx.x == 0) {
      const int count = left < width ? int(left) : width;
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        if (i + 1 < left) board.tree.push(states[i]);
        else board.root = board.tree.finish(states[i]);
      }
    }
  }
  arch::block_sync();
  const State root = board.root;
  arch::block_sync();  // before the board serves another row
  return root;
}

// -- host ---------------------------------------------------------------------------------------------------

// A block for each of `rows` rows of so many chunks, with its board and `more` bytes of dynamic shared memory behind it.
template <class State>
arch::Launch launch_of_rows(std::int64_t rows, std::int64_t chunks, cudaStream_t stream, std::size_t more = 0) {
  unsigned width = 1;
  while (width < kRowWarps && width < chunks) width *= 2;
  arch::Launch how;
  how.grid = dim3(unsigned(rows < 0x7fffffff ? rows : 0x7fffffff));
  how.block = dim3(width * arch::lane_count);
  how.dynamic_shared = sizeof(RowBoard<State>) + more;
  how.stream = stream;
  return how;
}

}  // namespace sumexp::SUMEXP_NS
