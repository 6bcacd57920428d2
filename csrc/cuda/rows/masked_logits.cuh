// The logits of masked rows: a block takes a row, a warp a chunk, as row.cuh has it. What the options make of a chunk, what is
// kept of it, and its probabilities.
#pragma once

#include <type_traits>

#include "../operations.cuh"
#include "masked.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {

// body(r, v[r]) for each lane row. v turns by one a step, so that the loop stays one, whose code is long, and no variable
// indexes an array, which would put it into memory.
template <int kRows, class T, int kValues, class Body>
SUMEXP_DEVICE void each_lane_row(T (&v)[kRows][kValues], Body body) {
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    body(r, v[0]);
    T done[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) done[i] = v[0][i];
#pragma unroll
    for (int k = 0; k + 1 < kRows; ++k)
#pragma unroll
      for (int i = 0; i < kValues; ++i) v[k][i] = v[k + 1][i];
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[kRows - 1][i] = done[i];
  }
}
// v = of(v), and `absent` where element (r, i) is not kept: bit r kValues + i.
template <int kRows, class T, int kValues, class Of>
SUMEXP_DEVICE void each_kept(T (&v)[kRows][kValues], std::uint64_t kept, T absent, Of of) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[r][i] = kept >> (r * kValues + i) & 1 ? of(v[r][i]) : absent;
}

// A word that holds kBytes bytes of a mask.
template <int kBytes>
using MaskWord = std::conditional_t<kBytes == 8, std::uint64_t, std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>>;

// A sum, and whether a logit of the row may overflow.
template <class T>
struct MaskedState {
  ExpState<T> sum;
  bool suspect;

  SUMEXP_DEVICE static MaskedState empty() { return {ExpState<T>::empty(), false}; }
};
template <class T>
SUMEXP_DEVICE MaskedState<T> merge(const MaskedState<T>& a, const MaskedState<T>& b) {
  return {merge(a.sum, b.sum), a.suspect || b.suspect};
}
// The largest logit of those that count, of equal ones the first, and whether one overflows.
struct LargestState {
  LargestLogit top;
  bool overflows;

  SUMEXP_DEVICE static LargestState empty() { return {{-Limits<double>::infinity, 0.0, 0.0}, false}; }
};
SUMEXP_DEVICE LargestState merge(const LargestState& a, const LargestState& b) {
  const bool second = b.top.scaled > a.top.scaled;
  return {{second ? b.top.scaled : a.top.scaled, second ? b.top.x : a.top.x, second ? b.top.bias : a.top.bias},
          a.overflows || b.overflows};
}

template <class S>
struct MaskedRow {
  using T = Compute<S>;
  using L = Tile<S>;
  static constexpr int kChunk = Geometry<T>::kChunk, kLanes = Geometry<T>::kLanes, kValues = L::kValues;

  const MaskedJob& job;
  const MaskedOptions<T>& options;
  char* at[kMaskedViews];
  std::int64_t count, chunks;
  bool apart = false, suspect = false;  // suspect: a thread's own, of what it has seen
  LargestLogit top = {0.0, 0.0, 0.0};   // that logits are less, of a row apart

  SUMEXP_DEVICE MaskedRow(const MaskedJob& job, const MaskedOptions<T>& options, std::int64_t row)
      : job(job), options(options) {
    place_row(job.views, row, at);
    const char* const length = at[kMaskedLengths];
    count = job.limits.count(row, length ? *reinterpret_cast<const std::int64_t*>(length) : job.limits.n);
    chunks = chunk_count<T>(count);
  }
  SUMEXP_DEVICE int size(std::int64_t c) const { return chunk_size<S>(count, c); }
  SUMEXP_DEVICE T number(int view, std::int64_t j = 0) const {
    return widen(*reinterpret_cast<const S*>(at[view] + j * job.views.stride[view]));
  }
  SUMEXP_DEVICE T sink() const {
    const T x = widen(*reinterpret_cast<const S*>(at[kMaskedSink]));
    return apart ? sink_apart<T>(job.scale, top, x) : x;
  }

  // Lane row r of chunk c, of an input.
  SUMEXP_DEVICE void load_row(int view, std::int64_t c, int r, T (&to)[kValues]) const {
    const std::int64_t first = c * kChunk + r * kLanes, stride = job.views.stride[view];
    T v[1][kValues];
    load_chunk<S, 1>(at[view] + first * stride, stride, size(c) - r * kLanes, v, T(0));
#pragma unroll
    for (int i = 0; i < kValues; ++i) to[i] = v[0][i];
  }
  // Which of its elements count: bit i.
  SUMEXP_DEVICE unsigned kept_of_row(std::int64_t c, int r) const {
    using Word = MaskWord<L::kPack>;
    const int left = size(c) - r * kLanes;
    const std::int64_t stride = job.views.stride[kMaskedWhere];
    const char* const mask = at[kMaskedWhere] ? at[kMaskedWhere] + (c * kChunk + r * kLanes) * stride : nullptr;
    unsigned kept = 0;
#pragma unroll
    for (int s = 0; s < L::kSpans; ++s) {
      const int first = L::at(s * L::kPack);
      const char* const p = mask ? mask + first * stride : nullptr;
      if (mask && stride == 1 && first + L::kPack <= left && reinterpret_cast<std::uintptr_t>(p) % sizeof(Word) == 0) {
        const Word word = *reinterpret_cast<const Word*>(p);
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) kept |= unsigned((word >> 8 * e & 0xff) != 0) << (s * L::kPack + e);
      } else {
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) kept |= unsigned(first + e < left && (!mask || p[e * stride])) << (s * L::kPack + e);
      }
    }
    return kept;
  }
  // The logits of chunk c, -inf where they are left out. Returns what is kept.
  template <int kRows>
  SUMEXP_DEVICE std::uint64_t logits(std::int64_t c, T (&v)[kRows][kValues]) {
    const std::int64_t stride = job.views.stride[kMaskedX];
    const int count = size(c);
    load_chunk<S, kRows>(at[kMaskedX] + c * kChunk * stride, stride, count, v, -Limits<T>::infinity);
    std::uint64_t kept = 0;
    if (options.none() && !at[kMaskedBias] && !at[kMaskedWhere]) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < kValues; ++i) kept |= std::uint64_t(element_of<S>(r, i) < count) << (r * kValues + i);
      return kept;
    }
    each_lane_row(v, [&](int r, T(&z)[kValues]) {
      if (r * kLanes >= count) return;
      unsigned keep = kept_of_row(c, r);
      T bias[kValues] = {};
      if (at[kMaskedBias]) {
        load_row(kMaskedBias, c, r, bias);
#pragma unroll
        for (int i = 0; i < kValues; ++i) keep &= ~(unsigned(bias[i] == -Limits<T>::infinity) << i);
      }
      if (apart) {
        each_apart(z, bias);
      } else {
        if (!options.none()) {
#pragma unroll
          for (int i = 0; i < kValues; ++i) {
            const T quotient = options.divided(z[i]);
            suspect = suspect || (is_finite(z[i]) && !is_finite(quotient));
            z[i] = options.capped_of(quotient);
          }
        }
        if (at[kMaskedBias]) {
#pragma unroll
          for (int i = 0; i < kValues; ++i) {
            const T sum = z[i] + bias[i];
            suspect = suspect || (is_finite(z[i]) && is_finite(bias[i]) && !is_finite(sum));
            z[i] = sum;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kValues; ++i) z[i] = keep >> i & 1 ? z[i] : -Limits<T>::infinity;
      kept |= std::uint64_t(keep) << (r * kValues);
    });
    return kept;
  }
  // Rare: a loop, in which the elements turn.
  SUMEXP_DEVICE void each_apart(T (&z)[kValues], T (&bias)[kValues]) const {
#pragma unroll 1
    for (int k = 0; k < kValues; ++k) {
      const T done = logit_apart<T>(job.scale, top, z[0], bias[0]), used = bias[0];
#pragma unroll
      for (int i = 0; i + 1 < kValues; ++i) z[i] = z[i + 1], bias[i] = bias[i + 1];
      z[kValues - 1] = done, bias[kValues - 1] = used;
    }
  }
  // Of a chunk, by a warp.
  SUMEXP_DEVICE LargestState largest(std::int64_t c) const {
    struct Found {
      LargestLogit top;
      std::int64_t place;
    } mine = {{-Limits<double>::infinity, 0.0, 0.0}, kChunk};
    bool overflows = false;
#pragma unroll 1
    for (int i = arch::lane(); i < size(c); i += arch::lane_count) {
      const std::int64_t j = c * kChunk + i;
      if (at[kMaskedWhere] && !at[kMaskedWhere][j * job.views.stride[kMaskedWhere]]) continue;
      const T x = number(kMaskedX, j), bias = at[kMaskedBias] ? number(kMaskedBias, j) : T(0);
      const double scaled = scaled_logit<T>(job.scale, x, bias);
      if (scaled > mine.top.scaled) mine = {{scaled, static_cast<double>(x), static_cast<double>(bias)}, i};
      overflows = overflows || logit_overflows<T>(job.scale, x, bias, scaled);
    }
#pragma unroll 1
    for (int bit = 1; bit < arch::lane_count; bit *= 2) {
      const Found other = arch::shfl_xor(mine, bit);
      const bool more = other.top.scaled > mine.top.scaled, first = other.place < mine.place;
      if (more || (other.top.scaled == mine.top.scaled && first)) mine = other;
    }
    return {mine.top, arch::any(overflows)};
  }
  // What a suspected row becomes; by the block. Whether its logits are to be made again.
  SUMEXP_DEVICE bool set_apart(RowBoard<LargestState>& board, bool one_value) {
    const LargestState found = reduce_row(chunks, board, [&](std::int64_t c) { return largest(c); });
    apart = found.overflows;
    if (!one_value) top = found.top;
    if (at[kMaskedSink] && !one_value)
      top = larger_with_sink<T>(job.scale, top, widen(*reinterpret_cast<const S*>(at[kMaskedSink])));
    return apart;
  }
};

// The sink as a row of one element, by a warp.
template <class S, bool kApart>
SUMEXP_DEVICE ExpState<Compute<S>> state_of_one(Compute<S> x) {
  using T = Compute<S>;
  T v[1][Tile<S>::kValues];
#pragma unroll
  for (int i = 0; i < Tile<S>::kValues; ++i) v[0][i] = i == 0 && arch::lane() == 0 ? x : -Limits<T>::infinity;
  return exp_chunk<S, kApart, false>(v);
}

// The state of a row and its sink. reduce(c): the sum of chunk c.
template <class S, bool kApart, class Reduce>
SUMEXP_DEVICE ExpState<Compute<S>> state_of_row(MaskedRow<S>& in, char* shared, bool one_value, Reduce reduce) {
  using State = MaskedState<Compute<S>>;
  State state;
#pragma unroll 1
  for (;;) {
    state = reduce_row(in.chunks, *reinterpret_cast<RowBoard<State>*>(shared), [&](std::int64_t c) {
      const ExpState<Compute<S>> sum = reduce(c);
      return State{sum, arch::any(in.suspect)};
    });
    if (!state.suspect || in.apart || !in.set_apart(*reinterpret_cast<RowBoard<LargestState>*>(shared), one_value)) break;
  }
  if (in.at[kMaskedSink]) state.sum = merge(state.sum, state_of_one<S, kApart>(in.sink()));
  return state.sum;
}

// Probabilities of the elements of a chunk with this maximum.
template <class Terms, class T>
struct ChunkProbabilities {
  ChunkScale<T> scale;
  T anchor;
  Reduction<T> reduce;

  SUMEXP_DEVICE static ChunkProbabilities of(const Normalizer<T>& row, T maximum) {
    const Base<T> base = base_of(is_finite(maximum) ? maximum : T(0));  // of -inf alone: its scale is 0
    return {chunk_scale<Terms>(row, maximum), base.anchor, base.reduce};
  }
  SUMEXP_DEVICE T operator()(T z) const {
    const T term = Terms::term(Terms::parts(z - anchor, reduce));
    return scale.far ? probability<Terms>(far_term<Terms>(term, scale), unit_scale<T>()) : probability<Terms>(term, scale.near);
  }
};

}  // namespace sumexp::SUMEXP_NS
