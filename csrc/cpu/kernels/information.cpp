// The rows of log_prob, entropy and kl_div one by one: chunks through ops/information.hpp.
#include SUMEXP_SIMD
//
#include "../../ops/information.hpp"
#include "exp_chunk.hpp"
#include "information.hpp"
#include "kernel.hpp"
#if SUMEXP_REGISTERS
#include "information_tiles.hpp"
#endif

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::InformationRow;

// sum t_j (m - x_j) over a chunk with these terms, in the order of the geometry.
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
  const T start = grid_start(most);
  V sums[2][Geometry<T>::kGroup / V::W];
  lane_reduce<V, 2>(count, start, sums, [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
    using U = std::remove_pointer_t<decltype(acc)>;
    const U d = distance(U(V(m)), U(V(farthest)), memory.template load<U>(x + i, m));
    add_product(memory.template load<U>(terms + i, T(0)), d, acc);
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

  // A quotient by the temperature overflows; all of the row are less its maximum, `top`.
  mutable bool overflows = false;
  bool apart = false;
  T top = -Limits<T>::infinity;

  RowOf(const InformationRow& row, int operand, int side) : row(row), operand(operand), side(side) {}

  int count(std::int64_t c) const {
    const std::int64_t left = row.plan.n - c * kChunk;
    return static_cast<int>(left < kChunk ? left : kChunk);
  }
  void gather(std::int64_t first, int count, T* to) const {
    row.moves.pack_row(row.plan, operand, row.at[operand], first, count, to);
  }
  // Elements [first, first + count) to T; x / T rounded once.
  void pack(std::int64_t first, int count, T* to) const {
    gather(first, count, to);
    if (apart) row.moves.divide_apart(row.plan.temperature, &top, count, to);
    else if (row.plan.temperature != 1.0 && !row.moves.divide(row.plan.temperature, count, to)) overflows = true;
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
    const T* const x = logits(c, false);
    T* const to = place(terms, c);
    const int n = count(c);
    const std::int64_t ahead = row.direct[side] ? kChunk : 0;
    const ExpState<T> sum = exp_chunk<Terms, V, true, true>(x, n, to, {ahead});
    maxima[c] = sum.m;
    if (!row.distances || !has_distances(sum)) return {sum, WideOf<T>::constant(0)};
    return with_distances(sum, distance_sum<V>(x, to, n, sum.m));
  }
  // The whole row.
  DistanceState<T> reduce() {
    const DistanceState<T> state = reduce_chunks();
    if (!overflows) return state;
    for (std::int64_t c = 0; c < chunks; ++c) {
      gather(c * kChunk, count(c), packed);
      row.moves.largest(packed, count(c), &top);
    }
    apart = true;
    return reduce_chunks();
  }
  DistanceState<T> reduce_chunks() const {
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
  // The one that was reduced last, as if it were the row; `sum` is its own.
  Chunk last_chunk(std::int64_t c, const ExpState<T>& sum) const {
    const T* const x = row.direct[side] ? logits(c, true) : place(packed, c);
    return {x, place(terms, c), broadcast<V, TermScale<V>>(chunk_scale<Terms>(normalizer<Terms>(sum), sum.m).near)};
  }
  Chunk chunk(std::int64_t c, const Normalizer<T>& normalizer, T* far_terms) const {
    Chunk chunk;
    chunk.x = logits(c, true);
    const int n = count(c);
    T* const to = place(terms, c);
    chunk.terms = to;
    if (!row.resident)
      each_term<Terms, V>(chunk.x, n, maxima[c], [&](int i, auto memory, V term) SUMEXP_INLINE { memory.store(to + i, term); });
    const ChunkScale<T> k = chunk_scale<Terms>(normalizer, maxima[c]);
    chunk.scale = k.template scale<V>();
    if (k.far) {
      for (int i = 0; i < n; ++i) far_terms[i] = far_term<Terms>(to[i], k);
      chunk.terms = far_terms;
    }
    return chunk;
  }
};

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
  RowOf<V, Terms> x(row, cpu::kLogits, 0);
  const FinishedLogits<T> r = finished(x.reduce());
  if (row.at[cpu::kOfPicks])
    for (std::int64_t k = 0; k < row.picks; ++k)
      write_one(row, cpu::kOfPicks, k, r.special ? Limits<T>::nan() : log_probability(r.sum, x.element(index_at(row, k))));
  if (!row.at[cpu::kResult]) return;
  T entropy = r.special ? Limits<T>::nan() : entropy_of<T>(r.L, r.mean);
  if (row.plan.n == 0) entropy = T(0);  // a sum of nothing
  write_one(row, cpu::kResult, 0, entropy);
}

template <class V, class Terms>
void log_prob_vjp(const InformationRow& row) {
  using T = ElementOf<V>;
  RowOf<V, Terms> x(row, cpu::kLogits, 0);
  const DistanceState<T> state = x.reduce();
  const FinishedLogits<T> r = finished(state);
  if (r.special) return fill_result<V>(row, cpu::kResult, Limits<T>::nan());
  const Normalizer<T> normalizer = ::sumexp::SUMEXP_NS::normalizer<Terms>(state.sum);
  const T h = row.at[cpu::kOfRow] ? read_one<T>(row, cpu::kOfRow, 0) : T(0);
  auto picked = PickedGradients<T>::none();
  std::int64_t winner = -1;
  const std::int64_t picks = row.at[cpu::kOfPicks] ? row.picks : 0;
  for (std::int64_t k = 0; k < picks; ++k) {
    const Wide<T> g = WideOf<T>::from(read_one<T>(row, cpu::kOfPicks, k));
    const std::int64_t i = index_at(row, k);
    if (r.winner && (i == winner || x.element(i) == r.sum.m)) {
      winner = i;
      picked.own = picked.own + g;
    } else {
      picked.others = picked.others + g;
    }
  }
  const T at_winner = winner >= 0 ? gradient_at_winner(r.sum, r.mean, h, picked) : T(0);
  const auto gradient = broadcast<V, LogitsGradient<V>>(logits_gradient(r.sum, r.mean, h, picked));
  T far_terms[Geometry<T>::kChunk], result[Geometry<T>::kChunk];
  for (std::int64_t c = 0; c < x.chunks; ++c) {
    const auto chunk = x.chunk(c, normalizer, far_terms);
    const int count = x.count(c);
    const std::int64_t first = c * x.kChunk;
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      const V p = probability<Terms>(memory.template load<V>(chunk.terms + i, T(0)), chunk.scale);
      memory.store(result + i, gradient.of(p, memory.template load<V>(chunk.x + i, T(0))));
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

template <class V>
using LogitsOf = RowOf<V, FullTerms>;

// use(x, y, the PairAt) of the elements at i of a chunk of both rows
template <class V, class Memory, class Use>
SUMEXP_FN void use_pair(const typename LogitsOf<V>::Chunk& x, const typename LogitsOf<V>::Chunk& y, const LogRatio<V>& ratio,
                        int i, Memory memory, Use use) {
  using T = ElementOf<V>;
  const V a = memory.template load<V>(x.x + i, -Limits<T>::infinity),
          b = memory.template load<V>(y.x + i, -Limits<T>::infinity);
  const V p = probability<FullTerms>(memory.template load<V>(x.terms + i, T(0)), x.scale);
  const V q = probability<FullTerms>(memory.template load<V>(y.terms + i, T(0)), y.scale);
  use(a, b, pair_at(a, b, p, q, ratio));
}

// Of a chunk of both rows: the divergence, sum p_j w_j without the winner's, whether p > 0 and q = 0 somewhere, and whether
// some w_j is another than `usual`.
template <class V>
struct PairSums {
  Wide<ElementOf<V>> divergence, mean;
  bool infinite, varies;
};
template <class V>
__attribute__((noinline)) PairSums<V> pair_sums(const typename LogitsOf<V>::Chunk& x, const typename LogitsOf<V>::Chunk& y,
                                                int count, const LogRatio<V>& ratio, const V (&winner_and_usual)[2]) {
  using T = ElementOf<V>;
  const V winner = winner_and_usual[0], usual = winner_and_usual[1];
  V sums[2][Geometry<T>::kGroup / V::W];
  const V one = V(T(1));
  V varies = V(T(0)), infinite = V(T(0));
  lane_loop<V, 2>(count, sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
    use_pair<V>(x, y, ratio, i, memory, [&](V a, V b, const PairAt<V>& at) SUMEXP_INLINE {
      infinite = pick(nowhere(a, b), one, infinite);
      varies = pick(equal(at.w, usual), varies, one);
      add_pair(a, at, winner, acc);
    });
  });
  return {fold_group(sums[0]), fold_group(sums[1]), largest(infinite) > T(0), largest(varies) > T(0)};
}

template <class V>
DivergenceState<ElementOf<V>> divergence_of_chunk(const LogitsOf<V>& x, const LogitsOf<V>& y, std::int64_t c) {
  using T = ElementOf<V>;
  const ExpState<T> p = x.reduce(c).sum, q = y.reduce(c).sum;
  if (!has_divergence(p, q)) return DivergenceState<T>::of(p, q);
  const LogRatio<T> ratio = row_pair(p, q).ratio;
  const LogRatio<V> ratios = broadcast<V, LogRatio<V>>(ratio);
  const auto of_p = x.last_chunk(c, p), of_q = y.last_chunk(c, q);
  const V of[2] = {V(Limits<T>::nan()), log_ratio_at_maxima(ratios)};
  const PairSums<V> sums = pair_sums<V>(of_p, of_q, x.count(c), ratios, of);
  return with_divergence(p, q, ratio, sums.divergence, sums.mean, sums.infinite, !sums.varies);
}

template <class V>
void kl_div(const InformationRow& row) {
  using T = ElementOf<V>;
  const LogitsOf<V> x(row, cpu::kLogits, 0), y(row, cpu::kOther, 1);
  if (x.chunks == 0) return write_one(row, cpu::kResult, 0, T(0));  // a sum of nothing
  if (x.chunks == 1) return write_one(row, cpu::kResult, 0, divergence_of(divergence_of_chunk<V>(x, y, 0)));
  MergeTree<DivergenceState<T>> tree;
  for (std::int64_t c = 0; c + 1 < x.chunks; ++c) tree.push(divergence_of_chunk<V>(x, y, c));
  write_one(row, cpu::kResult, 0, divergence_of(tree.finish(divergence_of_chunk<V>(x, y, x.chunks - 1))));
}

// Both rows, finished, for the gradient.
template <class V>
struct TwoRows {
  using T = ElementOf<V>;
  using Terms = FullTerms;
  LogitsOf<V> x, y;
  RowSum<T> p;
  Normalizer<T> p_scale, q_scale;
  RowPair<V> pair;
  bool special;

  explicit TwoRows(const InformationRow& row) : x(row, cpu::kLogits, 0), y(row, cpu::kOther, 1) {
    const ExpState<T> p_state = x.reduce().sum, q_state = y.reduce().sum;
    special = is_special<LogitsOp>(p_state) || is_special<LogitsOp>(q_state);
    if (special) return;
    p = row_sum(p_state);
    p_scale = normalizer<Terms>(p_state), q_scale = normalizer<Terms>(q_state);
    pair = broadcast<V, RowPair<V>>(row_pair(p_state, q_state));
  }

  DivergenceSums<T> sums(std::int64_t c) const {
    T far_terms[2][Geometry<T>::kChunk];
    const auto p_chunk = x.chunk(c, p_scale, far_terms[0]), q_chunk = y.chunk(c, q_scale, far_terms[1]);
    const V of[2] = {pair.winner, pair.winner};
    const PairSums<V> sums = pair_sums<V>(p_chunk, q_chunk, x.count(c), pair.ratio, of);
    return {sums.divergence, sums.mean, sums.infinite};
  }
  DivergenceSums<T> sums() const {
    if (x.chunks < 2) return sums(0);
    MergeTree<DivergenceSums<T>> tree;
    for (std::int64_t c = 0; c + 1 < x.chunks; ++c) tree.push(sums(c));
    return tree.finish(sums(x.chunks - 1));
  }
};

template <class V>
void kl_div_vjp(const InformationRow& row) {
  using T = ElementOf<V>;
  const TwoRows<V> both(row);
  if (both.special) {
    fill_result<V>(row, cpu::kResult, Limits<T>::nan());
    fill_result<V>(row, cpu::kExtra, Limits<T>::nan());
    return;
  }
  const DivergenceSums<T> sums = both.sums();
  const T kl = divergence_of<T>(sums.divergence, sums.infinite);
  const T g = read_one<T>(row, cpu::kOfRow, 0), winner = pick(head(both.p.c) == 1.0, both.p.m, Limits<T>::nan());
  const auto gradient = broadcast<V, PairGradient<V>>(pair_gradient(g, both.p, winner, kl, sums.divergence, sums.of_others));
  T far_terms[2][Geometry<T>::kChunk], to_p[Geometry<T>::kChunk], to_q[Geometry<T>::kChunk];
  for (std::int64_t c = 0; c < both.x.chunks; ++c) {
    const int count = both.x.count(c);
    const auto p = both.x.chunk(c, both.p_scale, far_terms[0]), q = both.y.chunk(c, both.q_scale, far_terms[1]);
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      use_pair<V>(p, q, both.pair.ratio, i, memory, [&](V a, V, const PairAt<V>& at) SUMEXP_INLINE {
        memory.store(to_p + i, gradient.of_p(a, at));
        memory.store(to_q + i, gradient.of_q(at));
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
  cpu::InformationKernel kernel = {{log_prob<V, TermsOf<S>>}, {log_prob_vjp<V, TermsOf<S>>}, {kl_div<V>}, {kl_div_vjp<V>}};
#if SUMEXP_REGISTERS
  kernel.log_prob.tile = log_prob_tile<V, TermsOf<S>>, kernel.log_prob_vjp.tile = log_prob_vjp_tile<V, TermsOf<S>>;
  kernel.kl_div.tile = kl_div_tile<V>, kernel.kl_div_vjp.tile = kl_div_vjp_tile<V>;
#endif
  return kernel;
}
const cpu::InformationKernels kKernels = {
    {kernel_for<F32, f16>(), kernel_for<F32, bf16>(), kernel_for<F32, float>(), kernel_for<F64, double>()}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(InformationKernels, information_kernels_, SUMEXP_NS::kKernels)
