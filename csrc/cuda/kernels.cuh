// The kernels. Each is a template over the storage type S and an operation of operations.cuh; README.md
// tells what each does with a row.
//
//   resident   warp_rows: a warp per row; block_rows: a block or a cluster per row, a chunk per warp.
//              The row is read once and waits in registers for its sum.
//   streaming  reduce_chunks, merge_rows (merge.cuh), map_chunks: a warp per chunk, all chunks of all rows at once.
//              Operations with the same reduction share reduce_chunks.
//
// Launch bounds name one block per SM: without it ptxas (13.0) held kernels to 64 registers, and spilled.
#pragma once

#include "operations.cuh"
#include "tile_io.cuh"
#include "tuning.hpp"

namespace sumexp::SUMEXP_NS {

// Which row and chunk this warp takes. With columns a block takes neighbouring rows, never across the end
// of the dimension along which they are neighbours.
struct Place {
  std::int64_t row, chunk;
  int beside;   // rows of this block, with columns
  bool active;  // this warp has a row
  std::int64_t own_row;
};
template <bool kPacked>
SUMEXP_DEVICE Place place_of_warp(const Job& job, std::int64_t block) {
  const int warps = int(blockDim.x) / arch::lane_count;
  Place p = {0, 0, 1, true, 0};
  if (in_columns<kPacked>(job)) {
    const std::int64_t side = job.batch[job.batch_dims - 1].size, groups = (side + warps - 1) / warps;
    const std::int64_t group = block / job.chunks, at = group % groups * warps;
    p.chunk = block % job.chunks;
    p.row = group / groups * side + at;
    p.beside = int(side - at < warps ? side - at : warps);
    p.active = arch::warp() < p.beside;
    p.own_row = p.row + arch::warp();
  } else {
    const std::int64_t item = block * warps + arch::warp();
    p.row = job.chunks == 1 ? item : item / job.chunks;
    p.chunk = job.chunks == 1 ? 0 : item % job.chunks;
    p.active = p.row < job.rows;
    p.own_row = p.row;
  }
  return p;
}
// A warp that may leave at once: nobody waits for it.
template <bool kPacked>
SUMEXP_DEVICE bool may_leave(const Job& job, const Place& p) {
  return !p.active && !in_columns<kPacked>(job);
}

// Launch bounds of the kernels with a warp to a row or chunk. Packed ones run in blocks of kPackedWarps, of which an SM is
// to hold 4, or 2: then a thread may have 255 registers, which takes the spills out of operations with two inputs. 8 warps
// with 4 to 8 KB on their way each still keep memory busy.
template <class Op, bool kPacked>
struct WarpBounds {
  static constexpr int threads = arch::lane_count * (kPacked ? cuda::kPackedWarps : Op::kMaxWarps);
  static constexpr int blocks = !kPacked ? 1 : Op::kMaxWarps > 8 ? 4 : 2;
};

// The I/O of an operation that holds kRows lane rows, or one of them at a time.
template <class S, class Op, int kRows, bool kPacked, bool kColumns = !kPacked>
using IoOf = TileIo<S, typename Op::Inputs, (Op::kKept > 0 ? kRows : 1), kPacked, kColumns>;

// How a row's elements are divided. A row in which a quotient by the temperature overflows has a state of NaN: it is reduced
// twice more, undivided, for its maximum, and then divided less that. (A row with a NaN of its own goes the same way, to NaN.)
template <class T>
struct RowDivision {
  Division how;
  T top;
};
template <class Op, bool kPacked>
inline constexpr bool kDivided = !kPacked && Op::kDivides;

// Whether rows are to be reduced once more, given the state of the warp's own after turn 0, 1 or 2. With columns the warps of
// a block fetch each other's elements, and go together: `board` has a place for each.
template <bool kPacked, class T, class Io, class State>
SUMEXP_DEVICE bool divide_again(const Job& job, Io& io, const State& state, int turn, RowDivision<T>& own,
                                RowDivision<T>* board) {
  if (turn == 2) return false;
  if (turn == 0) own = {is_nan(state.R) ? Division::none : Division::quotient, T(0)};
  else if (own.how == Division::none) own = {Division::apart, state.m};
  bool any = own.how != Division::quotient;
  RowDivision<T> fetched = own;
  if (in_columns<kPacked>(job)) {
    if (arch::lane() == 0) board[arch::warp()] = own;
    arch::block_sync();
    for (int w = 0; w < int(blockDim.x) / arch::lane_count; ++w) any = any || board[w].how != Division::quotient;
    fetched = board[io.fetched_row()];
  }
  io.divide(fetched.how, fetched.top);
  return any;
}

// rows of at most kRows lane rows, a warp each
template <class S, class Op, int kRows, bool kPacked, class B = WarpBounds<Op, kPacked>>
__global__ void __launch_bounds__(B::threads, B::blocks) warp_rows(SUMEXP_PARAMETER Job job) {
  using T = Compute<S>;
  const Place p = place_of_warp<kPacked>(job, blockIdx.x);
  if (may_leave<kPacked>(job, p)) return;
  IoOf<S, Op, kRows, kPacked> io(job, arch::dynamic_shared<T>(), Op::kKept == 0);
  io.go(p.row, 0, p.beside);
  T v[Op::kHeld][kRows][Tile<S>::kValues];
  typename Op::Row row = {};
  const TemperatureFactor<T> factor = {static_cast<T>(job.factor), static_cast<T>(job.late)};
  typename Op::State state;
  [[maybe_unused]] RowDivision<T> division = {Division::quotient, T(0)};
  SUMEXP_SHARED(RowDivision<T>, divisions, (kDivided<Op, kPacked> ? 16 : 1));
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    state = Op::template reduce<0>(io, v, row);
    if constexpr (!kDivided<Op, kPacked>) break;
    else if (!job.overflow || !divide_again<kPacked>(job, io, state, turn, division, divisions)) break;
  }
  Op::Finish::template finish<TermsOf<S>>(io, state, row, 0, factor);
  if constexpr (Op::kPasses > 1) {
    state = Op::template reduce<1>(io, v, row);
    Op::Finish::template finish<TermsOf<S>>(io, state, row, 1, factor);
  }
  if constexpr (Op::kRowOutput) {
    if (p.active && arch::lane() == 0) Op::Finish::emit(io, row, job.data[cuda::kExtra] != nullptr);
  } else {
    Op::map(io, v, Op::maximum(state), row);
  }
}

// A row per block, or per cluster of blocks: chunk rank * warps + warp in registers.
template <class S, class Op, bool kPacked>
__global__ void __launch_bounds__(WarpBounds<Op, false>::threads, 1) block_rows(SUMEXP_PARAMETER Job job) {
  using T = Compute<S>;
  using State = typename Op::State;
  SUMEXP_SHARED(State, board, 16 * Op::kPasses);
  SUMEXP_SHARED(State, cluster_board, Op::kPasses);
  const int warps = int(blockDim.x) / arch::lane_count, ranks = arch::cluster_size(), rank = arch::cluster_rank();
  const std::int64_t first = std::int64_t(rank) * warps, left = job.chunks - first;
  const int here = left >= warps ? warps : left > 0 ? int(left) : 0;  // warps with a chunk
  const int blocks = int((job.chunks + warps - 1) / warps);           // blocks with a chunk
  IoOf<S, Op, Geometry<T>::kLaneRows, kPacked, false> io(job, arch::dynamic_shared<T>(), Op::kKept == 0);
  io.go(blockIdx.x / unsigned(ranks), first + arch::warp(), 1);
  T v[Op::kHeld][Geometry<T>::kLaneRows][Tile<S>::kValues];
  typename Op::Row row = {};
  const TemperatureFactor<T> factor = {static_cast<T>(job.factor), static_cast<T>(job.late)};
  const auto combine = [&](const State& mine, int pass) {
    const State all = merge_block(mine, here, board + 16 * pass);
    return ranks > 1 ? merge_cluster(all, blocks, cluster_board + pass) : all;
  };
  const auto wait = [&] {
    if (ranks > 1) arch::cluster_sync();
    else arch::block_sync();
  };
  State mine, all;
  [[maybe_unused]] RowDivision<T> division = {Division::quotient, T(0)};
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    mine = Op::template reduce<0>(io, v, row);
    all = combine(mine, 0);
    if constexpr (!kDivided<Op, kPacked>) break;
    else if (!job.overflow || !divide_again<true>(job, io, all, turn, division, &division)) break;
    wait();  // until all have read the states
  }
  Op::Finish::template finish<TermsOf<S>>(io, all, row, 0, factor);
  if constexpr (Op::kPasses > 1) {
    const State second = combine(Op::template reduce<1>(io, v, row), 1);
    Op::Finish::template finish<TermsOf<S>>(io, second, row, 1, factor);
  }
  if constexpr (Op::kFinishReads) wait();
  if constexpr (Op::kRowOutput) {
    if (rank == 0 && threadIdx.x == 0) Op::Finish::emit(io, row, job.data[cuda::kExtra] != nullptr);
  } else {
    Op::map(io, v, Op::maximum(mine), row);
  }
  if (ranks > 1) arch::cluster_sync();  // until all have read this block's state
}

// -- streaming, with merge_rows of merge.cuh: states (rows, chunks), results (rows) ----------------------

template <class S, class Reduction, int pass, bool kPacked, class B = WarpBounds<Reduction, kPacked>>
__global__ void __launch_bounds__(B::threads, B::blocks)
    reduce_chunks(SUMEXP_PARAMETER Job job, typename Reduction::State* states, const typename Reduction::Row* rows) {
  using T = Compute<S>;
  const Place p = place_of_warp<kPacked>(job, blockIdx.x);
  if (may_leave<kPacked>(job, p)) return;
  IoOf<S, Reduction, Geometry<T>::kLaneRows, kPacked> io(job, arch::dynamic_shared<T>(), job.read_again);
  io.go(p.row, p.chunk, p.beside);
  T v[Reduction::kHeld][Geometry<T>::kLaneRows][Tile<S>::kValues];
  typename Reduction::Row row = {};
  if constexpr (pass > 0) {
    if (p.active) row = rows[p.own_row];
    Reduction::remake(io, v, T(0));
  }
  const auto state = Reduction::template reduce<pass>(io, v, row);
  if (p.active && arch::lane() == 0) states[p.own_row * job.chunks + p.chunk] = state;
}

// The states of the rows that are NaN once more, a block for each, as divide_again has it; tops: their maxima, NaN of the
// others.
template <class S, class Op, class B = WarpBounds<Op, false>>
__global__ void __launch_bounds__(B::threads, 1)
    reduce_apart(SUMEXP_PARAMETER Job job, typename Op::State* states, const typename Op::Row* rows, Compute<S>* tops) {
  using T = Compute<S>;
  SUMEXP_SHARED(T, board, 32);
  const std::int64_t r = blockIdx.x;
  if (!rows[r].nan) {
    if (threadIdx.x == 0) tops[r] = Limits<T>::nan();
    return;
  }
  const int warps = int(blockDim.x) / arch::lane_count;
  IoOf<S, Op, Geometry<T>::kLaneRows, false, false> io(job, arch::dynamic_shared<T>(), true);
  T v[Op::kHeld][Geometry<T>::kLaneRows][Tile<S>::kValues];
  T top = -Limits<T>::infinity;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    io.divide(turn == 0 ? Division::none : Division::apart, top);
    const T at_most = top;
#pragma unroll 1
    for (std::int64_t c = arch::warp(); c < job.chunks; c += warps) {
      io.go(r, c, 1);
      const auto state = Op::template reduce<0>(io, v, typename Op::Row{});
      top = arch::larger(state.m, top);
      if (turn == 1 && arch::lane() == 0) states[r * job.chunks + c] = state;
    }
    if (turn == 1) {
      if (threadIdx.x == 0) tops[r] = at_most;
      return;
    }
    if (arch::lane() == 0) board[arch::warp()] = top;
    arch::block_sync();
    for (int w = 0; w < warps; ++w) top = arch::larger(board[w], top);
  }
}

// tops: of reduce_apart, or null
template <class S, class Op, bool kPacked, class B = WarpBounds<Op, kPacked>>
__global__ void __launch_bounds__(B::threads, B::blocks)
    map_chunks(SUMEXP_PARAMETER Job job, const typename Op::Reduction::State* states, const typename Op::Row* rows,
               const Compute<S>* tops) {
  using T = Compute<S>;
  // from the end: there the cache still has what reduce_chunks read last
  const Place p = place_of_warp<kPacked>(job, std::int64_t(gridDim.x) - 1 - blockIdx.x);
  if (may_leave<kPacked>(job, p)) return;
  IoOf<S, Op, Geometry<T>::kLaneRows, kPacked> io(job, arch::dynamic_shared<T>(), false);
  io.go(p.row, p.chunk, p.beside);
  T v[Op::kHeld][Geometry<T>::kLaneRows][Tile<S>::kValues];
  typename Op::Row row = {};
  T maximum = T(0);
  if (p.active) {
    row = rows[p.own_row];
    maximum = Op::maximum(states[p.own_row * job.chunks + p.chunk]);
  }
  if constexpr (kDivided<Op, kPacked>) {
    const int fetched = in_columns<kPacked>(job) ? io.fetched_row() : 0;
    if (tops && fetched < p.beside && !is_nan(tops[p.row + fetched])) io.divide(Division::apart, tops[p.row + fetched]);
  }
  Op::remake(io, v, maximum);
  Op::map(io, v, maximum, row);
}

}  // namespace sumexp::SUMEXP_NS
