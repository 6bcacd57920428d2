// log_prob, entropy and kl_div with their gradients, a block a row. A row's sums take one read of it. kl_div's divergence reads
// each chunk again as soon as its sums are there, gradients the row, a lane row at a time, from the caches where it fits there.
#pragma once

#include "row.cuh"  // first: ops take `quiet` from formats.cuh

#include "../../ops/information.hpp"
#include "../exp_chunk.cuh"
#include "information.hpp"

namespace sumexp::SUMEXP_NS {

using cuda::InformationCall;

template <class S>
SUMEXP_DEVICE Compute<S> read_number(const char* p) {
  return widen(*reinterpret_cast<const S*>(p));
}
template <class S>
SUMEXP_DEVICE void write_number(char* p, Compute<S> x) {
  *reinterpret_cast<S*>(p) = Narrow<S>::from(x);
}

struct RowView {
  char* data;
  std::int64_t stride;
};

// One row's arrays.
template <class S>
struct InformationRow {
  using T = Compute<S>;
  static constexpr int kLanes = Geometry<T>::kLanes, kChunk = Geometry<T>::kChunk;

  const InformationCall& call;
  const std::int64_t chunks = chunk_count<T>(call.views.n);
  char* at[InformationCall::kViews];
  Division division = Division::quotient;
  T top = T(0);  // of a row that is divided apart: its largest logit

  SUMEXP_DEVICE InformationRow(const InformationCall& call, std::int64_t row) : call(call) { place_row(call.views, row, at); }

  SUMEXP_DEVICE RowView view(int k) const { return {at[k], call.views.stride[k]}; }

  SUMEXP_DEVICE int lane_rows(std::int64_t c) const { return (chunk_size<S>(call.views.n, c) + kLanes - 1) / kLanes; }
  // kRows lane rows of logits from the r-th of chunk c on; -inf behind the row.
  template <int kRows>
  SUMEXP_DEVICE void load(const RowView& from, std::int64_t c, int r, T (&x)[kRows][Tile<S>::kValues]) const {
    const int left = chunk_size<S>(call.views.n, c) - r * kLanes;
    load_chunk<S, kRows>(from.data + (c * kChunk + r * kLanes) * from.stride, from.stride, left, x, -Limits<T>::infinity);
    if (call.temperature == 1.0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < Tile<S>::kValues; ++i) x[r][i] = divided(x[r][i]);
  }
  SUMEXP_DEVICE T divided(T x) const { return over_temperature(x, static_cast<T>(call.temperature), division, top); }
  SUMEXP_DEVICE void store(const RowView& to, std::int64_t c, int r, const T (&x)[1][Tile<S>::kValues]) const {
    const int left = chunk_size<S>(call.views.n, c) - r * kLanes;
    store_chunk<S, 1>(to.data + (c * kChunk + r * kLanes) * to.stride, to.stride, left, x);
  }
  SUMEXP_DEVICE void divide_gradient(T (&x)[Tile<S>::kValues]) const {
    const T t = static_cast<T>(call.temperature);
    if (t == T(1)) return;
#pragma unroll
    for (int i = 0; i < Tile<S>::kValues; ++i)
      x[i] = t != Limits<T>::infinity ? quiet(x[i] / t) : is_finite(x[i]) ? T(0) : x[i];  // a division makes a NaN of its own
  }
  // As exp_chunk has it.
  SUMEXP_DEVICE T chunk_maximum(const RowView& from, std::int64_t c) const {
    T m = -Limits<T>::infinity;
#pragma unroll 1
    for (int r = 0; r < lane_rows(c); ++r) {
      T x[1][Tile<S>::kValues];
      load(from, c, r, x);
#pragma unroll
      for (int i = 0; i < Tile<S>::kValues; ++i) m = arch::larger(x[0][i], m);
    }
    return warp_max(m);
  }

  // -- indices, and arrays with a value for each or one a row --

  SUMEXP_DEVICE std::int64_t picks() const { return at[InformationCall::kPicks] ? call.picks : 0; }
  SUMEXP_DEVICE std::int64_t index(std::int64_t k) const {
    return *reinterpret_cast<const std::int64_t*>(at[InformationCall::kPicks] + k * call.views.stride[InformationCall::kPicks]);
  }
  SUMEXP_DEVICE bool indices_are_valid() const {
    bool bad = false;
    for (std::int64_t k = arch::lane(); k < picks(); k += arch::lane_count) {
      const std::int64_t i = index(k);
      bad = bad || i < 0 || i >= call.views.n;
    }
    return !arch::any(bad);
  }
  SUMEXP_DEVICE T logit(std::int64_t i) const {
    const T x = read_number<S>(at[InformationCall::kLogits] + i * call.views.stride[InformationCall::kLogits]);
    return call.temperature == 1.0 ? x : divided(x);
  }
  SUMEXP_DEVICE char* of_pick(std::int64_t k) const {
    return at[InformationCall::kOfPicks] + k * call.views.stride[InformationCall::kOfPicks];
  }
  SUMEXP_DEVICE char* of_row() const { return at[InformationCall::kOfRow]; }
};

// Probabilities of one chunk's elements.
template <class Terms, class T>
struct ChunkProbability {
  Base<T> base;
  bool finite;
  ChunkScale<T> scale;
  TermScale<T> last;

  SUMEXP_DEVICE ChunkProbability(const Normalizer<T>& row, T maximum)
      : base(base_of(is_finite(maximum) ? maximum : T(0))),
        finite(is_finite(maximum)),
        scale(chunk_scale<Terms>(row, maximum)),
        last(scale.far ? unit_scale<T>() : scale.near) {}
  SUMEXP_DEVICE T of(T x) const {
    T term = Terms::term(Terms::parts(x - base.anchor, base.reduce));
    if (!finite) term = T(0);
    if (scale.far) term = far_term<Terms>(term, scale);
    return probability<Terms>(term, last);
  }
};

// -- log_prob and entropy ------------------------------------------------------------------------------------------------

// sum t_j (m - x_j) over a chunk with a finite maximum m.
template <class S, int kRows>
SUMEXP_DEVICE Wide<Compute<S>> distance_sum(const Compute<S> (&x)[kRows][Tile<S>::kValues], Compute<S> m) {
  using T = Compute<S>;
  constexpr int kValues = Tile<S>::kValues;
  const T lowest = m - kFarthest<T>;
  T terms[kRows][kValues], most = T(0);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) terms[r][i] = x[r][i];
  exp_terms<S>(terms, m);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) most = arch::larger(terms[r][i] * distance(m, lowest, x[r][i]), most);
  most = warp_max(most);
  if (!(most > T(0))) return WideOf<T>::constant(0);
  const T start = grid_start(most);
  T sums[kValues][2];
#pragma unroll
  for (int i = 0; i < kValues; ++i) sums[i][0] = start, sums[i][1] = T(0);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) add_product(terms[r][i], distance(m, lowest, x[r][i]), sums[i]);
#pragma unroll
  for (int i = 0; i < kValues; ++i) sums[i][0] = sums[i][0] - start;
  return fold_lanes<S>(sums);
}

template <class S>
SUMEXP_DEVICE void log_prob_row(const InformationRow<S>& row, const DistanceState<Compute<S>>& state) {
  using T = Compute<S>;
  const FinishedLogits<T> r = finished(state);
  const bool valid = row.indices_are_valid(), nan = r.special || !valid;
  for (std::int64_t k = threadIdx.x; k < row.picks(); k += blockDim.x)
    write_number<S>(row.of_pick(k), nan ? Limits<T>::nan() : log_probability(r.sum, row.logit(row.index(k))));
  if (threadIdx.x != 0 || !row.of_row()) return;
  T entropy = nan ? Limits<T>::nan() : entropy_of<T>(r.L, r.mean);
  if (row.chunks == 0 && valid) entropy = T(0);  // a sum of nothing
  write_number<S>(row.of_row(), entropy);
}

template <class S>
SUMEXP_DEVICE void log_prob_gradient(const InformationRow<S>& row, const DistanceState<Compute<S>>& state) {
  using T = Compute<S>;
  using Terms = TermsOf<S>;
  const FinishedLogits<T> r = finished(state);
  const bool nan = !row.indices_are_valid() || r.special;
  const std::int64_t picks = row.picks();
  auto picked = PickedGradients<T>::none();
  std::int64_t winner = -1;
  if (!nan) {
#pragma unroll 1
    for (std::int64_t k = 0; k < picks; ++k) {
      const Wide<T> g = WideOf<T>::from(read_number<S>(row.of_pick(k)));
      const std::int64_t i = row.index(k);
      if (r.winner && row.logit(i) == r.sum.m) {
        winner = i;
        picked.own = picked.own + g;
      } else {
        picked.others = picked.others + g;
      }
    }
  }
  if (picks) arch::block_sync();  // the result may take the place of the logits, at which all have looked now
  LogitsGradient<T> gradient = {};
  Normalizer<T> scale = {};
  T at_winner = T(0);
  if (!nan) {
    const T h = row.of_row() ? read_number<S>(row.of_row()) : T(0);
    gradient = logits_gradient(r.sum, r.mean, h, picked);
    scale = normalizer<Terms>(state.sum);
    if (winner >= 0) at_winner = gradient_at_winner(r.sum, r.mean, h, picked);
  }
#pragma unroll 1
  for (std::int64_t c = arch::warp(); c < row.chunks; c += warps()) {
    const ChunkProbability<Terms, T> p(scale, nan ? T(0) : row.chunk_maximum(row.view(InformationCall::kLogits), c));
#pragma unroll 1
    for (int lane_row = 0; lane_row < row.lane_rows(c); ++lane_row) {
      T x[1][Tile<S>::kValues];
      row.load(row.view(InformationCall::kLogits), c, lane_row, x);
#pragma unroll
      for (int i = 0; i < Tile<S>::kValues; ++i) x[0][i] = nan ? Limits<T>::nan() : gradient.of(p.of(x[0][i]), x[0][i]);
      const std::int64_t first = c * row.kChunk + lane_row * row.kLanes;
#pragma unroll 1
      for (std::int64_t k = 0; k < picks; ++k) {
        const std::int64_t i = row.index(k);
        if (nan || i < first || i >= first + row.kLanes) continue;
        const T g = read_number<S>(row.of_pick(k));
#pragma unroll
        for (int e = 0; e < Tile<S>::kValues; ++e)
          if (first + element_of<S>(0, e) == i) x[0][e] = i == winner ? at_winner : quiet(x[0][e] + g);
      }
      row.divide_gradient(x[0]);
      row.store(row.view(InformationCall::kResult), c, lane_row, x);
    }
  }
}

template <class S, int kRows>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1) log_prob_rows(SUMEXP_PARAMETER InformationCall call) {
  using T = Compute<S>;
  auto& board = *arch::dynamic_shared<RowBoard<DistanceState<T>>>();
  each_row(call.views.rows, [&](std::int64_t r) {
    InformationRow<S> row(call, r);
    DistanceState<T> state;
#pragma unroll 1
    for (;;) {
      state = reduce_row(row.chunks, board, [&](std::int64_t c) {
        T x[kRows][Tile<S>::kValues];
        row.load(row.view(InformationCall::kLogits), c, 0, x);
        const ExpState<T> sum = exp_chunk<S, true, false>(x);
        DistanceState<T> mine = {sum, WideOf<T>::constant(0)};
        if (call.distances && has_distances(sum)) mine = with_distances(sum, distance_sum<S>(x, sum.m));
        return mine;
      });
      const bool nan = is_nan(state.sum.R);
      if (row.division == Division::quotient && nan && call.temperature < 1.0) {
        row.division = Division::none;
      } else if (row.division == Division::none) {  // a row with a NaN stays one
        row.division = Division::apart, row.top = state.sum.m;
      } else {
        break;
      }
    }
    if (call.gradient) log_prob_gradient<S>(row, state);
    else log_prob_row<S>(row, state);
  });
}

// -- the Kullback-Leibler divergence -----------------------------------------------------------------------------------

template <class T>
struct PairState {
  ExpState<T> p, q;

  SUMEXP_FN static PairState empty() { return {ExpState<T>::empty(), ExpState<T>::empty()}; }
};
template <class T>
SUMEXP_FN PairState<T> merge(const PairState<T>& a, const PairState<T>& b) {
  return {merge(a.p, b.p), merge(a.q, b.q)};
}

// Both sums of chunk c, one after the other in the same registers.
template <class S, int kRows>
SUMEXP_DEVICE PairState<Compute<S>> pair_of_chunk(const InformationRow<S>& row, std::int64_t c) {
  using T = Compute<S>;
  PairState<T> mine = PairState<T>::empty();
  const RowView sides[] = {row.view(InformationCall::kLogits), row.view(InformationCall::kOther)};
  RowView from = sides[0];
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    T x[kRows][Tile<S>::kValues];
    row.load(from, c, 0, x);
    mine.p = mine.q, mine.q = exp_chunk<S, true, false, FullTerms>(x);
    from = sides[1];
  }
  return mine;
}

template <class S>
using LaneRow = Compute<S>[1][Tile<S>::kValues];
template <class S>
using Pairs = PairAt<Compute<S>>[Tile<S>::kValues];
template <class S>
using LogitProbability = ChunkProbability<FullTerms, Compute<S>>;

// use(lane row, x, y, their pairs) for all lane rows of chunk c
template <class S, class Use>
SUMEXP_DEVICE void each_lane_row(const InformationRow<S>& row, std::int64_t c, const LogitProbability<S>& p_of,
                                 const LogitProbability<S>& q_of, const LogRatio<Compute<S>>& ratio, Use use) {
#pragma unroll 1
  for (int r = 0; r < row.lane_rows(c); ++r) {
    LaneRow<S> x, y;
    Pairs<S> at;
    row.load(row.view(InformationCall::kLogits), c, r, x);
    row.load(row.view(InformationCall::kOther), c, r, y);
#pragma unroll
    for (int i = 0; i < Tile<S>::kValues; ++i) at[i] = pair_at(x[0][i], y[0][i], p_of.of(x[0][i]), q_of.of(y[0][i]), ratio);
    use(r, x, y, at);
  }
}

// Of chunk c, with its two sums.
template <class S>
SUMEXP_DEVICE DivergenceState<Compute<S>> divergence_of_chunk(const InformationRow<S>& row, std::int64_t c,
                                                              const PairState<Compute<S>>& sums) {
  using T = Compute<S>;
  constexpr int kValues = Tile<S>::kValues;
  if (!has_divergence(sums.p, sums.q)) return DivergenceState<T>::of(sums.p, sums.q);
  const LogRatio<T> ratio = row_pair(sums.p, sums.q).ratio;
  const T at_maxima = log_ratio_at_maxima(ratio);
  T divergence[kValues][1] = {}, mean[kValues][1] = {};
  bool infinite = false, differs = false;
  each_lane_row<S>(row, c, {normalizer<FullTerms>(sums.p), sums.p.m}, {normalizer<FullTerms>(sums.q), sums.q.m}, ratio,
                   [&](int, const LaneRow<S>& x, const LaneRow<S>& y, const Pairs<S>& at) {
#pragma unroll
                     for (int i = 0; i < kValues; ++i) {
                       infinite = infinite || nowhere(x[0][i], y[0][i]);
                       differs = differs || at[i].w != at_maxima;
                       divergence[i][0] = divergence[i][0] + at[i].parts.part;
                       mean[i][0] = fma(at[i].p, at[i].w, mean[i][0]);
                     }
                   });
  return with_divergence(sums.p, sums.q, ratio, fold_lanes<S>(divergence), fold_lanes<S>(mean), arch::any(infinite),
                         !arch::any(differs));
}

template <class S, int kRows>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1) kl_div_rows(SUMEXP_PARAMETER InformationCall call) {
  using T = Compute<S>;
  auto& board = *arch::dynamic_shared<RowBoard<DivergenceState<T>>>();
  each_row(call.views.rows, [&](std::int64_t r) {
    const InformationRow<S> row(call, r);
    const DivergenceState<T> state = reduce_row(
        row.chunks, board, [&](std::int64_t c) { return divergence_of_chunk(row, c, pair_of_chunk<S, kRows>(row, c)); });
    if (threadIdx.x != 0) return;
    const T kl = row.chunks ? divergence_of(state) : T(0);  // a sum of nothing
    write_number<S>(row.at[InformationCall::kResult], kl);
  });
}

// -- its gradient ------------------------------------------------------------------------------------------------------

template <class T>
struct PairBoards {
  RowBoard<PairState<T>> rows;
  RowBoard<DivergenceSums<T>> sums;
};

// Both rows, finished: neither is special.
template <class S>
struct FinishedPair {
  using T = Compute<S>;
  const InformationRow<S>& row;
  RowSum<T> p;
  Normalizer<T> p_scale, q_scale;
  RowPair<T> pair;

  template <class Use>
  SUMEXP_DEVICE void each(std::int64_t c, Use use) const {
    each_lane_row<S>(row, c, {p_scale, row.chunk_maximum(row.view(InformationCall::kLogits), c)},
                     {q_scale, row.chunk_maximum(row.view(InformationCall::kOther), c)}, pair.ratio, use);
  }

  SUMEXP_DEVICE DivergenceSums<T> sums(std::int64_t c) const {
    constexpr int kValues = Tile<S>::kValues;
    T divergence[kValues][1] = {}, of_others[kValues][1] = {};
    bool infinite = false;
    each(c, [&](int, const LaneRow<S>& x, const LaneRow<S>& y, const Pairs<S>& at) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        infinite = infinite || nowhere(x[0][i], y[0][i]);
        T acc[2] = {divergence[i][0], of_others[i][0]};
        add_pair(x[0][i], at[i], pair.winner, acc);
        divergence[i][0] = acc[0], of_others[i][0] = acc[1];
      }
    });
    return {fold_lanes<S>(divergence), fold_lanes<S>(of_others), arch::any(infinite)};
  }

  SUMEXP_DEVICE void put_gradient(const DivergenceSums<T>& sums, T kl) const {
    const T g = read_number<S>(row.of_row());
    const PairGradient<T> gradient = pair_gradient(g, p, pair.winner, kl, sums.divergence, sums.of_others);
#pragma unroll 1
    for (std::int64_t c = arch::warp(); c < row.chunks; c += warps())
      each(c, [&](int r, LaneRow<S>& x, LaneRow<S>& y, const Pairs<S>& at) {
#pragma unroll
        for (int i = 0; i < Tile<S>::kValues; ++i) {
          x[0][i] = gradient.of_p(x[0][i], at[i]);
          y[0][i] = gradient.of_q(at[i]);
        }
        row.store(row.view(InformationCall::kResult), c, r, x);
        row.store(row.view(InformationCall::kExtra), c, r, y);
      });
  }
};

template <class S>
SUMEXP_DEVICE void fill_nan(const InformationRow<S>& row) {
  using T = Compute<S>;
  T x[1][Tile<S>::kValues];
#pragma unroll
  for (int i = 0; i < Tile<S>::kValues; ++i) x[0][i] = Limits<T>::nan();
#pragma unroll 1
  for (std::int64_t c = arch::warp(); c < row.chunks; c += warps())
#pragma unroll 1
    for (int r = 0; r < row.lane_rows(c); ++r) {
      row.store(row.view(InformationCall::kResult), c, r, x);
      row.store(row.view(InformationCall::kExtra), c, r, x);
    }
}

template <class S, int kRows>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1) kl_div_vjp_rows(SUMEXP_PARAMETER InformationCall call) {
  using T = Compute<S>;
  auto& boards = *arch::dynamic_shared<PairBoards<T>>();
  each_row(call.views.rows, [&](std::int64_t r) {
    const InformationRow<S> row(call, r);
    const PairState<T> state =
        reduce_row(row.chunks, boards.rows, [&](std::int64_t c) { return pair_of_chunk<S, kRows>(row, c); });
    if (is_special<LogitsOp>(state.p) || is_special<LogitsOp>(state.q)) return fill_nan<S>(row);
    const FinishedPair<S> both = {row, row_sum(state.p), normalizer<FullTerms>(state.p), normalizer<FullTerms>(state.q),
                                  row_pair(state.p, state.q)};
    const DivergenceSums<T> sums = reduce_row(row.chunks, boards.sums, [&](std::int64_t c) { return both.sums(c); });
    both.put_gradient(sums, divergence_of<T>(sums.divergence, sums.infinite));
  });
}

// -- host ------------------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t Information<S>::log_prob(const cuda::InformationCall& call, cudaStream_t stream) {
  using T = Compute<S>;
  const auto how = launch_of_rows<DistanceState<T>>(call.views.rows, chunk_count<T>(call.views.n), stream);
  if (call.views.n <= Geometry<T>::kLanes) return arch::launch(log_prob_rows<S, 1>, how, call);
  return arch::launch(log_prob_rows<S, Geometry<T>::kLaneRows>, how, call);
}

template <class S>
cudaError_t Information<S>::kl_div(const cuda::InformationCall& call, cudaStream_t stream) {
  using T = Compute<S>;
  const auto how = launch_of_rows<DivergenceState<T>>(call.views.rows, chunk_count<T>(call.views.n), stream);
  if (call.views.n <= Geometry<T>::kLanes) return arch::launch(kl_div_rows<S, 1>, how, call);
  return arch::launch(kl_div_rows<S, Geometry<T>::kLaneRows>, how, call);
}

template <class S>
cudaError_t Information<S>::kl_div_vjp(const cuda::InformationCall& call, cudaStream_t stream) {
  using T = Compute<S>;
  const auto how = launch_of_rows<PairState<T>>(call.views.rows, chunk_count<T>(call.views.n), stream,
                                                sizeof(PairBoards<T>) - sizeof(RowBoard<PairState<T>>));
  if (call.views.n <= Geometry<T>::kLanes) return arch::launch(kl_div_vjp_rows<S, 1>, how, call);
  return arch::launch(kl_div_vjp_rows<S, Geometry<T>::kLaneRows>, how, call);
}

}  // namespace sumexp::SUMEXP_NS
