// Steps 2 and 3 of numerics/geometry.hpp across a warp, and the merging of states across warps, blocks
// and clusters. Every thread ends with the same value.
#pragma once

#include "formats.cuh"

namespace sumexp::SUMEXP_NS {

SUMEXP_FN constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

template <class T>
SUMEXP_DEVICE T warp_max(T m) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) m = arch::larger(arch::shfl_xor(m, bit), m);
  return m;
}

template <class T, int n>
struct Values {
  T v[n];
};

// Adds the columns of neighbouring threads: thread t with t ^ bit, t ^ 2 bit, ... Every splitting step
// halves the values: a thread keeps the upper or the lower half by its own bit and gives the other away,
// so that half as many are exchanged. Addition commutes, so both partners compute the same bits.
template <int bit, int kSplits, class T, int n>
SUMEXP_DEVICE auto add_columns(const Values<T, n>& all) {
  if constexpr (bit >= arch::lane_count) {
    return all;
  } else if constexpr (kSplits > 0) {
    const bool upper = (arch::lane() & bit) != 0;
    Values<T, n / 2> kept;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const T low = all.v[i], high = all.v[i + n / 2];  // copies: a choice of elements would be one of addresses
      kept.v[i] = T(upper ? high : low) + arch::shfl_xor(T(upper ? low : high), bit);
    }
    return add_columns<2 * bit, kSplits - 1>(kept);
  } else {
    Values<T, n> sum;
#pragma unroll
    for (int i = 0; i < n; ++i) sum.v[i] = all.v[i] + arch::shfl_xor(all.v[i], bit);
    return add_columns<2 * bit, 0>(sum);
  }
}

// Folds the lane sums of a warp: sums[k], of one number or a pair that is to be added, belongs to lane Tile<S>::at(k).
//
// Thread t holds members (t mod kShare) kPack + e of column t / kShare. Columns are neighbours at thread
// distance kShare, 2 kShare, ..; while they add, the values split over e (its high bit first), then over
// the pair. What is left are the spans (columns 8 apart for f32), which add last, as the tree has it.
template <class S, int kSums>
SUMEXP_DEVICE Wide<Compute<S>> fold_lanes(const Compute<S> (&sums)[Tile<S>::kValues][kSums]) {
  using T = Compute<S>;
  using L = Tile<S>;
  using O = WideOf<T>;
  constexpr int kShare = L::G::kGroup / L::kPack;  // threads that share a column
  constexpr int kBits = log2_of(L::kPack);
  Values<T, L::kPack * kSums * L::kSpans> all;
#pragma unroll
  for (int k = 0; k < L::kValues; ++k) {
    const int at = (k % L::kPack) * kSums * L::kSpans + k / L::kPack;
#pragma unroll
    for (int p = 0; p < kSums; ++p) all.v[at + p * L::kSpans] = sums[k][p];
  }
  const auto left = add_columns<kShare, kBits + log2_of(kSums)>(all);
  T sum = left.v[0];
  if constexpr (L::kSpans == 2) sum = left.v[0] + left.v[1];
  Wide<T> member;
  if constexpr (kSums == 2) {
    constexpr int bit = kShare << kBits;  // threads with it set hold the second
    const T other = arch::shfl_xor(sum, bit);
    const bool second = (arch::lane() & bit) != 0;
    member = O::from(second ? other : sum, second ? sum : other);
  } else {
    member = O::from(sum, T(0));  // +0 makes a number of -0: no sum is -0
  }
#pragma unroll
  for (int bit = kShare / 2; bit > 0; bit /= 2) member = member + arch::shfl_xor(member, bit);
#pragma unroll
  for (int s = 0; s < kBits; ++s) member = member + arch::shfl_xor(member, kShare << s);
  return member;
}

// Folds lane sums held in the wide type by halves of the whole lane row: l += l + kLanes/2, ... 1.
template <class S>
SUMEXP_DEVICE Wide<Compute<S>> fold_wide(const Wide<Compute<S>>* sum) {
  using L = Tile<S>;
  Wide<Compute<S>> v[L::kPack];
#pragma unroll
  for (int e = 0; e < L::kPack; ++e) {
    v[e] = sum[e];
    if constexpr (L::kSpans == 2) v[e] = v[e] + sum[e + L::kPack];
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) v[e] = v[e] + arch::shfl_xor(v[e], bit);
  }
#pragma unroll
  for (int half = L::kPack / 2; half > 0; half /= 2)
#pragma unroll
    for (int e = 0; e < half; ++e) v[e] = v[e] + v[e + half];
  return v[0];
}

// The tree over `count` <= 32 states, state i in lane i.
template <class State>
SUMEXP_DEVICE State merge_warp(State state, int count) {
  for (int step = 1; step < count; step *= 2) {
    const State other = arch::shfl_down(state, step);
    if (arch::lane() % (2 * step) == 0 && arch::lane() + step < count) state = merge(state, other);
  }
  return arch::shfl(state, 0);
}

// The tree over the states of a block's first `count` warps. `board` holds one state a warp and is not
// written again before the next block_sync.
template <class State>
SUMEXP_DEVICE State merge_block(const State& mine, int count, State* board) {
  if (arch::lane() == 0) board[arch::warp()] = mine;
  arch::block_sync();
  return merge_warp(board[arch::lane() < count ? arch::lane() : 0], count);
}

// The tree over the states of a cluster's first `count` blocks; `board` is one state in shared memory.
template <class State>
SUMEXP_DEVICE State merge_cluster(const State& mine, int count, State* board) {
  if (threadIdx.x == 0) *board = mine;
  arch::cluster_sync();
  return merge_warp(*arch::dsmem(board, arch::lane() < count ? arch::lane() : 0), count);
}

}  // namespace sumexp::SUMEXP_NS
