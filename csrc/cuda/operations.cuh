// The operations as a warp carries them out on one chunk, over the term functions of ops/. All have the
// same shape, so that one set of kernels (kernels.cuh) serves them:
//
//   kMaxWarps    of a block: what 64 K registers allow. A chunk in registers takes 64 of them for each kept float
//                input, 32 for each double one; a refinement at the chunk takes some more
//   kSecondLook  reduce may sum a chunk twice (exp_chunk.cuh), which takes registers
//   kKept        inputs that stay in registers between reduce and map; 0: map reads again
//   kPasses      reductions before the result (softmax_hvp: 2)
//   kRowOutput   one value a row (emit) instead of elements (map)
//   reduce<pass>(travel, v, row) -> State    reads the chunk and reduces it, leaves in v what map wants
//   remake(travel, v, maximum)               the same v again, given the chunk's maximum
//   finish<pass>(state, row, factor),  map(travel, v, maximum, row),  emit(travel, row)
// where v is T[kKept][kRows][Tile<S>::kValues].
#pragma once

#include "../ops/log_softmax.hpp"
#include "../ops/logsumexp.hpp"
#include "../ops/softmax.hpp"
#include "exp_chunk.cuh"
#include "job.hpp"

namespace sumexp::SUMEXP_NS {

template <class S>
struct SoftmaxOp {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpState<T>;
  using Row = SoftmaxRow<T>;
  static constexpr int kInputs = 1, kKept = 1, kPasses = 1;
  static constexpr int kMaxWarps = 16;
  static constexpr bool kSecondLook = false;
  static constexpr bool kRowOutput = false;

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const Row&) {
    io.load(0, v[0], -Limits<T>::infinity);
    return exp_chunk<S, false, true>(v[0]);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void remake(Io& io, T (&v)[1][kRows][L::kValues], T maximum) {
    io.load(0, v[0], -Limits<T>::infinity);
    exp_terms<S>(v[0], maximum);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T) {
    row = softmax_finish<TermsOf<S>>(state);
  }

  // last(y) for each probability y; kNumbers: that makes no NaN
  template <bool kNumbers, int kRows, class Io, class Last>
  SUMEXP_DEVICE static void scale(Io& io, T (&v)[1][kRows][L::kValues], T maximum, const Row& row, Last last) {
    if (io.wrote_nan(row.nan)) return;
    const TermScale<T> k = term_scale<TermsOf<S>>(row, maximum);
    const auto each = [&](auto probability_of) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < L::kValues; ++i)
          v[0][r][i] = row.nan ? Limits<T>::nan() : last(probability_of(v[0][r][i]));
    };
    if (k.far) {
      each([&](T term) { return probability_far(term, k.h, k.l, k.before, k.after); });
    } else {
      each([&](T term) { return probability<TermsOf<S>>(term, k.h, k.l, k.top_term, k.top); });
    }
    io.template store<kNumbers>(v[0]);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[1][kRows][L::kValues], T maximum, const Row& row) {
    scale<true>(io, v, maximum, row, [](T y) { return y; });
  }
};

template <class S>
struct LogSumExpVjpOp : SoftmaxOp<S> {
  using T = Compute<S>;
  using L = Tile<S>;
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[1][kRows][L::kValues], T maximum, const SoftmaxRow<T>& row) {
    const T g = io.count() > 0 ? widen(*io.row_value(1)) : T(0);
    SoftmaxOp<S>::template scale<false>(io, v, maximum, row, [=](T y) { return quiet(y * g); });
  }
};

template <class S>
struct LogSoftmaxOp {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpState<T>;
  using Row = LogSoftmaxRow<T>;
  static constexpr int kInputs = 1, kKept = 1, kPasses = 1;
  static constexpr int kMaxWarps = 16;
  static constexpr bool kSecondLook = !TermsOf<S>::kShort;
  static constexpr bool kRowOutput = false;

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const Row&) {
    io.load(0, v[0], -Limits<T>::infinity);
    return exp_chunk<S, true, false>(v[0]);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void remake(Io& io, T (&v)[1][kRows][L::kValues], T) {
    io.load(0, v[0], -Limits<T>::infinity);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T) {
    row = log_softmax_finish(state);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[1][kRows][L::kValues], T, const Row& row) {
    if (io.wrote_nan(row.nan)) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i)
        v[0][r][i] = row.nan ? Limits<T>::nan() : log_probability(v[0][r][i], row.m, row.L);
    io.template store<true>(v[0]);
  }
};

template <class S>
struct LogSumExpOp {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpState<T>;
  struct Row {
    T value;
  };
  static constexpr int kInputs = 1, kKept = 1, kPasses = 1;
  static constexpr int kMaxWarps = 16;
  static constexpr bool kSecondLook = !TermsOf<S>::kShort;
  static constexpr bool kRowOutput = true;

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const Row&) {
    io.load(0, v[0], -Limits<T>::infinity);
    return exp_chunk<S, true, false>(v[0]);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T) {
    row.value = logsumexp_finish(state);
  }
  template <class Io>
  SUMEXP_DEVICE static void emit(Io& io, const Row& row, bool) {
    *io.row_value(cuda::kOut) = Narrow<S>::from(row.value);
  }
};

// logsumexp with weights, in1 = b: weighted terms are added in the wide type (weights may cancel).
template <class S>
struct WeightedLogSumExpOp {
  using T = Compute<S>;
  using L = Tile<S>;
  using W = Wide<T>;
  using State = ExpState<T>;
  using Row = Signed<T>;
  static constexpr int kInputs = 2, kKept = 2, kPasses = 1;
  static constexpr int kMaxWarps = 8;
  static constexpr bool kSecondLook = false;
  static constexpr bool kRowOutput = true;

  SUMEXP_DEVICE static double product(float t, float b) { return static_cast<double>(t) * static_cast<double>(b); }
  SUMEXP_DEVICE static DD<double> product(double t, double b) { return two_product(t, b); }

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[2][kRows][L::kValues], const Row&) {
    using O = WideOf<T>;
    io.load(0, v[0], -Limits<T>::infinity);
    const T m = chunk_max<S>(v[0]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v[1][r][i] = v[0][r][i];
    State state = exp_chunk<S, true, true>(v[1]);
    const T of_max = T(-1);  // no term is negative: marks those of the maximum
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v[0][r][i] = v[0][r][i] == m ? of_max : v[1][r][i];
    io.load(1, v[1], T(0));
    W c[L::kValues], R[L::kValues];
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) c[i] = R[i] = O::constant(0);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        const T term = v[0][r][i], b = v[1][r][i];
        c[i] = c[i] + O::from(T(term == of_max ? b : T(0)));
        R[i] = R[i] + product(T(term == of_max ? T(0) : term), T(term == of_max ? T(0) : b));
      }
    const W weights = fold_wide<S>(c), rest = fold_wide<S>(R);
    if (state.m == -Limits<T>::infinity) return state;
    state.c = weights;
    if (!is_finite(state.m) || is_nan(state.R)) return state;
    state.R = rest * anchor_factor(base_of(state.m));
    return state;
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T) {
    row = logsumexp_finish_signed(state);
  }
  template <class Io>
  SUMEXP_DEVICE static void emit(Io& io, const Row& row, bool has_sign) {
    const bool negative = !has_sign && row.sign < T(0);
    *io.row_value(cuda::kOut) = Narrow<S>::from(negative ? Limits<T>::nan() : row.value);
    if (has_sign) *io.row_value(cuda::kSign) = Narrow<S>::from(row.sign);
  }
};

// logsumexp JVP: in x, t
template <class S>
struct LogSumExpJvpOp {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpDotState<T>;
  struct Row {
    T value;
  };
  static constexpr int kInputs = 2, kKept = 2, kPasses = 1;
  static constexpr int kMaxWarps = 8;
  static constexpr bool kSecondLook = false;
  static constexpr bool kRowOutput = true;

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[2][kRows][L::kValues], const Row&) {
    io.load(0, v[0], -Limits<T>::infinity);
    io.load(1, v[1], T(0));
    State state = {exp_chunk<S, false, true>(v[0]), WideOf<T>::constant(0)};
    T dot[L::kValues][1] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) dot[i][0] = fma(v[0][r][i] * T(kCarryDown<T>), v[1][r][i], dot[i][0]);
    const Wide<T> sum = fold_lanes<S>(dot);
    if (is_finite(state.sum.m)) state.dot = sum * anchor_factor(base_of(state.sum.m));
    return state;
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.sum.m; }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T) {
    row.value = logsumexp_jvp_finish(state);
  }
  template <class Io>
  SUMEXP_DEVICE static void emit(Io& io, const Row& row, bool) {
    *io.row_value(cuda::kOut) = Narrow<S>::from(row.value);
  }
};

// Every op of ops/sums.hpp.
template <class T, int kSums>
struct SumsState {
  Wide<T> sum[kSums];

  SUMEXP_DEVICE static SumsState empty() {
    SumsState state;
#pragma unroll
    for (int k = 0; k < kSums; ++k) state.sum[k] = WideOf<T>::constant(0);
    return state;
  }
};
template <class T, int kSums>
SUMEXP_DEVICE SumsState<T, kSums> merge(const SumsState<T, kSums>& a, const SumsState<T, kSums>& b) {
  SumsState<T, kSums> state;
#pragma unroll
  for (int k = 0; k < kSums; ++k) state.sum[k] = a.sum[k] + b.sum[k];
  return state;
}

template <class S, class Op>
struct SumsOf {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = SumsState<T, Op::kSums>;
  struct Row {
    RowScalars<T> sums;
    T factor;
  };
  static constexpr int kInputs = Op::kInputs, kPasses = Op::kPasses;
  static constexpr bool kRowOutput = false;
  // 128 registers of row are what a thread can carry
  static constexpr int kKept = sizeof(T) == 8 || kInputs <= 2 ? kInputs : 0;
  static constexpr int kHeld = kKept > 0 ? kKept : 1;
  static constexpr int kMaxWarps = kKept > 0 ? 8 : 16;
  static constexpr bool kSecondLook = false;

  // One lane row's contributions to the sums.
  template <int pass>
  SUMEXP_DEVICE static void add_row(T (&acc)[Op::kSums][L::kValues][1], const T (&x)[kInputs][L::kValues], const Row& row) {
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      T a[Op::kSums], in[kInputs];
#pragma unroll
      for (int k = 0; k < Op::kSums; ++k) a[k] = acc[k][i][0];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) in[k] = x[k][i];
      Op::template add<pass>(a, in, row.sums);
#pragma unroll
      for (int k = 0; k < Op::kSums; ++k) acc[k][i][0] = a[k];
    }
  }
  SUMEXP_DEVICE static T result(const T (&in)[kInputs], const Row& row) {
    return quiet(Op::map(in, row.sums) * row.factor);
  }
  // Lane row r of every input, from registers or from memory.
  template <int kRows, class Io>
  SUMEXP_DEVICE static void take_row(Io& io, const T (&v)[kHeld][kRows][L::kValues], int r, T (&x)[kInputs][L::kValues]) {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      if constexpr (kKept == 0) {
        io.load_row(k, r, x[k], T(0));
      } else {
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) x[k][i] = v[k][r][i];
      }
    }
  }
  // body(r) for every lane row: unrolled where r indexes registers, a loop where it does not.
  template <int kRows, class Body>
  SUMEXP_DEVICE static void each_row(Body body) {
    if constexpr (kKept > 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) body(r);
    } else {
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) body(r);
    }
  }

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[kHeld][kRows][L::kValues], const Row& row) {
    if constexpr (kKept > 0 && pass == 0) remake(io, v, T(0));
    T acc[Op::kSums][L::kValues][1] = {};
    each_row<kRows>([&](int r) {
      T x[kInputs][L::kValues];
      take_row(io, v, r, x);
      add_row<pass>(acc, x, row);
    });
    State state;
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k) state.sum[k] = fold_lanes<S>(acc[k]);
    return state;
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void remake(Io& io, T (&v)[kHeld][kRows][L::kValues], T) {
    if constexpr (kKept > 0) {
#pragma unroll
      for (int k = 0; k < kInputs; ++k) io.load(k, v[k], T(0));
    }
  }
  SUMEXP_DEVICE static T maximum(const State&) { return T(0); }
  template <int pass>
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T factor) {
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k)
      if (pass * Op::kSums + k < RowScalars<T>::kMax)
        WideOf<T>::split(state.sum[k], row.sums.h[pass * Op::kSums + k], row.sums.l[pass * Op::kSums + k]);
    row.factor = factor;
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[kHeld][kRows][L::kValues], T, const Row& row) {
    each_row<kRows>([&](int r) {
      T x[kInputs][L::kValues], y[L::kValues];
      take_row(io, v, r, x);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        T in[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) in[k] = x[k][i];
        y[i] = result(in, row);
        if constexpr (kKept > 0) v[0][r][i] = y[i];
      }
      if constexpr (kKept == 0) io.store_row(r, y);
    });
    if constexpr (kKept > 0) io.store(v[0]);
  }
};

template <class S> using SoftmaxVjpOp = SumsOf<S, SoftmaxVjp>;
template <class S> using SoftmaxHvpOp = SumsOf<S, SoftmaxHvp>;
template <class S> using LogSoftmaxVjpOp = SumsOf<S, LogSoftmaxVjp>;
template <class S> using LogSoftmaxJvpOp = SumsOf<S, LogSoftmaxJvp>;
template <class S> using LogSoftmaxHvpOp = SumsOf<S, LogSoftmaxHvp>;

}  // namespace sumexp::SUMEXP_NS
