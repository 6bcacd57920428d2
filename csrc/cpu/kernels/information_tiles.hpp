// Short rows of log_prob, entropy and kl_div, V::W at a time: element j of all of them in one vector. For information.cpp.
#pragma once

#include "../../ops/information.hpp"
#include "information.hpp"
#include "kernel.hpp"
#include "transposed.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::InformationRow;

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
  // sum t_j (m - x_j). A row without any has a grid too, of which nothing is seen.
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
          acc[0] = acc[0] + start;  // exact, and so is the difference
          add_product(terms[j], distance_at(j), acc);
          acc[0] = acc[0] - start;
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
    write_rows(row, cpu::kOfPicks, k, log_probability(rows.sum, chosen), tile.rows, step);
  }
  if (row.at[cpu::kResult]) write_rows(row, cpu::kResult, 0, entropy_of<V>(rows.L, rows.mean), tile.rows, step);
  return true;
}

// Results take the place of the logits.
template <class V, class Terms>
bool log_prob_vjp_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  const cpu::Tile& tile = tiles[0];
  using T = ElementOf<V>;
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
  const V h = V::load(of_row);
  const PickedGradients<V> picked = {wide_lanes(own), wide_lanes(others)};
  const LogitsGradient<V> gradient = logits_gradient(rows.sum, rows.mean, h, picked);
  const TermScale<V> scale = term_scale<Terms, true>(rows.sum, rows.N);
  V* const result = static_cast<V*>(tile.in[0]);
  T at_winner[W];
  if (picks) V::store(at_winner, gradient_at_winner(rows.sum, rows.mean, h, picked));
  for (int j = 0; j < tile.count; ++j) result[j] = gradient.of(probability<Terms>(rows.terms[j], scale), rows.x[j]);
  for (int b = 0; picks && b < tile.rows; ++b)
    for (std::int64_t k = 0; k < picks; ++k) {
      const std::int64_t i = rows.index(b, k);
      auto& to = reinterpret_cast<typename TileOf<V, Terms>::Lane*>(result + i)[b];
      to = i == winner[b] ? at_winner[b] : quiet_number(T(to) + rows.read_at(cpu::kOfPicks, b, k));
    }
  return true;
}

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
  RowPair<V> pair;
  V infinite, differs;  // 1: p > 0 and q = 0 somewhere; the rows differ by more than a constant
  Wide<V> divergence, of_others;

  explicit TwoTiles(const cpu::Tile* tiles) : tiles(tiles) {}

  SUMEXP_FN PairAt<V> at(int j) const {
    return pair_at(x[j], y[j], probability<FullTerms>(p_terms[j], p_scale), probability<FullTerms>(q_terms[j], q_scale),
                   pair.ratio);
  }
  bool reduce() {
    TileState<V> states[2];
    if (!transposed_states<FullTerms, V, true, true>(tiles, 2, states)) return false;
    p = row_sum(states[0]);
    const RowSum<V> q = row_sum(states[1]);
    p_scale = term_scale<FullTerms, true>(p, states[0].N), q_scale = term_scale<FullTerms, true>(q, states[1].N);
    pair = row_pair(p, log_over_max(p), q, log_over_max(q));
    const V zero = V(T(0)), one = V(T(1));
    const V at_maxima = log_ratio_at_maxima(pair.ratio);
    V found = zero, other = zero;
    Wide<V> member[2][Geometry<T>::kGroup];
    tile_reduce<V, 2>(
        n, T(0),
        [&](V* acc, int j) SUMEXP_INLINE {
          found = pick(nowhere(x[j], y[j]), one, found);
          const PairAt<V> pair_j = at(j);
          other = pick(equal(pair_j.w, at_maxima), other, one);
          add_pair(x[j], pair_j, pair.winner, acc);
        },
        [&](int i, const V* acc) SUMEXP_INLINE {
          for (int a = 0; a < 2; ++a) member[a][i] = O::from(acc[a]);
        });
    divergence = tile_fold_members(n, member[0]) + O::constant(0);
    of_others = tile_fold_members(n, member[1]) + O::constant(0);
    infinite = found, differs = other;
    return true;
  }
  V value() const { return divergence_of<V>(divergence, equal(infinite, V(T(1)))); }
};

template <class V>
bool kl_div_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  TwoTiles<V> both(tiles);
  if (!both.reduce()) return false;
  const V value = pick(equal(both.differs, V(ElementOf<V>(1))), both.value(), V(ElementOf<V>(0)));
  write_rows(row, cpu::kResult, 0, value, tiles[0].rows, step);
  return true;
}
// Results take the place of the logits.
template <class V>
bool kl_div_vjp_tile(const InformationRow& row, const cpu::Tile* tiles, const std::int64_t* step) {
  using T = ElementOf<V>;
  TwoTiles<V> both(tiles);
  if (!both.reduce()) return false;
  const V g = lanes_of<V>([&](int b) SUMEXP_INLINE {
    T g = T(0);
    if (b < tiles[0].rows) row.moves.pack_row(row.plan, cpu::kOfRow, row.at[cpu::kOfRow] + b * step[cpu::kOfRow], 0, 1, &g);
    return g;
  });
  const PairGradient<V> gradient = pair_gradient(g, both.p, both.pair.winner, both.value(), both.divergence, both.of_others);
  V *const to_p = static_cast<V*>(tiles[0].in[0]), *const to_q = static_cast<V*>(tiles[1].in[0]);
  for (int j = 0; j < both.n; ++j) {
    const PairAt<V> pair = both.at(j);
    const V dp = gradient.of_p(both.x[j], pair);
    to_q[j] = gradient.of_q(pair);
    to_p[j] = dp;
  }
  return true;
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS
