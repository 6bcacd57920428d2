#include SUMEXP_SIMD
//
#include "../../numerics/information.hpp"
#include "../../ops/cross_entropy.hpp"
#include "exp_chunk.hpp"
#include "information.hpp"
#include "kernel.hpp"

#define SUMEXP_JOIN_(a, b) a##b
#define SUMEXP_JOIN(a, b) SUMEXP_JOIN_(a, b)

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::InformationRow;

// sum t_j (m - x_j) over a chunk with these terms, in the order of the geometry. Added as the terms themselves are, to a grid
// that the largest product gives: hi is exact, and lo gets what the grid cuts off, products as they are before rounding.
template <class V>
Wide<ElementOf<V>> distance_sum(const ElementOf<V>* x, const ElementOf<V>* terms, int count, ElementOf<V> m) {
  using T = ElementOf<V>;
  const T farthest = m - kFarthest<T>;
  V best = V(T(0));
  each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
    const V d = distance(V(m), V(farthest), memory.template load<V>(x + i, m));
    best = larger(memory.template load<V>(terms + i, T(0)) * d, best);
  });
  const T most = largest(best);
  if (!(most > T(0))) return WideOf<T>::constant(0);
  double exponent;
  exponent_split(static_cast<double>(most), exponent);  // most < 2^(exponent + 1/2)
  const T start = T(1.5) * pow2<T>(static_cast<std::int64_t>(exponent) + (sizeof(T) == 4 ? 10 : 9));
  V sums[2][Geometry<T>::kGroup / V::W];
  lane_reduce<V, 2>(count, start, sums, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
    using U = std::remove_pointer_t<decltype(acc)>;
    const U d = distance(U(V(m)), U(V(farthest)), memory.template load<U>(x + i, m));
    const U term = memory.template load<U>(terms + i, T(0)), next = fma(term, d, acc[0]);
    acc[1] = acc[1] + fma(term, d, acc[0] - next);
    acc[0] = next;
  });
  return fold_group(sums[0], sums[1]);
}

// The chunks of one row of logits.
template <class V, class Terms>
struct RowOf {
  using T = ElementOf<V>;
  static constexpr int kChunk = Geometry<T>::kChunk;

  const InformationRow& row;
  const int operand, side;
  const std::int64_t chunks = chunk_count<T>(row.plan.n);
  T* const packed = static_cast<T*>(row.packed[side]);
  T* const terms = static_cast<T*>(row.terms[side]);
  T* const maxima = static_cast<T*>(row.maxima[side]);

  RowOf(const InformationRow& row, int operand, int side) : row(row), operand(operand), side(side) {}

  int count(std::int64_t c) const {
    const std::int64_t left = row.plan.n - c * kChunk;
    return static_cast<int>(left < kChunk ? left : kChunk);
  }
  // Elements [first, first + count) to T; x / T rounded once.
  void pack(std::int64_t first, int count, T* to) const {
    row.moves.pack_row(row.plan, operand, row.at[operand], first, count, to);
    if (row.plan.temperature != 1.0) row.moves.divide(row.plan.temperature, count, to);
  }
  // Where chunk c is, or is put. Only its elements are read.
  T* place(T* scratch, std::int64_t c) const { return scratch + (row.resident ? c * kChunk : 0); }
  const T* logits(std::int64_t c, bool again) const {
    if (row.direct[side]) return reinterpret_cast<const T*>(row.at[operand]) + c * kChunk;
    T* const to = place(packed, c);
    if (!again || !row.resident) pack(c * kChunk, count(c), to);
    return to;
  }
  T element(std::int64_t i) const {
    T x;
    pack(i, 1, &x);
    return x;
  }

  DistanceState<T> reduce(std::int64_t c) const {
    DistanceState<T> state = DistanceState<T>::empty();
    const T* const x = logits(c, false);
    T* const to = place(terms, c);
    const int n = count(c);
    const std::int64_t ahead = row.direct[side] ? kChunk : 0;
    state.sum = exp_chunk<Terms, V, true, true>(x, n, to, ahead);
    maxima[c] = state.sum.m;
    if (row.distances && is_finite(state.sum.m) && !is_nan(state.sum.R))
      state.distance = distance_sum<V>(x, to, n, state.sum.m) * anchor_factor(base_of(state.sum.m));
    return state;
  }
  // The whole row.
  DistanceState<T> reduce() const {
    if (chunks < 2) return chunks ? reduce(0) : DistanceState<T>::empty();
    MergeTree<DistanceState<T>> tree;
    for (std::int64_t c = 0; c + 1 < chunks; ++c) tree.push(reduce(c));
    return tree.finish(reduce(chunks - 1));
  }

  // A chunk once more, for probability(term, scale): its logits, and terms that are kept, or made again.
  struct Chunk {
    const T *x, *terms;
    TermScale<V> scale;
  };
  Chunk chunk(std::int64_t c, const Normalizer<T>& normalizer, T* far_terms) const {
    Chunk chunk;
    chunk.x = logits(c, true);
    const int n = count(c);
    T* const to = place(terms, c);
    chunk.terms = to;
    if (!row.resident)
      each_term<Terms, V>(chunk.x, n, maxima[c], [&](int i, auto memory, V term) SUMEXP_INLINE { memory.store(to + i, term); });
    const ChunkScale<T> k = chunk_scale<Terms>(normalizer, maxima[c]);
    chunk.scale = broadcast<V, TermScale<V>>(k.far ? unit_scale<T>() : k.near);
    if (k.far) {
      for (int i = 0; i < n; ++i) far_terms[i] = far_term<Terms>(to[i], k);
      chunk.terms = far_terms;
    }
    return chunk;
  }
};

// A finished row.
template <class T>
struct Finished {
  RowSum<T> sum;
  bool special;  // a NaN or +inf in it, or nothing above -inf
  bool winner;   // one element alone is the maximum
  Wide<T> L, mean;
};
template <class T>
Finished<T> finished(const DistanceState<T>& state) {
  Finished<T> row;
  row.special = is_nan(state.sum.R) || !is_finite(state.sum.m);
  row.winner = false;
  row.L = row.mean = WideOf<T>::constant(0);
  if (row.special) return row;
  row.sum = row_sum(state.sum);
  row.winner = head(row.sum.c) == 1.0;
  row.L = log_over_max(row.sum);
  row.mean = mean_distance(state);
  return row;
}
// Of the winner: its probability, and what it leaves to 1.
template <class T>
struct Winner {
  Wide<T> p, rest;
};
template <class T>
Winner<T> winner_of(const RowSum<T>& sum) {
  const Wide<T> others = others_over_max(sum), all = sum.c + others;
  return {WideOf<T>::constant(1) / all, others / all};
}

template <class T>
SUMEXP_FN T quiet_number(T x) {
  return x == x ? x : Limits<T>::nan();
}
SUMEXP_FN double negated(double w) { return 0.0 - w; }
SUMEXP_FN DD<double> negated(DD<double> w) { return {0.0 - w.hi, 0.0 - w.lo}; }

template <class T>
T read_one(const InformationRow& row, int operand, std::int64_t k) {
  T x;
  row.moves.pack_row(row.plan, operand, row.at[operand], k, 1, &x);
  return x;
}
template <class T>
void write_one(const InformationRow& row, int operand, std::int64_t k, T x) {
  row.moves.unpack_row(row.plan, operand, row.at[operand], k, 1, &x);
}
std::int64_t index_at(const InformationRow& row, std::int64_t k) {
  return read<std::int64_t>(row.at[cpu::kPicks] + k * row.plan.row[0].stride[cpu::kPicks]);
}

template <class V>
void fill_result(const InformationRow& row, int operand, ElementOf<V> value) {
  using T = ElementOf<V>;
  constexpr int kAtOnce = 256;
  T values[kAtOnce];
  for (T& v : values) v = value;
  for (std::int64_t i = 0; i < row.plan.n; i += kAtOnce) {
    const std::int64_t left = row.plan.n - i;
    row.moves.unpack_row(row.plan, operand, row.at[operand], i, static_cast<int>(left < kAtOnce ? left : kAtOnce), values);
  }
}

// -- log_prob and entropy -------------------------------------------------------------------------------------------

template <class V, class Terms>
void log_prob(const InformationRow& row) {
  using T = ElementOf<V>;
  using O = WideOf<T>;
  const RowOf<V, Terms> x(row, cpu::kLogits, 0);
  const Finished<T> r = finished(x.reduce());
  if (row.at[cpu::kOfPicks])
    for (std::int64_t k = 0; k < row.picks; ++k) {
      const T loss = r.special ? Limits<T>::nan() : cross_entropy(r.sum, x.element(index_at(row, k)));
      write_one(row, cpu::kOfPicks, k, r.special ? loss : T(0) - loss);
    }
  if (!row.at[cpu::kResult]) return;
  T entropy = r.special ? Limits<T>::nan() : O::narrow(r.L + r.mean);
  if (row.plan.n == 0) entropy = T(0);  // a sum of nothing
  write_one(row, cpu::kResult, 0, entropy);
}

// With G the sum of the gradients g_k of the log-probabilities, and h that of the entropy:
//   dx_j = sum_{k: i_k = j} g_k - p_j G + h p_j (d_j - A)
// Of the winner w, if it is picked, with G_w the sum of its own: G_w (1 - p_w) - p_w (G - G_w + h A).
template <class V, class Terms>
void log_prob_vjp(const InformationRow& row) {
  using T = ElementOf<V>;
  using O = WideOf<T>;
  const RowOf<V, Terms> x(row, cpu::kLogits, 0);
  const DistanceState<T> state = x.reduce();
  const Finished<T> r = finished(state);
  if (r.special) return fill_result<V>(row, cpu::kResult, Limits<T>::nan());
  const Normalizer<T> normalizer = ::sumexp::SUMEXP_NS::normalizer<Terms>(state.sum);
  const T h = row.at[cpu::kOfRow] ? read_one<T>(row, cpu::kOfRow, 0) : T(0);
  Wide<T> own = O::constant(0), others = O::constant(0);
  std::int64_t winner = -1;
  const std::int64_t picks = row.at[cpu::kOfPicks] ? row.picks : 0;
  for (std::int64_t k = 0; k < picks; ++k) {
    const Wide<T> g = O::from(read_one<T>(row, cpu::kOfPicks, k));
    const std::int64_t i = index_at(row, k);
    if (r.winner && (i == winner || x.element(i) == r.sum.m)) {
      winner = i;
      own = own + g;
    } else {
      others = others + g;
    }
  }
  const Wide<T> hA = O::from(h) * r.mean, base = hA + (others + own);
  T at_winner = T(0), base_h, base_l;
  O::split(base, base_h, base_l);
  if (!is_finite(base_h)) base_l = T(0);
  if (winner >= 0) {
    const Winner<T> w = winner_of(r.sum);
    at_winner = quiet_number(O::narrow(own * w.rest + negated(w.p * (others + hA))));
  }
  const V m = V(r.sum.m), farthest = V(r.sum.m - kFarthest<T>);
  const V of_row = V(h), minus_h = V(T(0) - base_h), minus_l = V(T(0) - base_l);
  T far_terms[Geometry<T>::kChunk], result[Geometry<T>::kChunk];
  for (std::int64_t c = 0; c < x.chunks; ++c) {
    const auto chunk = x.chunk(c, normalizer, far_terms);
    const int count = x.count(c);
    const std::int64_t first = c * x.kChunk;
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      const V p = probability<Terms>(memory.template load<V>(chunk.terms + i, T(0)), chunk.scale);
      const V d = distance(m, farthest, memory.template load<V>(chunk.x + i, T(0)));
      memory.store(result + i, quiet(p * (fma(of_row, d, minus_h) + minus_l)));
    });
    for (std::int64_t k = 0; k < picks; ++k) {
      const std::int64_t i = index_at(row, k) - first;
      if (i < 0 || i >= count) continue;
      if (i + first == winner) result[i] = at_winner;
      else result[i] = quiet_number(result[i] + read_one<T>(row, cpu::kOfPicks, k));
    }
    if (row.plan.temperature != 1.0) row.moves.divide(row.plan.temperature, count, result);
    row.moves.unpack_row(row.plan, cpu::kResult, row.at[cpu::kResult], first, count, result);
  }
}

// -- the Kullback-Leibler divergence -----------------------------------------------------------------------------------

// Both rows, and what is summed over their elements.
template <class T>
struct DivergenceSums {
  Wide<T> divergence, of_others;  // sum p_j (e^-w_j - 1 + w_j); sum of p_j w_j without the winner's
  bool infinite;                  // somewhere p > 0 and q = 0
};
template <class T>
SUMEXP_FN DivergenceSums<T> merge(const DivergenceSums<T>& a, const DivergenceSums<T>& b) {
  return {a.divergence + b.divergence, a.of_others + b.of_others, a.infinite || b.infinite};
}

template <class V>
struct TwoRows {
  using T = ElementOf<V>;
  using Terms = FullTerms;
  using Row = RowOf<V, Terms>;
  Row x, y;
  Finished<T> p, q;
  Normalizer<T> p_scale, q_scale;
  LogRatio<V> ratio;
  V winner;  // the maximum of p, where one element alone has it; else NaN
  bool special;

  explicit TwoRows(const InformationRow& row) : x(row, cpu::kLogits, 0), y(row, cpu::kOther, 1) {
    const DistanceState<T> p_state = x.reduce(), q_state = y.reduce();
    p = finished(p_state), q = finished(q_state);
    special = p.special || q.special;
    if (special) return;
    p_scale = normalizer<Terms>(p_state.sum), q_scale = normalizer<Terms>(q_state.sum);
    T h, l;
    WideOf<T>::split(p.L + negated(q.L), h, l);
    ratio = {V(p.sum.m), V(q.sum.m), V(h), V(l)};
    winner = V(p.winner ? p.sum.m : Limits<T>::nan());
  }

  // use(i, memory, x, p, w, parts, nowhere) for the elements of chunk c; nowhere: p > 0 and q = 0
  template <class Loop>
  SUMEXP_FN void each(std::int64_t c, T (&far_terms)[2][Geometry<T>::kChunk], Loop loop) const {
    const auto p_chunk = x.chunk(c, p_scale, far_terms[0]), q_chunk = y.chunk(c, q_scale, far_terms[1]);
    loop([&](int i, auto memory, auto use) SUMEXP_INLINE {
      const V lowest = V(-Limits<T>::infinity);
      const V a = memory.template load<V>(p_chunk.x + i, -Limits<T>::infinity);
      const V b = memory.template load<V>(q_chunk.x + i, -Limits<T>::infinity);
      const V p = probability<Terms>(memory.template load<V>(p_chunk.terms + i, T(0)), p_chunk.scale);
      const V q = probability<Terms>(memory.template load<V>(q_chunk.terms + i, T(0)), q_chunk.scale);
      const V w = log_ratio(a, b, ratio);
      const auto nowhere = equal(pick(equal(a, lowest), V(T(0)), b), lowest);
      use(a, p, w, divergence(p, q, w), nowhere);
    });
  }

  DivergenceSums<T> sums(std::int64_t c) const {
    T far_terms[2][Geometry<T>::kChunk];
    V sums[2][Geometry<T>::kGroup / V::W];
    int infinite = 0;
    each(c, far_terms, [&](auto element) SUMEXP_INLINE {
      lane_sweep<V, 2>(x.count(c), sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        element(i, memory, [&](V a, V p, V w, const Divergence<V>& parts, auto nowhere) SUMEXP_INLINE {
          infinite += count(nowhere);
          acc[0] = acc[0] + parts.part;
          acc[1] = acc[1] + pick(equal(a, winner), V(T(0)), p * w);
        });
      });
    });
    return {fold_group(sums[0]), fold_group(sums[1]), infinite != 0};
  }
  DivergenceSums<T> sums() const {
    if (x.chunks < 2) return sums(0);
    MergeTree<DivergenceSums<T>> tree;
    for (std::int64_t c = 0; c + 1 < x.chunks; ++c) tree.push(sums(c));
    return tree.finish(sums(x.chunks - 1));
  }
  // Of a sum that overflows a pair of doubles may be NaN.
  static T value(const DivergenceSums<T>& sums) {
    if (sums.infinite || is_nan(sums.divergence)) return Limits<T>::infinity;
    return WideOf<T>::narrow(sums.divergence);
  }
};

template <class V>
void kl_div(const InformationRow& row) {
  using T = ElementOf<V>;
  T result = T(0);  // a sum of nothing
  if (row.plan.n > 0) {
    const TwoRows<V> both(row);
    result = both.special ? Limits<T>::nan() : both.value(both.sums());
  }
  write_one(row, cpu::kResult, 0, result);
}

// dp_j = g p_j (w_j - KL), of the winner g p_w (w_w (1 - p_w) - sum_{j != w} p_j w_j); dq_j = g (q_j - p_j). Where KL is
// infinite, dp is NaN wherever p > 0.
template <class V>
void kl_div_vjp(const InformationRow& row) {
  using T = ElementOf<V>;
  using O = WideOf<T>;
  const TwoRows<V> both(row);
  if (both.special) {
    fill_result<V>(row, cpu::kResult, Limits<T>::nan());
    fill_result<V>(row, cpu::kExtra, Limits<T>::nan());
    return;
  }
  const DivergenceSums<T> sums = both.sums();
  const bool infinite = TwoRows<V>::value(sums) == Limits<T>::infinity;
  const auto split = [&](Wide<T> w, V& h, V& l) {
    T high, low;
    O::split(w, high, low);
    h = V(high), l = V(is_finite(high) ? low : T(0));
  };
  V kl_h, kl_l, others_h, others_l;
  split(sums.divergence, kl_h, kl_l);
  split(sums.of_others, others_h, others_l);
  if (infinite) kl_h = others_h = V(Limits<T>::nan());
  const V zero = V(T(0)), g = V(read_one<T>(row, cpu::kOfRow, 0));
  const V rest = V(both.p.winner ? O::narrow(winner_of(both.p.sum).rest) : T(1));
  T far_terms[2][Geometry<T>::kChunk], to_p[Geometry<T>::kChunk], to_q[Geometry<T>::kChunk];
  for (std::int64_t c = 0; c < both.x.chunks; ++c) {
    const int count = both.x.count(c);
    both.each(c, far_terms, [&](auto element) SUMEXP_INLINE {
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        element(i, memory, [&](V a, V p, V w, const Divergence<V>& parts, auto) SUMEXP_INLINE {
          const auto wins = equal(a, both.winner);
          const V own = (pick(wins, w * rest, w) - pick(wins, others_h, kl_h)) - pick(wins, others_l, kl_l);
          const V dp = pick(equal(a, V(-Limits<T>::infinity)), zero, p * own);
          memory.store(to_p + i, quiet(g * dp));
          memory.store(to_q + i, quiet(g * parts.change));
        });
      });
    });
    const std::int64_t first = c * both.x.kChunk;
    row.moves.unpack_row(row.plan, cpu::kResult, row.at[cpu::kResult], first, count, to_p);
    row.moves.unpack_row(row.plan, cpu::kExtra, row.at[cpu::kExtra], first, count, to_q);
  }
}

// -- the table -----------------------------------------------------------------------------------------------------------

template <class V, class S>
constexpr cpu::InformationKernel kernel_for() {
  return {log_prob<V, TermsOf<S>>, log_prob_vjp<V, TermsOf<S>>, kl_div<V>, kl_div_vjp<V>};
}
const cpu::InformationKernels kKernels = {
    {kernel_for<F32, f16>(), kernel_for<F32, bf16>(), kernel_for<F32, float>(), kernel_for<F64, double>()}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

namespace sumexp::cpu {
const InformationKernels& SUMEXP_JOIN(information_kernels_, SUMEXP_NS)() { return SUMEXP_NS::kKernels; }
}  // namespace sumexp::cpu
