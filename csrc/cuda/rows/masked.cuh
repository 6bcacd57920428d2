// softmax, log_softmax and logsumexp of masked rows, and their VJPs: a block takes a row, a warp a chunk, as row.cuh has it. A
// row whose chunks find a warp each is read once; others are read again for their results.
//
// The gradient of a bias is summed by a kernel of its own, which makes every element's share again from what the first leaves
// of each row and chunk: some numbers, in place of arrays.
#pragma once

#include <type_traits>

#include "../operations.cuh"
#include "../workspace.cuh"
#include "masked.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {

// -- logits ---------------------------------------------------------------------------------------------------

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

// -- VJPs -----------------------------------------------------------------------------------------------------

// Forward: the op whose results y the VJP begins with; Sums: the VJP from g and y, or void, where y is dz already.
template <class Forward_, class Sums_>
struct MaskedBack {
  using Forward = Forward_;
  using Sums = Sums_;
  static constexpr bool kSums = !std::is_void_v<Sums>;

  template <class T>
  struct Row {
    typename Forward::template Row<T> own;
    RowScalars<T> sums;
    bool nan;
  };
  template <class T>
  SUMEXP_DEVICE static T output(T from, const Row<T>& row) {  // from a probability or a logit
    return row.nan ? Limits<T>::nan() : Forward::map(from, row.own);
  }
  template <class T>
  SUMEXP_DEVICE static T gradient(T g, T y, const Row<T>& row) {
    if constexpr (kSums) {
      const T in[] = {g, y};
      return quiet(Sums::map(in, row.sums));
    } else {
      return y;
    }
  }
};
using MaskedSoftmaxBack = MaskedBack<Softmax, SoftmaxVjp>;
using MaskedLogSoftmaxBack = MaskedBack<LogSoftmax, LogSoftmaxVjp>;
using MaskedLogSumExpBack = MaskedBack<LogSumExpVjp, void>;

template <class Sums>
struct SumsOfBack {
  static constexpr int kSums = Sums::kSums;
};
template <>
struct SumsOfBack<void> {
  static constexpr int kSums = 1;
};
template <class T, class Back>
using BackState = SumsState<T, SumsOfBack<typename Back::Sums>::kSums>;

// What the gradient of a bias takes of a row.
template <class S, class Back>
struct MaskedRecord {
  const char *x, *g, *where, *bias;
  std::int64_t count;  // 0 of a row of nothing
  bool apart;
  LargestLogit top;
  typename Back::template Row<Compute<S>> back;
};
// In the workspace; null where it is not wanted.
template <class S, class Back>
struct MaskedScratch {
  using Chunk = ChunkProbabilities<TermsOf<S>, Compute<S>>;
  MaskedRecord<S, Back>* records;
  Chunk* chunks;  // of each row, of ops that begin with probabilities
  double* sinks;  // the share of each row in the sinks' gradient
  std::size_t bytes;

  MaskedScratch(const MaskedJob& job, void* at) {
    const bool bias = job.views.data[kMaskedDBias], sink = job.views.data[kMaskedDSink];
    const std::size_t n = std::size_t(job.views.rows), per_row = std::size_t(chunk_count<Compute<S>>(job.views.n));
    const std::size_t a = bias ? aligned(n * sizeof(*records)) : 0;
    const std::size_t b = bias && Back::Forward::kProbability ? aligned(n * per_row * sizeof(*chunks)) : 0;
    auto* const p = static_cast<char*>(at);
    records = bias ? reinterpret_cast<MaskedRecord<S, Back>*>(p) : nullptr;
    chunks = b ? reinterpret_cast<Chunk*>(p + a) : nullptr;
    sinks = sink ? reinterpret_cast<double*>(p + a + b) : nullptr;
    bytes = a + b + (sink ? aligned(n * sizeof(double)) : 0);
  }
};

template <class S, class Back, int kRows>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1)
    masked_rows_vjp(SUMEXP_PARAMETER MaskedJob job, SUMEXP_PARAMETER MaskedOptions<Compute<S>> options,
                    MaskedScratch<S, Back> scratch) {
  using T = Compute<S>;
  using Terms = TermsOf<S>;
  using Forward = typename Back::Forward;
  using State = ExpState<T>;
  using Sums = BackState<T, Back>;
  using Probabilities = ChunkProbabilities<Terms, T>;
  constexpr int kChunk = Geometry<T>::kChunk, kLanes = Geometry<T>::kLanes, kValues = Tile<S>::kValues;
  char* const shared = arch::dynamic_shared<char>();
  each_row(job.views.rows, [&](std::int64_t row) {
    MaskedRow<S> in(job, options, row);
    const bool again = in.chunks > warps();  // v has another chunk when its results are due
    T v[kRows][kValues], maximum = -Limits<T>::infinity;
    std::uint64_t kept = 0;
    const State state = state_of_row<S, Forward::kApart>(in, shared, false, [&](std::int64_t c) {
      kept = in.logits(c, v);
      const State mine = exp_chunk<S, Forward::kApart, Forward::kProbability>(v);
      maximum = mine.m;
      return mine;
    });
    const MaskedKind kind = masked_kind(state);

    typename Back::template Row<T> back = {};
    Normalizer<T> normal = {};
    back.nan = kind == MaskedKind::nan;
    if (kind == MaskedKind::number) {
      back.own = Forward::finish(row_sum(state), Back::kSums ? T(0) : in.number(kMaskedG));
      if constexpr (Forward::kProbability) normal = normalizer<Terms>(state);
    }
    // From what the reduction has left in v, or from the logits once more, to y.
    const T absent = Back::kSums ? T(job.absent) : T(0);
    const auto outputs = [&](std::int64_t c) {
      if (again) {
        kept = in.logits(c, v);
        if constexpr (Forward::kProbability) {
          maximum = chunk_max<S>(v);
          exp_terms<S>(v, maximum);
        }
      }
      if constexpr (Forward::kProbability) {
        const ChunkScale<T> chunk = chunk_scale<Terms>(normal, maximum);
        TermScale<T> scale = chunk.near;
        if (chunk.far) {  // rare
          each_kept(v, ~std::uint64_t(0), absent, [&](T term) { return far_term<Terms>(term, chunk); });
          scale = unit_scale<T>();
        }
        each_kept(v, kept, absent, [&](T term) { return Back::output(probability<Terms>(term, scale), back); });
      } else {
        each_kept(v, kept, absent, [&](T z) { return Back::output(z, back); });
      }
    };
    const auto gradients = [&](std::int64_t c, int r, T(&g)[kValues]) {
      in.load_row(kMaskedG, c, r, g);
#pragma unroll
      for (int i = 0; i < kValues; ++i) g[i] = kept >> (r * kValues) >> i & 1 ? g[i] : T(0);
    };
    if constexpr (Back::kSums) {
      if (kind != MaskedKind::nothing) {
        const Sums sums = reduce_row(in.chunks, *reinterpret_cast<RowBoard<Sums>*>(shared), [&](std::int64_t c) {
          outputs(c);
          constexpr int kSums = Back::Sums::kSums;
          T acc[kSums][kValues][1] = {};
          each_lane_row(v, [&](int r, T(&y)[kValues]) {
            if (r * kLanes >= in.size(c)) return;
            T g[kValues];
            gradients(c, r, g);
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
              const T both[] = {g[i], y[i]};
              T a[kSums];
#pragma unroll
              for (int k = 0; k < kSums; ++k) a[k] = acc[k][i][0];
              Back::Sums::template add<0>(a, both, back.sums);
#pragma unroll
              for (int k = 0; k < kSums; ++k) acc[k][i][0] = a[k];
            }
          });
          Sums mine;
#pragma unroll
          for (int k = 0; k < kSums; ++k) mine.sum[k] = fold_lanes<S>(acc[k]);
          return mine;
        });
#pragma unroll
        for (int k = 0; k < Back::Sums::kSums; ++k) WideOf<T>::split(sums.sum[k], back.sums.h[k], back.sums.l[k]);
      }
    }

    const std::int64_t n = job.views.n, stride = job.views.stride[kMaskedResult];
    for (std::int64_t c = arch::warp(); c * kChunk < n; c += warps()) {
      if (kind == MaskedKind::nothing || c >= in.chunks) {
        each_kept(v, 0, T(0), [](T x) { return x; });
      } else {
        if (again || !Back::kSums) outputs(c);
        if constexpr (Forward::kProbability) {
          if (scratch.chunks && arch::lane() == 0)
            scratch.chunks[row * chunk_count<T>(n) + c] = Probabilities::of(normal, maximum);
        }
        each_lane_row(v, [&](int r, T(&y)[kValues]) {
          if (r * kLanes >= in.size(c)) {
#pragma unroll
            for (int i = 0; i < kValues; ++i) y[i] = T(0);
            return;
          }
          T g[kValues] = {}, x[kValues] = {};
          if constexpr (Back::kSums) gradients(c, r, g);
          if (options.caps) in.load_row(kMaskedX, c, r, x);
#pragma unroll
          for (int i = 0; i < kValues; ++i) {
            const T dz = Back::gradient(g[i], y[i], back), dx = options.none() ? dz : options.back(dz, x[i]);
            y[i] = kept >> (r * kValues) >> i & 1 ? dx : T(0);
          }
        });
      }
      if (in.at[kMaskedResult])
        store_chunk<S, kRows>(in.at[kMaskedResult] + c * kChunk * stride, stride, chunk_size<S>(n, c), v);
    }
    if (threadIdx.x != 0) return;
    if (scratch.records)
      scratch.records[row] = {in.at[kMaskedX],
                              in.at[kMaskedG],
                              in.at[kMaskedWhere],
                              in.at[kMaskedBias],
                              kind == MaskedKind::nothing ? 0 : in.count,
                              in.apart,
                              in.top,
                              back};
    if (!scratch.sinks) return;
    T share = T(0);
    if (in.at[kMaskedSink] && kind != MaskedKind::nothing) {
      T y = in.sink();
      if constexpr (Forward::kProbability) y = Probabilities::of(normal, y)(y);
      share = Back::gradient(T(0), Back::output(y, back), back);
    }
    scratch.sinks[row] = static_cast<double>(share);
  });
}

// -- sums over rows, as ops/masked.hpp has them ---------------------------------------------------------------

// dz of element j of a row.
template <class S, class Back>
SUMEXP_DEVICE Compute<S> logit_gradient(const MaskedJob& job, const MaskedOptions<Compute<S>>& options,
                                        const MaskedRecord<S, Back>& row, const typename MaskedScratch<S, Back>::Chunk* chunks,
                                        std::int64_t j) {
  using T = Compute<S>;
  const auto* const stride = job.views.stride;
  const auto at = [&](const char* from, int view) { return widen(*reinterpret_cast<const S*>(from + j * stride[view])); };
  if (row.where && !row.where[j * stride[kMaskedWhere]]) return T(0);
  const T x = at(row.x, kMaskedX), bias = row.bias ? at(row.bias, kMaskedBias) : T(0);
  if (bias == -Limits<T>::infinity) return T(0);
  T y = options.capped_of(options.divided(x));
  if (row.bias) y = y + bias;
  if (row.apart) y = logit_apart<T>(job.scale, row.top, x, bias);
  if constexpr (Back::Forward::kProbability) y = chunks[j / Geometry<T>::kChunk](y);
  return Back::gradient(Back::kSums ? at(row.g, kMaskedG) : T(0), Back::output(y, row.back), row.back);
}

// A block takes a group and a lane of threads' numbers of the bias, or its one; each warp a block of the members.
template <class S, class Back>
__global__ void __launch_bounds__(kSumBlocks* arch::lane_count, 1)
    masked_bias(SUMEXP_PARAMETER MaskedJob job, SUMEXP_PARAMETER MaskedOptions<Compute<S>> options,
                MaskedScratch<S, Back> scratch, SUMEXP_PARAMETER MaskedGroups groups, bool along) {
  using T = Compute<S>;
  SUMEXP_SHARED(double, board, kSumBlocks* kSumStreams);
  double* const mine = board + arch::warp() * kSumStreams + arch::lane();
  const std::int64_t n = job.views.n, per_row = chunk_count<T>(n), tiles = along ? (n + kSumStreams - 1) / kSumStreams : 1;
  const std::int64_t begin = arch::warp() * groups.block_size(), end = begin + groups.block_size();
  for (std::int64_t tile = blockIdx.x; tile < groups.groups * tiles; tile += gridDim.x) {
    const std::int64_t group = tile / tiles, first = tile % tiles * kSumStreams + arch::lane();
    LongSum sum;
    for (std::int64_t m = begin; m < end && m < groups.members; ++m) {
      const std::int64_t row = groups.row(group, m);
      const MaskedRecord<S, Back>& record = scratch.records[row];
      const auto* const chunks = scratch.chunks ? scratch.chunks + row * per_row : nullptr;
      const std::int64_t last = along && first + 1 < record.count ? first + 1 : record.count;
      for (std::int64_t j = first; j < last; j += kSumStreams)
        sum.add(static_cast<double>(logit_gradient<S, Back>(job, options, record, chunks, j)));
    }
    *mine = sum.value();
    arch::block_sync();
    if (arch::warp() == 0) {
      LongSum total;
      for (int b = 0; b < kSumBlocks; ++b) total.add(mine[b * kSumStreams]);
      char* at[kMaskedViews];
      place_row(job.views, groups.row(group, 0), at);
      char* const to = at[kMaskedDBias] + (along ? first * job.views.stride[kMaskedDBias] : 0);
      if (!along) {
        *mine = total.value();
        arch::warp_sync();
        total = {};
        for (int i = 0; i < kSumStreams; ++i) total.add(board[i]);
      }
      if (along ? first < n : arch::lane() == 0) *reinterpret_cast<S*>(to) = Narrow<S>::from(total.rounded_to<T>());
    }
    arch::block_sync();
  }
}

// A warp takes a group.
template <class S>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1)
    masked_sink(SUMEXP_PARAMETER MaskedJob job, const double* sinks, SUMEXP_PARAMETER MaskedGroups groups) {
  SUMEXP_SHARED(double, board, kRowWarps* kSumStreams);
  double* const streams = board + arch::warp() * kSumStreams;
  for (std::int64_t group = blockIdx.x * std::int64_t(warps()) + arch::warp(); group < groups.groups;
       group += std::int64_t(gridDim.x) * warps()) {
    LongSum sum;
    for (std::int64_t m = arch::lane(); m < groups.members; m += kSumStreams) sum.add(sinks[groups.row(group, m)]);
    streams[arch::lane()] = sum.value();
    arch::warp_sync();
    if (arch::lane() == 0) {
      LongSum total;
      for (int i = 0; i < kSumStreams; ++i) total.add(streams[i]);
      char* at[kMaskedViews];
      place_row(job.views, groups.row(group, 0), at);
      *reinterpret_cast<S*>(at[kMaskedDSink]) = Narrow<S>::from(total.rounded_to<Compute<S>>());
    }
    arch::warp_sync();
  }
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
  if (error == cudaSuccess && scratch.sinks) {
    const MaskedGroups groups = groups_of(job, kMaskedDSink);
    arch::Launch sum;
    sum.grid = dim3(grid_of((groups.groups + kRowWarps - 1) / kRowWarps));
    sum.block = dim3(kRowWarps * arch::lane_count);
    sum.stream = stream;
    error = arch::launch(masked_sink<S>, sum, job, scratch.sinks, groups);
  }
  if (error != cudaSuccess || !apart) return error;
  scratch.records = nullptr, scratch.chunks = nullptr, scratch.sinks = nullptr;
  return rows(job, scratch);
}

template <class S>
std::size_t MaskedRows<S>::workspace(const MaskedCall& call, const MaskedJob& job) {
  if (!call.g.data) return 0;
  if (call.op == Op::softmax) return MaskedScratch<S, MaskedSoftmaxBack>(job, nullptr).bytes;
  if (call.op == Op::log_softmax) return MaskedScratch<S, MaskedLogSoftmaxBack>(job, nullptr).bytes;
  return MaskedScratch<S, MaskedLogSumExpBack>(job, nullptr).bytes;
}

template <class S>
cudaError_t MaskedRows<S>::run(const MaskedCall& call, const MaskedJob& job, void* workspace, cudaStream_t stream) {
  if (call.g.data) {
    if (call.op == Op::softmax) return run_masked_vjp<S, MaskedSoftmaxBack>(job, workspace, stream);
    if (call.op == Op::log_softmax) return run_masked_vjp<S, MaskedLogSoftmaxBack>(job, workspace, stream);
    return run_masked_vjp<S, MaskedLogSumExpBack>(job, workspace, stream);
  }
  if (call.op == Op::softmax) return run_masked<S, Softmax>(job, stream);
  if (call.op == Op::log_softmax) return run_masked<S, LogSoftmax>(job, stream);
  return run_masked<S, LogSumExp>(job, stream);
}

}  // namespace sumexp::SUMEXP_NS
