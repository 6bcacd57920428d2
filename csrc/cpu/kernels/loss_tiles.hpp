// Cross-entropy of V::W short rows at a time, of which nothing but loss and gradient is asked, with probabilities or one target
// each: what finish_loss makes of a row, in vectors, for panels and for tiles; and a tile's sums and gradient. For losses.cpp.
#pragma once

#include "../../ops/losses.hpp"
#include "losses.hpp"
#include "transposed.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

template <class V>
struct LossSingles {
  using T = ElementOf<V>;
  using O = WideOf<T>;
  static constexpr int W = V::W;

  const LossOptions& options;
  const bool has_dense = options.has_dense();
  T z[W], loss[W], at_target[W];
  double a[W];  // weight of the target
  Wide<T> of_target[W], own[W], minus_share[W], factor[W], scale[W], all[W];

  explicit LossSingles(const LossOptions& options) : options(options) {}

  // Whether they are all that is asked.
  static bool suffice(const LossOptions& options, const cpu::LossRow& row) {
    return options.z_loss == 0.0 && !row.lse && !row.log_prob && !row.entropy && !row.z_loss && !row.predicted && !row.correct;
  }
  // Row b; of probabilities a part without weight, whose z is the row's maximum.
  void put(int b, const LossPart<T>& part, const cpu::LossRow& row) {
    a[b] = part.a(options), z[b] = part.z;
    if (!has_dense) return;
    const double share = options.dense_scale() * part.of_class;
    of_target[b] = O::constant(a[b]), own[b] = O::constant(a[b]) + O::constant(share), minus_share[b] = O::constant(-share);
    factor[b] = O::constant(row.loss_factor), scale[b] = O::constant(row.gradient_factor);
  }
  void repeat(int from, int b) {
    a[b] = a[from], z[b] = z[from];
    if (!has_dense) return;
    of_target[b] = of_target[from], own[b] = own[from], minus_share[b] = minus_share[from];
    factor[b] = factor[from], scale[b] = scale[from];
  }
  void finish(const RowSum<V>& sum, Wide<V> L) {
    V::store(loss, cross_entropy(sum.m, L, V::load(z)));
    V::store(at_target, CrossEntropyWithGrad::finish(sum, V::load(z)).at_target);
  }
  // With the sums of DenseSum.
  void finish(const RowSum<V>& sum, Wide<V> L, Wide<V> distance, Wide<V> weight) {
    using O = WideOf<V>;
    const V zero = V(T(0)), z_t = V::load(z);
    const Wide<V> target = wide_lanes(of_target), nothing = O::constant(0), dense = weight * O::constant(options.dense_scale());
    const Wide<V> of_part = (O::from(sum.m, zero - z_t) + L) * target;
    const Wide<V> of_dense = (O::scaled(distance, 1.0 / kShrink<T>) + weight * L) * O::constant(options.dense_scale());
    V::store(loss, O::narrow(((nothing + of_part) + of_dense) * wide_lanes(factor)));
    const Wide<V> g = target_gradient(sum, z_t, (dense + wide_lanes(minus_share)) + nothing, wide_lanes(own)).value;
    V::store(at_target, O::narrow(g * wide_lanes(scale)));
    put_lanes(target + dense, all);
  }

  double weights(int b) const { return has_dense ? number(all[b]) : 0.0 + a[b]; }  // no sum is -0
  // Whether numbers are such that these are row b's.
  bool serves(int b, const cpu::LossRow& row) const {
    const double f = row.gradient_factor;
    if (!is_finite(z[b]) || (has_dense && !is_finite(loss[b]))) return false;
    return !row.gradient || (is_finite(static_cast<T>(f)) && is_finite(static_cast<T>(weights(b) * f)));
  }
  T loss_of(int b, const cpu::LossRow& row) const {
    return quiet(has_dense ? loss[b] : weighted_loss(loss[b], a[b] * row.loss_factor));
  }
  LossGradient<T> gradient(int b, const cpu::LossRow& row) const {
    const double f = row.gradient_factor;
    const T scale = quiet(static_cast<T>(weights(b) * f)), target = has_dense ? at_target[b] : at_target[b] * scale;
    return {scale, static_cast<T>(options.dense_scale() * f), quiet(target), false};
  }
};

// Rows with a dense sum, transposed: logits in tile.in[0], whose place the gradient takes, and probabilities, if any, in
// tile.in[1]. False, with nothing written, where a row is special.
template <class V, class Terms>
bool loss_tile(const cpu::LossJob& job, const cpu::Tile& tile, const cpu::LossRow* rows) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  constexpr int W = V::W, kGroup = Geometry<T>::kGroup;
  typedef T __attribute__((may_alias)) Lane;
  const LossOptions options = {tile.count,           job.smoothing, job.z_loss, job.temperature, job.target_moves != nullptr,
                               job.weight != nullptr};
  V* const x = static_cast<V*>(tile.in[0]);
  const V *const terms = static_cast<const V*>(tile.terms), *const y = static_cast<const V*>(tile.in[1]);
  const T* const w = static_cast<const T*>(job.weight);
  const V zero = V(T(0)), one = V(T(1));
  const bool ones = !options.probabilities && !w;
  // Class j's weights in the loss, over dense_scale.
  const auto weight_of = [&](int j) SUMEXP_INLINE {
    const V of_class = w ? V(w[j]) : one;
    if (!options.probabilities) return of_class;
    if (!options.mixed()) return y[j];
    const V smooth = options.smoothed(y[j]);
    return w ? smooth * of_class : smooth;
  };
  const auto left_out = [&](int b) { return !options.probabilities && rows[b].part_count == 0; };

  int kept = 0;
  for (int b = 0; b < tile.rows; ++b) kept += !left_out(b);
  if (!kept) {
    for (int j = 0; j < tile.count; ++j) x[j] = zero;
    return true;
  }
  TileState<V> state;
  if (!transposed_states<Terms, V, true, true>(&tile, 1, &state)) return false;
  const RowSum<V> sum = row_sum(state);
  Wide<V> distances[kGroup], weights[kGroup];
  bool gone = false;
  for (int j = 0; j < tile.count; ++j) {
    const int l = j % kGroup;
    const Wide<V> d = distance_below(sum.m, x[j]);
    gone |= any(equal(x[j], V(-Limits<T>::infinity)));
    if (j < kGroup) distances[l] = weights[l] = O::constant(0);
    if (ones) {
      distances[l] = distances[l] + d;
    } else {
      const Wide<V> weight = O::from(weight_of(j));
      distances[l] = distances[l] + d * weight, weights[l] = weights[l] + weight;
    }
  }
  if (gone) return false;

  LossSingles<V> singles(options);
  T m[W];
  V::store(m, sum.m);
  for (int b = 0; b < W; ++b) {
    const bool own = b < tile.rows && !left_out(b);
    LossPart<T> part = {0, 0.0, 0.0, m[b]};
    if (own && !options.probabilities) {
      part.index = rows[b].parts[0].index, part.weight = rows[b].parts[0].weight;
      part.of_class = w ? static_cast<double>(w[part.index]) : 1.0;
      part.z = reinterpret_cast<const Lane*>(x + part.index)[b];
    }
    singles.put(b, part, rows[own ? b : 0]);
  }
  const Wide<V> distance = tile_fold_members(tile.count, distances);
  const Wide<V> weight = ones ? O::constant(static_cast<double>(options.n)) : tile_fold_members(tile.count, weights);
  singles.finish(sum, log_over_max(sum), distance, weight);
  T scale[W] = {}, dense[W] = {}, at_target[W];
  for (int b = 0; b < tile.rows; ++b) {
    if (left_out(b)) continue;
    if (!singles.serves(b, rows[b])) return false;
    const LossGradient<T> gradient = singles.gradient(b, rows[b]);
    scale[b] = gradient.scale, dense[b] = gradient.dense, at_target[b] = gradient.at_target;
  }
  for (int b = 0; b < tile.rows; ++b)
    if (rows[b].loss && !left_out(b)) *static_cast<T*>(rows[b].loss) = singles.loss_of(b, rows[b]);
  if (!rows[0].gradient) return true;
  const TermScale<V> of_terms = term_scale<Terms, true>(sum, state.N);
  const V all = V::load(scale), minus = zero - V::load(dense);
  for (int j = 0; j < tile.count; ++j) x[j] = dense_gradient(probability<Terms>(terms[j], of_terms), all, weight_of(j), minus);
  for (int b = 0; b < tile.rows; ++b)
    if (rows[b].part_count == 1 && !options.probabilities)
      reinterpret_cast<Lane*>(x + rows[b].parts[0].index)[b] = at_target[b];
  return true;
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS
