// Sums of exponentials with weights, their means and derivatives: a block a row, a warp a piece (ops/weighted_rows.hpp).
//
// A thread has one element of each of a piece's runs. Their terms are made by all, wait in shared memory, and are added up by
// one thread a run, in order; the runs' sums by all alike, the pieces' by thread 0 while the others go on. One kernel has the
// mean and both derivatives: the sum is most of it.
#pragma once

#if defined(__CUDACC__)
#pragma nv_diag_suppress 1675  // pragmas of GCC, for the CPU
#endif
#include "../../ops/weighted_rows.hpp"
#include "../fold.cuh"
#include "row.cuh"
#include "weighted_rows.hpp"

namespace sumexp::SUMEXP_NS {

struct WeightedBoard {
  RunningSum totals[2][kRowWarps], sum;
  double special[2][kRowWarps], all_special;
  double terms[kRowWarps][2][kPieceElements];
};

// The elements of a piece that a thread has, and their weights.
struct PieceValues {
  double x[kRuns], f[kRuns];
};
SUMEXP_DEVICE int element_of_piece(int run) { return run * kRun + arch::lane(); }

// The sum of a piece of `count` elements, for the warp's first thread; those not finite in `special`. The block meets before
// the warp's next one, for which `terms` are written over.
SUMEXP_DEVICE RunningSum piece_sum(PieceValues& v, int count, double (&terms)[2][kPieceElements], double& special) {
  constexpr double inf = Limits<double>::infinity;
  bool nan = false, above = false, below = false, bad = false;  // an x is NaN; a weighted element is inf, -inf, NaN
  double top = -inf, bottom = -inf;                             // bottom: of -x
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    if (element_of_piece(r) < count) {
      weigh(v.x[r], v.f[r]);
      above = above || v.f[r] == inf, below = below || v.f[r] == -inf, bad = bad || v.f[r] != v.f[r];
      if (!is_finite(v.f[r])) v.f[r] = 0.0;
    } else {
      v.x[r] = -inf, v.f[r] = 0.0;
    }
    nan = nan || v.x[r] != v.x[r];
    top = arch::larger(v.x[r], top);
    bottom = arch::larger(v.x[r] == -inf ? -inf : -v.x[r], bottom);
  }
  special = 0.0;
  if (arch::any(above)) special = special + inf;
  if (arch::any(below)) special = special - inf;
  if (arch::any(bad)) special = Limits<double>::nan();
  nan = arch::any(nan);
  top = warp_max(top), bottom = warp_max(bottom);
  if (!nan && top == -inf) return RunningSum::empty();
  const bool direct = !nan && share_a_power(top, -bottom);
  const std::int64_t N = direct ? base_of(top).N : 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    DD<double> e = {v.x[r], v.f[r]};
    if (direct) e = direct_product(direct_term(v.x[r], top - 2 * kSpread, static_cast<double>(N)), v.f[r]);
    terms[0][element_of_piece(r)] = e.hi, terms[1][element_of_piece(r)] = e.lo;
  }
  arch::warp_sync();
  RunningSum sum = RunningSum::empty();
  if (!direct) {
    if (arch::lane() == 0) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) sum = join(sum, weighted(element_sum(terms[0][i]), terms[1][i]));
    }
    return sum;
  }
  double hi = 0.0, lo = 0.0;
  if (arch::lane() < kRuns) {
#pragma unroll 4
    for (int j = arch::lane() * kRun; j < (arch::lane() + 1) * kRun; ++j) {
      const DD<double> both = two_sum(hi, terms[0][j]);
      hi = both.hi, lo = lo + (both.lo + terms[1][j]);
    }
  }
  const DD<double> run = fast_two_sum(hi, lo);
  sum = {top, N, {0.0, 0.0}};
#pragma unroll 1
  for (int r = 0; r * kRun < count; ++r) sum.s = sum.s + arch::shfl(run, r);
  return sum;
}

// Of a row: load(i, x, f) gives an element and its weight. All threads meet here, and leave with what is the same for all.
template <class Load>
SUMEXP_DEVICE RunningSum weighted_sum(std::int64_t n, WeightedBoard& board, double& special, Load load) {
  if (threadIdx.x == 0) board.sum = RunningSum::empty(), board.all_special = 0.0;
  const int width = warps();
#pragma unroll 1
  for (std::int64_t first = 0, round = 0; first * kPieceElements < n; first += width, ++round) {
    const std::int64_t begin = (first + arch::warp()) * kPieceElements, left = n - begin;
    if (left > 0) {
      const int count = left < kPieceElements ? int(left) : kPieceElements;
      PieceValues v = {};
#pragma unroll
      for (int r = 0; r < kRuns; ++r)
        if (element_of_piece(r) < count) load(begin + element_of_piece(r), v.x[r], v.f[r]);
      double apart;
      const RunningSum mine = piece_sum(v, count, board.terms[arch::warp()], apart);
      if (arch::lane() == 0) board.totals[round % 2][arch::warp()] = mine, board.special[round % 2][arch::warp()] = apart;
    }
    arch::block_sync();
    if (threadIdx.x == 0) {
      RunningSum sum = board.sum;
#pragma unroll 1
      for (int i = 0; i < width && (first + i) * kPieceElements < n; ++i) {
        sum = join(sum, board.totals[round % 2][i]);
        board.all_special = board.all_special + board.special[round % 2][i];
      }
      board.sum = sum;
    }
  }
  arch::block_sync();
  const RunningSum sum = board.sum;
  special = board.all_special;
  arch::block_sync();  // before the board serves another sum
  return with_special(sum, special);
}

template <class S>
__global__ void __launch_bounds__(kRowWarps* arch::lane_count, 1)
    weighted_rows(SUMEXP_PARAMETER cuda::RowViews<cuda::kWeightedViews> views, cuda::Weighted what) {
  using T = Compute<S>;
  enum { kX, kB, kFirst, kSecond, kThird };
  constexpr double inf = Limits<double>::infinity;
  auto& board = *arch::dynamic_shared<WeightedBoard>();
  each_row(views.rows, [&](std::int64_t row) {
    char* at[cuda::kWeightedViews];
    place_row(views, row, at);
    const auto number = [&](const char* from, int k, std::int64_t i)
                            SUMEXP_INLINE -> double { return widen(*reinterpret_cast<const S*>(from + i * views.stride[k])); };
    const auto put = [&](char* to, int k, std::int64_t i, double value) SUMEXP_INLINE {
      *reinterpret_cast<S*>(to + i * views.stride[k]) = Narrow<S>::from(quiet(static_cast<T>(quiet(value))));
    };
    RunningSum sum = RunningSum::empty(), along = sum;
    double special = 0.0, special_along = 0.0;
    // Of a JVP twice: S, then with the factors t b + tb
#pragma unroll 1
    for (int pass = 0; pass < (what == cuda::Weighted::jvp ? 2 : 1); ++pass) {
      double apart;
      const RunningSum found = weighted_sum(views.n, board, apart, [&](std::int64_t i, double& x, double& f) SUMEXP_INLINE {
        x = number(at[kX], kX, i);
        const double b = at[kB] ? number(at[kB], kB, i) : 1.0;
        f = b;
        if (pass == 1) {
          f = 0.0;
          if (at[kFirst]) f = number(at[kFirst], kFirst, i);
          if (at[kFirst] && at[kB]) f = b * f;
          if (at[kSecond]) f = f + number(at[kSecond], kSecond, i);
        }
      });
      if (pass == 0) sum = found, special = apart;
      else along = found, special_along = apart;
    }
    if (what == cuda::Weighted::vjp) {
      if (sum.m == inf) sum.s.hi = Limits<double>::nan();
      const double g = number(at[kFirst], kFirst, 0), scale = g / sum.s.hi;
      for (std::int64_t i = threadIdx.x; i < views.n; i += blockDim.x) {
        const double b = at[kB] ? number(at[kB], kB, i) : 1.0;
        const Gradients d = gradients(number(at[kX], kX, i), b, sum, scale, at[kSecond] != nullptr);
        if (at[kSecond]) put(at[kSecond], kSecond, i, d.x);
        if (at[kThird]) put(at[kThird], kThird, i, d.b);
      }
    } else if (threadIdx.x == 0 && what == cuda::Weighted::mean) {
      const double count = at[kFirst] ? *reinterpret_cast<const double*>(at[kFirst]) : static_cast<double>(views.n);
      put(at[kSecond], kSecond, 0, log_of_mean(sum, count));
      if (at[kThird]) put(at[kThird], kThird, 0, sign_of(sum));
    } else if (threadIdx.x == 0) {
      const bool finite = special == 0.0 && sum.m != inf && special_along == 0.0;
      put(at[kThird], kThird, 0, finite ? quotient(along, sum) : Limits<double>::nan());
    }
  });
}

template <class S>
cudaError_t WeightedRowsOf<S>::run(cuda::Weighted what, const cuda::RowViews<cuda::kWeightedViews>& views,
                                   cudaStream_t stream) {
  const std::int64_t pieces = (views.n + kPieceElements - 1) / kPieceElements;
  unsigned width = 1;
  while (width < kRowWarps && width < pieces) width *= 2;
  arch::Launch how;
  how.grid = dim3(unsigned(views.rows < 0x7fffffff ? views.rows : 0x7fffffff));
  how.block = dim3(width * arch::lane_count);
  how.dynamic_shared = sizeof(WeightedBoard);
  how.stream = stream;
  return arch::launch(weighted_rows<S>, how, views, what);
}

}  // namespace sumexp::SUMEXP_NS
