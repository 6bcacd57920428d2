// The operations as a warp carries them out on one chunk. All have the same shape, so that one set of kernels
// (kernels.cuh) serves them:
//
//   Reduction    what the operation does to a chunk first; kernels that do no more are shared by all that have the same
//     Inputs     what may have to be done to elements on their way (tile_io.cuh)
//     kMaxWarps  of a block: what 64 K registers allow. A chunk in registers takes 64 of them for each kept float
//                input, 32 for each double one
//     kInputs    elementwise ones
//     kKept      of them stay in registers between reduce and map; 0: map reads again, a lane row at a time
//     kPasses    reductions before the result (softmax_hvp: 2)
//     reduce<pass>(io, v, row) -> State    reads the chunk and reduces it, leaves in v what map wants
//   Finish       from the row's state to what is left of it, the same for all storage types of one compute type T
//     finish(state, row, pass, factor),  kRowOutput: one value a row, emit(out, row, has_sign), instead of elements
//   remake(io, v, maximum)               what reduce left in v again, given the chunk's maximum
//   finish<pass>(state, row, factor)     as Finish has it, or less where the storage type needs less
//   map(io, v, maximum, row)
// where v is T[kHeld][kRows][Tile<S>::kValues], kHeld the larger of kKept and 1.
#pragma once

#include "../ops/log_softmax.hpp"
#include "../ops/logsumexp.hpp"
#include "../ops/softmax.hpp"
#include "exp_chunk.cuh"
#include "tile_io.cuh"

namespace sumexp::SUMEXP_NS {

// -- ops on logits: the exponential state, then a map from probabilities (kApart false) or from logits ----------------

template <class S, bool kApart_>
struct ExpReduction {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpState<T>;
  struct Row {};  // which the reduction does not read, so that operations with different ones share it
  using Inputs = LogitInputs;
  static constexpr bool kApart = kApart_;  // the maximum is kept out of the sum
  static constexpr int kInputs = 1, kKept = 1, kHeld = 1, kPasses = 1;
  static constexpr int kMaxWarps = 16;

  template <int pass, int kRows, class Io, class AnyRow>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const AnyRow&) {
    io.load(0, v[0], -Limits<T>::infinity);
    return exp_chunk<S, kApart, !kApart>(v[0]);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
};

// What an op on logits says of itself: kApart, kRowOutput, Row, finish; and map, of a probability or a logit, `g` the
// row's number if it has one (kRowInput), or emit. Forward: itself, or the op whose Row and finish it has.
struct SoftmaxBody {
  using Forward = SoftmaxBody;
  static constexpr bool kApart = false, kRowOutput = false, kRowInput = false;
  template <class T>
  using Row = SoftmaxRow<T>;
  template <class Terms, class T>
  SUMEXP_DEVICE static Row<T> finish(const ExpState<T>& state) {
    return softmax_finish<Terms>(state);
  }
  template <class T>
  SUMEXP_DEVICE static T map(T y, const Row<T>&, T) {
    return y;
  }
};
struct LogSumExpVjpBody : SoftmaxBody {
  static constexpr bool kRowInput = true;
  template <class T>
  SUMEXP_DEVICE static T map(T y, const Row<T>&, T g) {
    return quiet(y * g);
  }
};
struct LogSoftmaxBody {
  using Forward = LogSoftmaxBody;
  static constexpr bool kApart = true, kRowOutput = false, kRowInput = false;
  template <class T>
  using Row = LogSoftmaxRow<T>;
  template <class Terms, class T>
  SUMEXP_DEVICE static Row<T> finish(const ExpState<T>& state) {
    return log_softmax_finish(state);
  }
  template <class T>
  SUMEXP_DEVICE static T map(T x, const Row<T>& row, T) {
    return log_probability(x, row.m, row.L);
  }
};
struct LogSumExpBody {
  using Forward = LogSumExpBody;
  static constexpr bool kApart = true, kRowOutput = true, kRowInput = false;
  template <class T>
  struct Row {
    T value;
  };
  template <class Terms, class T>
  SUMEXP_DEVICE static Row<T> finish(const ExpState<T>& state) {
    return {logsumexp_finish(state)};
  }
  template <class Out, class T>
  SUMEXP_DEVICE static void emit(const Out& out, const Row<T>& row, bool) {
    out.put(cuda::kOut, row.value);
  }
};

template <class T_, class Forward>
struct LogitsFinish : Forward {
  using T = T_;
  using State = ExpState<T>;
  using Row = typename Forward::template Row<T>;
  SUMEXP_DEVICE static void finish(const State& state, Row& row, int, T) {
    row = Forward::template finish<FullTerms>(state);
  }
};

template <class S, class Body>
struct LogitsOf : ExpReduction<S, Body::kApart> {
  using Reduction = ExpReduction<S, Body::kApart>;
  using T = Compute<S>;
  using L = Tile<S>;
  using Finish = LogitsFinish<T, typename Body::Forward>;
  using Row = typename Finish::Row;
  static constexpr bool kRowOutput = Body::kRowOutput;

  template <int kRows, class Io>
  SUMEXP_DEVICE static void remake(Io& io, T (&v)[1][kRows][L::kValues], T maximum) {
    io.load(0, v[0], -Limits<T>::infinity);
    if constexpr (!Body::kApart) exp_terms<S>(v[0], maximum);
  }
  template <int pass>
  SUMEXP_DEVICE static void finish(const ExpState<T>& state, Row& row, T) {
    row = Body::template finish<TermsOf<S>>(state);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[1][kRows][L::kValues], T maximum, const Row& row) {
    if (io.wrote_nan(row.nan)) return;
    T g = T(0);
    if constexpr (Body::kRowInput) {
      if (io.count() > 0) g = io.row_value(1);
    }
    const auto each = [&](auto of) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) v[0][r][i] = of(v[0][r][i]);
    };
    if constexpr (Body::kApart) {
      each([&](T x) { return row.nan ? Limits<T>::nan() : Body::map(x, row, g); });
    } else {
      using Terms = TermsOf<S>;
      TermScale<T> k = term_scale<Terms>(row, maximum);
      T down = static_cast<T>(kCarryDown<T>);
      if (k.far) {  // rare: probabilities already, which the loop below multiplies by 1
        each([&](T term) { return probability_far(term, k.h, k.l, k.before, k.after); });
        k.h = down = T(1);
        k.l = T(0);
      }
      each([&](T term) {
        T y;
        if constexpr (Terms::kShort) y = term * k.h;
        else y = pick(equal(term, k.top_term), k.top, fma(term, k.h, term * k.l) * down);
        return row.nan ? Limits<T>::nan() : Body::map(y, row, g);
      });
    }
    io.template store<!Body::kRowInput>(v[0]);
  }
};

template <class S> using SoftmaxOp = LogitsOf<S, SoftmaxBody>;
template <class S> using LogSoftmaxOp = LogitsOf<S, LogSoftmaxBody>;
template <class S> using LogSumExpOp = LogitsOf<S, LogSumExpBody>;
template <class S> using LogSumExpVjpOp = LogitsOf<S, LogSumExpVjpBody>;

// -- weighted sums of terms ---------------------------------------------------------------------------------------------

// logsumexp with weights, in1 = b: weighted terms are added in the wide type (weights may cancel).
template <class T_>
struct WeightedLogSumExpFinish {
  using T = T_;
  using State = ExpState<T>;
  using Row = Signed<T>;
  static constexpr bool kRowOutput = true;
  SUMEXP_DEVICE static void finish(const State& state, Row& row, int, T) { row = logsumexp_finish_signed(state); }
  template <class Out>
  SUMEXP_DEVICE static void emit(const Out& out, const Row& row, bool has_sign) {
    const bool negative = !has_sign && row.sign < T(0);
    out.put(cuda::kOut, negative ? Limits<T>::nan() : row.value);
    if (has_sign) out.put(cuda::kSign, row.sign);
  }
};
template <class S>
struct WeightedLogSumExpOp {
  using Reduction = WeightedLogSumExpOp;
  using T = Compute<S>;
  using L = Tile<S>;
  using W = Wide<T>;
  using Finish = WeightedLogSumExpFinish<T>;
  using State = ExpState<T>;
  using Row = Signed<T>;
  using Inputs = WeightedInputs;
  static constexpr int kInputs = 2, kKept = 1, kHeld = 1, kPasses = 1;  // weights stay in shared memory: never packed
  static constexpr int kMaxWarps = 8;
  static constexpr bool kRowOutput = true;

  SUMEXP_DEVICE static double product(float t, float b) { return static_cast<double>(t) * static_cast<double>(b); }
  SUMEXP_DEVICE static DD<double> product(double t, double b) { return two_product(t, b); }

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const Row&) {
    using O = WideOf<T>;
    io.load(0, v[0], -Limits<T>::infinity);
    ExpState<T> state = exp_chunk<S, true, true>(v[0]);
    io.load_beside(1, v[0], T(0));
    W c[L::kValues], R[L::kValues];
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) c[i] = R[i] = O::constant(0);
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      T term[L::kValues], b[L::kValues];
      io.both_rows(r, term, b);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        const bool of_max = term[i] == kOfMaximum<T>;
        c[i] = c[i] + O::from(T(of_max ? b[i] : T(0)));
        R[i] = R[i] + product(T(of_max ? T(0) : term[i]), T(of_max ? T(0) : b[i]));
      }
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
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T factor) {
    Finish::finish(state, row, pass, factor);
  }
};

// logsumexp JVP: in x, t
template <class T_>
struct LogSumExpJvpFinish {
  using T = T_;
  using State = ExpDotState<T>;
  struct Row {
    T value;
  };
  static constexpr bool kRowOutput = true;
  SUMEXP_DEVICE static void finish(const State& state, Row& row, int, T) { row.value = logsumexp_jvp_finish(state); }
  template <class Out>
  SUMEXP_DEVICE static void emit(const Out& out, const Row& row, bool) {
    out.put(cuda::kOut, row.value);
  }
};
template <class S>
struct LogSumExpJvpOp {
  using Reduction = LogSumExpJvpOp;
  using T = Compute<S>;
  using L = Tile<S>;
  using Finish = LogSumExpJvpFinish<T>;
  using State = ExpDotState<T>;
  using Row = typename Finish::Row;
  using Inputs = PlainInputs;
  static constexpr int kInputs = 2, kKept = 2, kHeld = 2, kPasses = 1;
  static constexpr int kMaxWarps = 8;
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
  SUMEXP_DEVICE static void finish(const State& state, Row& row, T factor) {
    Finish::finish(state, row, pass, factor);
  }
};

// -- every op of ops/sums.hpp -------------------------------------------------------------------------------------------

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

template <class T_, int kSums, int kPasses>
struct SumsFinish {
  using T = T_;
  using State = SumsState<T, kSums>;
  struct Row {
    RowScalars<T> sums;
    T factor;
  };
  static constexpr bool kRowOutput = false;
  static constexpr int kScalars = kSums * kPasses < RowScalars<T>::kMax ? kSums * kPasses : RowScalars<T>::kMax;
  SUMEXP_DEVICE static void finish(const State& state, Row& row, int pass, T factor) {
#pragma unroll
    for (int at = 0; at < kScalars; ++at)
      if (kPasses == 1 || at / kSums == pass) WideOf<T>::split(state.sum[at % kSums], row.sums.h[at], row.sums.l[at]);
    row.factor = factor;
  }
};

template <class S, class Op>
struct SumsOf {
  using Reduction = SumsOf;
  using T = Compute<S>;
  using L = Tile<S>;
  using Finish = SumsFinish<T, Op::kSums, Op::kPasses>;
  using State = typename Finish::State;
  using Row = typename Finish::Row;
  using Inputs = PlainInputs;
  static constexpr int kInputs = Op::kInputs, kPasses = Op::kPasses;
  static constexpr bool kRowOutput = false;
  // 128 registers of row are what a thread can carry
  static constexpr int kKept = sizeof(T) == 8 || kInputs <= 2 ? kInputs : 0;
  static constexpr int kHeld = kKept > 0 ? kKept : 1;
  static constexpr int kMaxWarps = kKept > 0 ? 8 : 16;

  // body(x) for every lane row, x[k] those of the inputs: from registers, unrolled, or from memory in a loop over the lane
  // rows that there are. body changes x[0] to the result.
  template <bool kStores, int kRows, class Io, class Body>
  SUMEXP_DEVICE static void each_row(Io& io, T (&v)[kHeld][kRows][L::kValues], Body body) {
    T x[kInputs][1][L::kValues];
    if constexpr (kKept > 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k)
#pragma unroll
          for (int i = 0; i < L::kValues; ++i) x[k][0][i] = v[k][r][i];
        body(x);
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) v[0][r][i] = x[0][0][i];
      }
      if constexpr (kStores) io.store(v[0]);
    } else {
      const int rows = io.lane_rows();
#pragma unroll 1
      for (int r = 0; r < rows; ++r) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) io.load_row(k, r, x[k], T(0));
        body(x);
        if constexpr (kStores) io.store_row(r, x[0]);
      }
    }
  }

  template <int pass, int kRows, class Io>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[kHeld][kRows][L::kValues], const Row& row) {
    if constexpr (pass == 0) remake(io, v, T(0));
    T acc[Op::kSums][L::kValues][1] = {};
    each_row<false>(io, v, [&](const T (&x)[kInputs][1][L::kValues]) {
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        T a[Op::kSums], in[kInputs];
#pragma unroll
        for (int k = 0; k < Op::kSums; ++k) a[k] = acc[k][i][0];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) in[k] = x[k][0][i];
        Op::template add<pass>(a, in, row.sums);
#pragma unroll
        for (int k = 0; k < Op::kSums; ++k) acc[k][i][0] = a[k];
      }
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
    Finish::finish(state, row, pass, factor);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[kHeld][kRows][L::kValues], T, const Row& row) {
    each_row<true>(io, v, [&](T (&x)[kInputs][1][L::kValues]) {
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        T in[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) in[k] = x[k][0][i];
        x[0][0][i] = quiet(Op::map(in, row.sums) * row.factor);
      }
    });
  }
};

template <class S> using SoftmaxVjpOp = SumsOf<S, SoftmaxVjp>;
template <class S> using SoftmaxHvpOp = SumsOf<S, SoftmaxHvp>;
template <class S> using LogSoftmaxVjpOp = SumsOf<S, LogSoftmaxVjp>;
template <class S> using LogSoftmaxJvpOp = SumsOf<S, LogSoftmaxJvp>;
template <class S> using LogSoftmaxHvpOp = SumsOf<S, LogSoftmaxHvp>;

}  // namespace sumexp::SUMEXP_NS
