// The adapters: an op of ops/table.hpp, of one of the three families of ops/op.hpp, as a warp carries it out on one chunk. All
// have the same shape, so that one set of kernels (kernels.cuh) serves them:
//
//   Reduction    what the op does to a chunk first; kernels that do no more are shared by all ops that have the same
//     Inputs     what may have to be done to elements when they are loaded (tile_io.cuh)
//     kMaxWarps  of a block: what 64 K registers allow. A chunk in registers takes 64 of them for each kept float
//                input, 32 for each double one
//     kInputs    elementwise ones
//     kKept      of them stay in registers between reduce and map; 0: map reads again, a lane row at a time
//     kPasses    reductions before the result (softmax_hvp: 2)
//     reduce<pass>(io, v, row) -> State    reads the chunk and reduces it, leaves in v what map wants
//   Finish       from the row's state to what is left of it, the same for all storage types of one compute type T
//     finish<Terms>(io, state, row, pass, factor)    Terms: as the storage type has them, or FullTerms for any
//     kRowOutput: one value a row, emit(io, row, has_sign), instead of elements
//   remake(io, v, maximum)               what reduce left in v again, given the chunk's maximum
//   map(io, v, maximum, row)
//   kFinishReads   finish reads elements, which map may write to
//   kDivides       elements may be divided by a temperature
// where v is T[kHeld][kRows][Tile<S>::kValues], kHeld the larger of kKept and 1.
#pragma once

#include "formats.cuh"  // first: the ops take `quiet` from it

#include "../ops/table.hpp"
#include "exp_chunk.cuh"
#include "tile_io.cuh"

namespace sumexp::SUMEXP_NS {

// -- LogitsOp: the exponential state, then a map from probabilities or from logits -------------------------------------

template <class S, bool kApart>
struct ExpReduction {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = ExpState<T>;
  // The reduction reads no row, and takes whatever may happen to logits: ops share it.
  struct Row {};
  using Inputs = InputsOf<true, true, false>;
  static constexpr int kInputs = 1, kKept = 1, kHeld = 1, kPasses = 1;
  static constexpr int kMaxWarps = 16;

  template <int pass, int kRows, class Io, class AnyRow>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[1][kRows][L::kValues], const AnyRow&) {
    io.load(0, v[0], -Limits<T>::infinity);
    return exp_chunk<S, kApart, !kApart>(v[0]);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.m; }
};

// What an op's finish takes beside the sum: of ops with kIndex the logit there, NaN for an index of no element.
template <class Op, class Io>
SUMEXP_DEVICE auto row_input_of(const Io& io) {
  if constexpr (Op::kIndex) return io.template element_at_index<Op::kRowInput>();
  else return io.template row_input<Op::kRowInput>();
}

// Of ops that start from probabilities: the sum alone, so that they share it; map adds what is an op's own.
template <class T_>
struct ProbabilityFinish {
  using T = T_;
  using State = ExpState<T>;
  struct Row {
    Normalizer<T> normalizer;
    RowSum<T> sum;
    bool nan;  // every output is NaN
  };
  static constexpr bool kRowOutput = false;
  template <class Terms, class Io>
  SUMEXP_DEVICE static void finish(const Io&, const State& state, Row& row, int, const TemperatureFactor<T>&) {
    row = {normalizer<Terms>(state), row_sum(state), is_special<LogitsOp>(state)};
  }
};
// Of those that also look at one element: before the first result is written, which may be to the inputs' place.
template <class T_, class Op>
struct IndexedFinish {
  using T = T_;
  using State = ExpState<T>;
  struct Row {
    Normalizer<T> normalizer;
    typename Op::template Row<T> own;
    bool nan;
  };
  static constexpr bool kRowOutput = false;
  template <class Terms, class Io>
  SUMEXP_DEVICE static void finish(const Io& io, const State& state, Row& row, int, const TemperatureFactor<T>&) {
    const T at_index = row_input_of<Op>(io);
    row = {normalizer<Terms>(state), Op::finish(row_sum(state), at_index), is_special<Op>(state)};
    if (!row.nan) row.nan = !io.template has_index<Op::kRowInput>();
  }
};
// Of the others.
template <class T_, class Op>
struct LogitsFinish {
  using T = T_;
  using State = ExpState<T>;
  struct Row {
    typename Op::template Row<T> own;
    bool nan;
  };
  static constexpr bool kRowOutput = Op::kRowOutput;
  template <class Terms, class Io>
  SUMEXP_DEVICE static void finish(const Io& io, const State& state, Row& row, int, const TemperatureFactor<T>&) {
    row.nan = is_special<Op>(state);
    if (!row.nan) {
      row.own = Op::finish(row_sum(state), row_input_of<Op>(io));
    } else if constexpr (kRowOutput) {
      row.own = {Op::special(state.m, is_nan(state.R))};
    }
  }
  template <class Io>
  SUMEXP_DEVICE static void emit(const Io& io, const Row& row, bool) {
    const T result = Op::emit(row.own);
    io.put(cuda::kOut, Op::kIndex ? quiet(result) : result);
  }
};

template <class S, class Op>
struct LogitsOf : ExpReduction<S, Op::kApart> {
  using Reduction = ExpReduction<S, Op::kApart>;
  using T = Compute<S>;
  using L = Tile<S>;
  using Terms = TermsOf<S>;
  using Finish = std::conditional_t<!Op::kProbability, LogitsFinish<T, Op>,
                                    std::conditional_t<Op::kIndex, IndexedFinish<T, Op>, ProbabilityFinish<T>>>;
  using Row = typename Finish::Row;
  static constexpr bool kRowOutput = Op::kRowOutput;
  // Terms that are made again beside what the row holds, and the way to an element of doubles, take more than the 128 registers
  // that 16 warps leave.
  static constexpr int kMaxWarps = (Op::kProbability && Op::kApart) || (Op::kIndex && sizeof(T) == 8) ? 8 : 16;
  static constexpr bool kFinishReads = Op::kIndex;  // elements: they may not be written to until all have finished
  static constexpr bool kDivides = Op::kTemperature == kOfLogits;

  template <int kRows, class Io>
  SUMEXP_DEVICE static void remake(Io& io, T (&v)[1][kRows][L::kValues], T maximum) {
    io.load(0, v[0], -Limits<T>::infinity);
    if constexpr (Op::kProbability && !Op::kApart) exp_terms<S>(v[0], maximum);
  }
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[1][kRows][L::kValues], T maximum, const Row& row) {
    bool nan = row.nan;
    if constexpr (Op::kZeroOfNothing) nan = is_special<Op>(row.sum);
    if constexpr (!Op::kExtra) {
      if (io.wrote_nan(nan)) return;
    }
    const auto each = [&](auto of) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) v[0][r][i] = of(v[0][r][i]);
    };
    if constexpr (Op::kProbability) {
      if constexpr (Op::kApart) exp_terms<S>(v[0], maximum);  // the reduction, which leaves logits, is that of all such ops
      typename Op::template Row<T> own;
      if constexpr (Op::kIndex) own = row.own;
      else own = Op::finish(row.sum, row_input_of<Op>(io));
      const ChunkScale<T> chunk = chunk_scale<Terms>(row.normalizer, maximum);
      TermScale<T> scale = chunk.near;
      if (chunk.far) {  // rare
        each([&](T term) { return far_term<Terms>(term, chunk); });
        scale = unit_scale<T>();
      }
      each([&](T term) { return nan ? Limits<T>::nan() : Op::map(probability<Terms>(term, scale), own); });
      if constexpr (Op::kIndex) {
        if (!nan) io.template set_at_index<Op::kRowInput>(v[0], Op::at_index(own));
        arch::warp_sync();  // all have read what they looked at
      }
      if constexpr (Op::kExtra) io.put_extra(nan ? Limits<T>::nan() : Op::extra(own));
    } else {
      each([&](T x) { return nan ? Limits<T>::nan() : Op::map(x, row.own); });
    }
    io.template store<(Op::kRowInput < 0)>(v[0]);  // without one, results of a row with a sum are numbers
  }
};

// -- WeightedOp: sums of terms times factors ---------------------------------------------------------------------------

template <class S, bool kExact, class Inputs_>
struct WeightedReduction {
  using T = Compute<S>;
  using L = Tile<S>;
  using State = std::conditional_t<kExact, WeightedState<T>, ExpDotState<T>>;
  struct Row {};
  using Inputs = Inputs_;
  static constexpr int kInputs = 2, kPasses = 1;
  static constexpr int kKept = kExact ? 1 : 2, kHeld = kKept;  // exact: factors stay in shared memory
  static constexpr int kMaxWarps = 8;

  template <int pass, int kRows, class Io, class AnyRow>
  SUMEXP_DEVICE static State reduce(Io& io, T (&v)[kHeld][kRows][L::kValues], const AnyRow&) {
    io.load(0, v[0], -Limits<T>::infinity);
    if constexpr (kExact) return exact(io, v);
    else return plain(io, v);
  }
  SUMEXP_DEVICE static T maximum(const State& state) { return state.sum.m; }

 private:
  // In the wide type, with the factors of the maxima apart.
  template <int kRows, class Io>
  SUMEXP_DEVICE static State exact(Io& io, T (&v)[kHeld][kRows][L::kValues]) {
    using O = WideOf<T>;
    using W = Wide<T>;
    State to = {exp_chunk<S, true, true>(v[0]), 0.0};
    ExpState<T>& state = to.sum;
    io.load_beside(1, v[0], T(0));
    W c[L::kValues], R[L::kValues];
    bool above = false, below = false, nan = false;  // is a weight infinite, or NaN
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) c[i] = R[i] = O::constant(0);
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      T term[L::kValues], f[L::kValues];
      io.both_rows(r, term, f);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        above = above || f[i] == Limits<T>::infinity;
        below = below || f[i] == -Limits<T>::infinity;
        nan = nan || f[i] != f[i];
        const bool of_max = term[i] == kOfMaximum<T>, finite = is_finite(f[i]);
        c[i] = c[i] + O::from(T(of_max && finite ? f[i] : T(0)));
        R[i] = R[i] + product(T(of_max ? T(0) : term[i]), T(of_max || !finite ? T(0) : f[i]));
      }
    }
    if (arch::any(above)) to.special = to.special + Limits<double>::infinity;
    if (arch::any(below)) to.special = to.special - Limits<double>::infinity;
    if (arch::any(nan)) to.special = to.special + Limits<double>::nan();
    const W factors = fold_wide<S>(c), rest = fold_wide<S>(R);
    if (state.m == -Limits<T>::infinity) return to;
    state.c = factors;
    if (!is_finite(state.m) || is_nan(state.R)) return to;
    state.R = rest * anchor_factor(base_of(state.m));
    return to;
  }
  SUMEXP_DEVICE static double product(float t, float f) { return static_cast<double>(t) * static_cast<double>(f); }
  SUMEXP_DEVICE static DD<double> product(double t, double f) { return two_product(t, f); }

  // In T, beside the sum of the terms.
  template <int kRows, class Io>
  SUMEXP_DEVICE static State plain(Io& io, T (&v)[kHeld][kRows][L::kValues]) {
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
};

template <class T_, class Op>
struct WeightedFinish {
  using T = T_;
  using State = typename Op::template State<T>;
  using Row = typename Op::template Row<T>;
  static constexpr bool kRowOutput = true;
  template <class Terms, class Io>
  SUMEXP_DEVICE static void finish(const Io&, const State& state, Row& row, int, const TemperatureFactor<T>&) {
    row = Op::finish(state);
  }
  template <class Io>
  SUMEXP_DEVICE static void emit(const Io& io, const Row& row, bool has_sign) {
    if (!has_sign) return io.put(cuda::kOut, Op::emit(row, static_cast<T*>(nullptr)));
    T sign = T(0);
    io.put(cuda::kOut, Op::emit(row, &sign));
    io.put(cuda::kExtra, sign);
  }
};

template <class S, class Op>
using WeightedReductionOf = WeightedReduction<S, Op::kExact, InputsOf<Op::kMask, Op::kTemperature == kOfLogits, Op::kExact>>;

template <class S, class Op>
struct WeightedOf : WeightedReductionOf<S, Op> {
  using Reduction = WeightedReductionOf<S, Op>;
  using Finish = WeightedFinish<Compute<S>, Op>;
  using Row = typename Finish::Row;
  static constexpr bool kRowOutput = true, kFinishReads = false, kDivides = false;
  static_assert(Op::kTemperature != kOfLogits, "rows with weights are not divided");
};

// -- SumsOp: sums of what add makes of the inputs, then a map -----------------------------------------------------------

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
    TemperatureFactor<T> factor;
  };
  static constexpr bool kRowOutput = false;
  static constexpr int kScalars = kSums * kPasses < RowScalars<T>::kMax ? kSums * kPasses : RowScalars<T>::kMax;
  template <class Terms, class Io>
  SUMEXP_DEVICE static void finish(const Io&, const State& state, Row& row, int pass, const TemperatureFactor<T>& factor) {
#pragma unroll
    for (int at = 0; at < kScalars; ++at)
      if (kPasses == 1 || at / kSums == pass) WideOf<T>::split(state.sum[at % kSums], row.sums.h[at], row.sums.l[at]);
    row.factor = factor;
  }
};

template <class S, class Op>
struct SumsOf {
  static_assert(!Op::kMask && Op::kRowInput < 0 && !Op::kRowOutput, "inputs and results are elementwise, without a mask");
  using Reduction = SumsOf;
  using T = Compute<S>;
  using L = Tile<S>;
  using Finish = SumsFinish<T, Op::kSums, Op::kPasses>;
  using State = typename Finish::State;
  using Row = typename Finish::Row;
  using Inputs = InputsOf<false, false, false>;
  static constexpr int kInputs = Op::kInputs, kPasses = Op::kPasses;
  static constexpr bool kRowOutput = false, kFinishReads = false, kDivides = false;
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
    each_row<false>(io, v, [&](const T(&x)[kInputs][1][L::kValues]) {
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
  template <int kRows, class Io>
  SUMEXP_DEVICE static void map(Io& io, T (&v)[kHeld][kRows][L::kValues], T, const Row& row) {
    each_row<true>(io, v, [&](T(&x)[kInputs][1][L::kValues]) {
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        T in[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) in[k] = x[k][0][i];
        x[0][0][i] = quiet(Op::map(in, row.sums) * row.factor.first * row.factor.late * row.factor.late);
      }
    });
  }
};

}  // namespace sumexp::SUMEXP_NS
