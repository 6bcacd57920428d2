#include SUMEXP_SIMD
//
#include "../../numerics/information.hpp"
#include "../../ops/cross_entropy.hpp"
#include "exp_chunk.hpp"
#include "information.hpp"
#include "kernel.hpp"
#if SUMEXP_REGISTERS
#include "transposed.hpp"
#endif

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::InformationRow;

// Where a sum of products begins that are `most` or less: 1.5 * 2^(e + 7), or 2^(e + 6) for double, with 2^e the power of two
// in `most`. 128 of them, or 64, which the fold of the columns may add, are a number of 24 (53) bits on its grid.
SUMEXP_FN float grid_start(float most) {
  return bit_cast<float>(((bit_cast<std::uint32_t>(most) & 0x7f800000u) + (7u << 23)) | 0x400000u);
}
SUMEXP_FN double grid_start(double most) {
  constexpr std::uint64_t one = std::uint64_t(1) << 52;
  return bit_cast<double>(((bit_cast<std::uint64_t>(most) & 0x7ff0000000000000u) + 6 * one) | one / 2);
}

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
  const T start = grid_start(most);
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
template <class V>
struct Winner {
  Wide<V> p, rest;
};
template <class V>
SUMEXP_FN Winner<V> winner_of(const RowSum<V>& sum) {
  const Wide<V> others = others_over_max(sum), all = sum.c + others;
  return {WideOf<V>::constant(1) / all, others / all};
}

template <class T>
SUMEXP_FN T quiet_number(T x) {
  return x == x ? x : Limits<T>::nan();
}
// a - b
SUMEXP_FN double minus(double a, double b) { return a + (0.0 - b); }
template <class D>
SUMEXP_FN DD<D> minus(DD<D> a, DD<D> b) {
  return a + DD<D>{D(0.0) - b.hi, D(0.0) - b.lo};
}
template <class D>
SUMEXP_FN Twin<D> minus(Twin<D> a, Twin<D> b) {
  return {a.a + (D(0.0) - b.a), a.b + (D(0.0) - b.b)};
}

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
  RowOf<V, Terms> x(row, cpu::kLogits, 0);
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
  RowOf<V, Terms> x(row, cpu::kLogits, 0);
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
    at_winner = quiet_number(O::narrow(minus(own * w.rest, w.p * (others + hA))));
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

#if SUMEXP_REGISTERS
// -- rows V::W at a time: element j of all of them in one vector
// ----------------------------------------------------------------

// Element k of an operand with a value or some for each of these rows.
template <class V>
void write_rows(const InformationRow& row, int operand, std::int64_t k, V values, int rows, const std::int64_t* step) {
  ElementOf<V> value[V::W];
  if (rows == V::W && step[operand] == cpu::item_size(row.plan.dtype)) {
    cpu::Columns at = {};
    at.tiles = 1, at.data[cpu::kOut] = row.at[operand] + k * row.plan.row[0].stride[operand];
    return row.moves.store_columns(at, 0, 1, &values, 1);
  }
  V::store(value, values);
  for (int b = 0; b < rows; ++b) row.moves.unpack_row(row.plan, operand, row.at[operand] + b * step[operand], k, 1, &value[b]);
}

// The same for the rows of a tile: logits in tile.in[0], terms in tile.terms. False where a row is special.
template <class V, class Terms>
struct TileOf {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  static constexpr int W = V::W;

  const InformationRow& row;  // the first
  const cpu::Tile& tile;
  const std::int64_t* step;  // from row to row, by operand
  const V* const x = static_cast<const V*>(tile.in[0]);
  const V* const terms = static_cast<const V*>(tile.terms);
  V N = V(T(0));
  RowSum<V> sum;
  Wide<V> L, mean = O::constant(0);

  TileOf(const InformationRow& row, const cpu::Tile& tile, const std::int64_t* step) : row(row), tile(tile), step(step) {}

  bool reduce() {
    TileState<V> state;
    if (!transposed_states<Terms, V, true, true>(&tile, 1, &state)) return false;
    N = state.N;
    sum = row_sum(state);
    L = log_over_max(sum);
    if (row.distances) mean = distances() / total(sum);
    return true;
  }
  SUMEXP_FN V distance_at(int j) const { return distance(sum.m, sum.m - V(kFarthest<T>), x[j]); }
  // distance_sum. A row without any has a grid too, of which nothing is seen.
  Wide<V> distances() const {
    V best = V(T(0));
    for (int j = 0; j < tile.count; ++j) best = larger(terms[j] * distance_at(j), best);
    T most[W];
    V::store(most, best);
    const V start = lanes_of<V>([&](int b) SUMEXP_INLINE { return grid_start(most[b]); });
    Wide<V> member[Geometry<T>::kGroup];
    tile_reduce<V, 2>(
        tile.count, T(0),
        [&](V* acc, int j) SUMEXP_INLINE {
          const V d = distance_at(j), hi = acc[0] + start, next = fma(terms[j], d, hi);  // both differences are exact
          acc[1] = acc[1] + fma(terms[j], d, hi - next);
          acc[0] = next - start;
        },
        [&](int i, const V* acc) SUMEXP_INLINE { member[i] = O::from(acc[0], acc[1]); });
    return tile_fold_members(tile.count, member) + O::constant(0);
  }

  char* at(int operand, int b) const { return row.at[operand] + b * step[operand]; }
  std::int64_t index(int b, std::int64_t k) const {
    return read<std::int64_t>(at(cpu::kPicks, b) + k * row.plan.row[0].stride[cpu::kPicks]);
  }
  typedef T __attribute__((may_alias)) Lane;
  T element(int b, std::int64_t i) const { return reinterpret_cast<const Lane*>(x + i)[b]; }
  T read_at(int operand, int b, std::int64_t k) const {
    T value;
    row.moves.pack_row(row.plan, operand, at(operand, b), k, 1, &value);
    return value;
  }
};

template <class V, class Terms>
bool log_prob_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  const cpu::Tile& tile = tiles[0];
  using T = ElementOf<V>;
  TileOf<V, Terms> rows(row, tile, step);
  if (!rows.reduce()) return false;
  for (std::int64_t k = 0; row.at[cpu::kOfPicks] && k < row.picks; ++k) {
    const V chosen = lanes_of<V>([&](int b) SUMEXP_INLINE { return b < tile.rows ? rows.element(b, rows.index(b, k)) : T(0); });
    write_rows(row, cpu::kOfPicks, k, V(T(0)) - cross_entropy(rows.sum, chosen), tile.rows, step);
  }
  if (row.at[cpu::kResult]) write_rows(row, cpu::kResult, 0, WideOf<V>::narrow(rows.L + rows.mean), tile.rows, step);
  return true;
}

// Results take the place of the logits.
template <class V, class Terms>
bool log_prob_vjp_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  const cpu::Tile& tile = tiles[0];
  using T = ElementOf<V>;
  using O = WideOf<V>;
  constexpr int W = V::W;
  TileOf<V, Terms> rows(row, tile, step);
  if (!rows.reduce()) return false;
  const std::int64_t picks = row.at[cpu::kOfPicks] ? row.picks : 0;
  T of_row[W] = {}, m[W];
  Wide<T> c[W], own[W], others[W];
  std::int64_t winner[W];
  V::store(m, rows.sum.m), put_lanes(rows.sum.c, c);
  for (int b = 0; b < W; ++b) {
    own[b] = others[b] = WideOf<T>::constant(0);
    winner[b] = -1;
    if (b >= tile.rows) continue;
    if (row.at[cpu::kOfRow]) of_row[b] = rows.read_at(cpu::kOfRow, b, 0);
    for (std::int64_t k = 0; k < picks; ++k) {
      const Wide<T> g = WideOf<T>::from(rows.read_at(cpu::kOfPicks, b, k));
      const std::int64_t i = rows.index(b, k);
      if (head(c[b]) == 1.0 && rows.element(b, i) == m[b]) {
        winner[b] = i;
        own[b] = own[b] + g;
      } else {
        others[b] = others[b] + g;
      }
    }
  }
  const V h = V::load(of_row), zero = V(T(0));
  const Wide<V> own_w = wide_lanes(own), others_w = wide_lanes(others), hA = O::from(h) * rows.mean;
  V base_h, base_l;
  O::split(hA + (others_w + own_w), base_h, base_l);
  base_l = clear(unordered(base_h - base_h), base_l);
  const V minus_h = zero - base_h, minus_l = zero - base_l;
  const TermScale<V> scale = term_scale<Terms, true>(rows.sum, rows.N);
  V* const result = static_cast<V*>(tile.in[0]);
  T at_winner[W];
  if (picks) {
    const Winner<V> w = winner_of(rows.sum);
    V::store(at_winner, quiet(O::narrow(minus(own_w * w.rest, w.p * (others_w + hA)))));
  }
  for (int j = 0; j < tile.count; ++j)
    result[j] = quiet(probability<Terms>(rows.terms[j], scale) * (fma(h, rows.distance_at(j), minus_h) + minus_l));
  for (int b = 0; picks && b < tile.rows; ++b)
    for (std::int64_t k = 0; k < picks; ++k) {
      const std::int64_t i = rows.index(b, k);
      auto& to = reinterpret_cast<typename TileOf<V, Terms>::Lane*>(result + i)[b];
      to = i == winner[b] ? at_winner[b] : quiet_number(T(to) + rows.read_at(cpu::kOfPicks, b, k));
    }
  return true;
}
#endif

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

// One element of both rows: p, w = log p - log q, its part of the divergence, q - p.
template <class V>
struct PairAt {
  V p, w;
  Divergence<V> parts;
};
template <class V>
SUMEXP_FN PairAt<V> pair_at(V x, V y, V p_term, V q_term, const TermScale<V>& p_scale, const TermScale<V>& q_scale,
                            const LogRatio<V>& ratio) {
  const V p = probability<FullTerms>(p_term, p_scale), q = probability<FullTerms>(q_term, q_scale);
  const V w = log_ratio(x, y, ratio);
  return {p, w, divergence(p, q, w)};
}
// A mask: p > 0 and q = 0
template <class V>
SUMEXP_FN auto nowhere(V x, V y) {
  const V lowest = V(-Limits<ElementOf<V>>::infinity);
  return equal(pick(equal(x, lowest), V(ElementOf<V>(0)), y), lowest);
}

// dp_j = g p_j (w_j - KL), of the winner g p_w (w_w (1 - p_w) - sum_{j != w} p_j w_j). Where KL is infinite, NaN wherever p >
// 0.
template <class V>
struct PairGradient {
  V g, winner, rest;  // rest: 1 - p_w
  V kl_h, kl_l, others_h, others_l;

  SUMEXP_FN void take(const Wide<V>& kl, const Wide<V>& others) {
    WideOf<V>::split(kl, kl_h, kl_l);
    WideOf<V>::split(others, others_h, others_l);
    const V zero = V(ElementOf<V>(0)), nan = V(Limits<ElementOf<V>>::nan());
    const auto finite = equal(kl_h - kl_h, zero);
    kl_h = pick(finite, kl_h, nan), kl_l = pick(finite, kl_l, zero);
    others_h = pick(finite, others_h, nan), others_l = pick(equal(others_h - others_h, zero), others_l, zero);
  }
  SUMEXP_FN V of_p(V x, const PairAt<V>& pair) const {
    const auto wins = equal(x, winner);
    const V own = (pick(wins, pair.w * rest, pair.w) - pick(wins, others_h, kl_h)) - pick(wins, others_l, kl_l);
    return quiet(g * pick(equal(x, V(-Limits<ElementOf<V>>::infinity)), V(ElementOf<V>(0)), pair.p * own));
  }
  SUMEXP_FN V of_q(const PairAt<V>& pair) const { return quiet(g * pair.parts.change); }
};

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
    WideOf<T>::split(minus(p.L, q.L), h, l);
    ratio = {V(p.sum.m), V(q.sum.m), V(h), V(l)};
    winner = V(p.winner ? p.sum.m : Limits<T>::nan());
  }

  // loop(element), where element(i, memory, use) uses the logits and the PairAt of those at i of chunk c
  template <class Loop>
  SUMEXP_FN void each(std::int64_t c, T (&far_terms)[2][Geometry<T>::kChunk], Loop loop) const {
    const auto p_chunk = x.chunk(c, p_scale, far_terms[0]), q_chunk = y.chunk(c, q_scale, far_terms[1]);
    loop([&](int i, auto memory, auto use) SUMEXP_INLINE {
      const V a = memory.template load<V>(p_chunk.x + i, -Limits<T>::infinity);
      const V b = memory.template load<V>(q_chunk.x + i, -Limits<T>::infinity);
      const V p_term = memory.template load<V>(p_chunk.terms + i, T(0)),
              q_term = memory.template load<V>(q_chunk.terms + i, T(0));
      use(a, b, pair_at(a, b, p_term, q_term, p_chunk.scale, q_chunk.scale, ratio));
    });
  }

  DivergenceSums<T> sums(std::int64_t c) const {
    T far_terms[2][Geometry<T>::kChunk];
    V sums[2][Geometry<T>::kGroup / V::W];
    int infinite = 0;
    each(c, far_terms, [&](auto element) SUMEXP_INLINE {
      lane_sweep<V, 2>(x.count(c), sums, [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        element(i, memory, [&](V a, V b, const PairAt<V>& pair) SUMEXP_INLINE {
          infinite += count(nowhere(a, b));
          acc[0] = acc[0] + pair.parts.part;
          acc[1] = acc[1] + pick(equal(a, winner), V(T(0)), pair.p * pair.w);
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
  PairGradient<V> gradient;
  gradient.g = V(read_one<T>(row, cpu::kOfRow, 0));
  gradient.winner = both.winner;
  gradient.rest = V(WideOf<T>::narrow(winner_of(both.p.sum).rest));
  PairGradient<T> numbers;
  const T kl = both.value(sums);
  numbers.take(is_finite(kl) ? sums.divergence : WideOf<T>::from(kl), sums.of_others);
  gradient.kl_h = V(numbers.kl_h), gradient.kl_l = V(numbers.kl_l);
  gradient.others_h = V(numbers.others_h), gradient.others_l = V(numbers.others_l);
  T far_terms[2][Geometry<T>::kChunk], to_p[Geometry<T>::kChunk], to_q[Geometry<T>::kChunk];
  for (std::int64_t c = 0; c < both.x.chunks; ++c) {
    const int count = both.x.count(c);
    both.each(c, far_terms, [&](auto element) SUMEXP_INLINE {
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        element(i, memory, [&](V a, V, const PairAt<V>& pair) SUMEXP_INLINE {
          memory.store(to_p + i, gradient.of_p(a, pair));
          memory.store(to_q + i, gradient.of_q(pair));
        });
      });
    });
    const std::int64_t first = c * both.x.kChunk;
    row.moves.unpack_row(row.plan, cpu::kResult, row.at[cpu::kResult], first, count, to_p);
    row.moves.unpack_row(row.plan, cpu::kExtra, row.at[cpu::kExtra], first, count, to_q);
  }
}

#if SUMEXP_REGISTERS
// Rows of two tiles, p's and q's.
template <class V>
struct TwoTiles {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  const cpu::Tile* const tiles;
  const V *const x = static_cast<const V*>(tiles[0].in[0]), *const y = static_cast<const V*>(tiles[1].in[0]);
  const V *const p_terms = static_cast<const V*>(tiles[0].terms), *const q_terms = static_cast<const V*>(tiles[1].terms);
  const int n = tiles[0].count;
  RowSum<V> p;
  TermScale<V> p_scale, q_scale;
  LogRatio<V> ratio;
  V winner, infinite;
  Wide<V> divergence, of_others;

  explicit TwoTiles(const cpu::Tile* tiles) : tiles(tiles) {}

  SUMEXP_FN PairAt<V> at(int j) const { return pair_at(x[j], y[j], p_terms[j], q_terms[j], p_scale, q_scale, ratio); }
  bool reduce() {
    TileState<V> states[2];
    if (!transposed_states<FullTerms, V, true, true>(tiles, 2, states)) return false;
    p = row_sum(states[0]);
    const RowSum<V> q = row_sum(states[1]);
    p_scale = term_scale<FullTerms, true>(p, states[0].N), q_scale = term_scale<FullTerms, true>(q, states[1].N);
    V h, l;
    O::split(minus(log_over_max(p), log_over_max(q)), h, l);
    ratio = {p.m, q.m, h, l};
    const V zero = V(T(0)), one = V(T(1));
    winner = pick(equal(O::narrow(p.c), one), p.m, V(Limits<T>::nan()));
    V found = zero;
    Wide<V> member[2][Geometry<T>::kGroup];
    tile_reduce<V, 2>(
        n, T(0),
        [&](V* acc, int j) SUMEXP_INLINE {
          const PairAt<V> pair = at(j);
          found = pick(nowhere(x[j], y[j]), one, found);
          acc[0] = acc[0] + pair.parts.part;
          acc[1] = acc[1] + pick(equal(x[j], winner), zero, pair.p * pair.w);
        },
        [&](int i, const V* acc) SUMEXP_INLINE {
          for (int a = 0; a < 2; ++a) member[a][i] = O::from(acc[a]);
        });
    divergence = tile_fold_members(n, member[0]) + O::constant(0);
    of_others = tile_fold_members(n, member[1]) + O::constant(0);
    infinite = found;
    return true;
  }
  V value() const {
    const V infinity = V(Limits<T>::infinity), narrow = O::narrow(divergence);
    return pick(equal(infinite, V(T(1))), infinity, pick(unordered(narrow), infinity, narrow));
  }
};

template <class V>
bool kl_div_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  TwoTiles<V> both(tiles);
  if (!both.reduce()) return false;
  write_rows(row, cpu::kResult, 0, both.value(), tiles[0].rows, step);
  return true;
}
// Results take the place of the logits.
template <class V>
bool kl_div_vjp_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  TwoTiles<V> both(tiles);
  if (!both.reduce()) return false;
  PairGradient<V> gradient;
  gradient.g = lanes_of<V>([&](int b) SUMEXP_INLINE {
    T g = T(0);
    if (b < tiles[0].rows) row.moves.pack_row(row.plan, cpu::kOfRow, row.at[cpu::kOfRow] + b * step[cpu::kOfRow], 0, 1, &g);
    return g;
  });
  gradient.winner = both.winner;
  gradient.rest = O::narrow(winner_of(both.p).rest);
  gradient.take(both.divergence, both.of_others);
  const V nan = V(Limits<T>::nan());
  const auto infinite = equal(both.value(), V(Limits<T>::infinity));
  gradient.kl_h = pick(infinite, nan, gradient.kl_h), gradient.others_h = pick(infinite, nan, gradient.others_h);
  V *const to_p = static_cast<V*>(tiles[0].in[0]), *const to_q = static_cast<V*>(tiles[1].in[0]);
  for (int j = 0; j < both.n; ++j) {
    const PairAt<V> pair = both.at(j);
    const V dp = gradient.of_p(both.x[j], pair);
    to_q[j] = gradient.of_q(pair);
    to_p[j] = dp;
  }
  return true;
}
#endif

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
