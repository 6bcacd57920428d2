// VJPs of masked rows, which begin with their results again, and the gradients of a bias and of sinks.
//
// The gradient of a bias is summed by a kernel of its own, which makes every element's share again from what the first leaves
// of each row and chunk: some numbers, in place of arrays.
#pragma once

#include "../workspace.cuh"
#include "masked_logits.cuh"

namespace sumexp::SUMEXP_NS {

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

}  // namespace sumexp::SUMEXP_NS
