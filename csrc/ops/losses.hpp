// What cross-entropy with its options makes of a row (include/sumexp/losses.hpp has the formula, numerics/README.md, "Losses",
// the error): the sums of a chunk beside those of the exponentials, how two of them merge, and what a finished row gives.
#pragma once

#include "cross_entropy.hpp"

namespace sumexp::SUMEXP_NS {

// -- the sums of a row ---------------------------------------------------------------------------------------------

// sum_j b_j (m - z_j) and sum_j b_j of dense weights b, without the elements that are -inf, of which `lost` says whether one
// has a weight. All parts have the sign of their weight, so that nothing cancels among weights of one sign.
template <class T>
struct DenseSum {
  Wide<T> distance, weight;
  bool lost;

  SUMEXP_FN static DenseSum empty() { return {WideOf<T>::constant(0), WideOf<T>::constant(0), false}; }
};

// A chunk or more of a row: what exponentials sum to, and beside it what losses ask for.
template <class T>
struct LossState {
  ExpState<T> sum;
  DenseSum<T> dense, plain;  // of the weights that the loss has, and of the target's own
  Wide<T> spread;            // sum_j e^(z_j) (m - z_j), relative to what sum is

  SUMEXP_FN static LossState empty() {
    return {ExpState<T>::empty(), DenseSum<T>::empty(), DenseSum<T>::empty(), WideOf<T>::constant(0)};
  }
};

// up: from the lower maximum to the upper one, finite
template <class T>
SUMEXP_FN DenseSum<T> merge(bool a_upper, const DenseSum<T>& a, const DenseSum<T>& b, Wide<T> up) {
  const Wide<T> lower = pick(a_upper, b.distance, a.distance) + pick(a_upper, b.weight, a.weight) * up;
  return {pick(a_upper, a.distance, b.distance) + lower, a.weight + b.weight, a.lost || b.lost};
}
template <class T>
SUMEXP_FN LossState<T> merge(const LossState<T>& a, const LossState<T>& b) {
  using O = WideOf<T>;
  const bool a_upper = a.sum.m >= b.sum.m;
  const ExpState<T> upper = pick(a_upper, a.sum, b.sum), lower = pick(a_upper, b.sum, a.sum);
  const bool rise = is_finite(lower.m) && is_finite(upper.m);
  const Wide<T> up = rise ? O::from(upper.m, T(0) - lower.m) : O::constant(0);
  const std::int64_t gap = exponent_gap(lower.m, lower.N, upper.m, upper.N);
  LossState<T> to = {merge(a.sum, b.sum), merge(a_upper, a.dense, b.dense, up), merge(a_upper, a.plain, b.plain, up),
                     pick(a_upper, a.spread, b.spread)};
  if (rise && gap > kFarBelow) to.spread = to.spread + shifted<T>(pick(a_upper, b.spread, a.spread) + total(lower) * up, gap);
  return to;
}

// What an element adds to them. m - z, of which z = -inf has none.
template <class V>
SUMEXP_FN Wide<V> distance_below(V m, V z) {
  const V zero = V(ElementOf<V>(0));
  return WideOf<V>::from(m, zero - pick(equal(z, V(-Limits<ElementOf<V>>::infinity)), m, z));
}
// t (m - z), t the term of z
template <class V>
SUMEXP_FN Wide<V> spread_part(V term, V m, V z) {
  const V zero = V(ElementOf<V>(0));
  return WideOf<V>::from(term) * WideOf<V>::from(pick(equal(term, zero), zero, m - z));
}
// Rows: add_rows is the sum of two rows' losses or weights.
SUMEXP_FN double add_rows(double a, double b) { return a + b; }
SUMEXP_FN DD<double> add_rows(DD<double> a, DD<double> b) {
  const double head = a.hi + b.hi;
  if (!(head - head == 0.0)) return {head, 0.0};  // where pairs would make a NaN of an infinity
  return a + b;
}

// -- a finished row --------------------------------------------------------------------------------------------------

// What all rows of a call share.
struct LossOptions {
  std::int64_t n;
  double smoothing, z_loss, temperature;
  bool probabilities, weighted;  // are targets probabilities; have classes weights

  SUMEXP_FN bool has_dense() const { return probabilities || smoothing != 0.0; }
  SUMEXP_FN bool mixed() const { return probabilities && (weighted || smoothing != 0.0); }  // the loss's weights are not y
  SUMEXP_FN double dense_scale() const { return probabilities ? 1.0 : smoothing / static_cast<double>(n); }
  // a_j / dense_scale from the target's y_j and class weight w_j, where weights are mixed
  template <class V>
  SUMEXP_FN V smoothed(V y) const {
    using T = ElementOf<V>;
    return fma(y, V(static_cast<T>(1.0 - smoothing)), V(static_cast<T>(smoothing / static_cast<double>(n))));
  }
};

// One class of a target of indices.
template <class T>
struct LossPart {
  std::int64_t index;
  double weight, of_class;  // y and w
  T z;
  SUMEXP_FN double a(const LossOptions& o) const { return (1.0 - o.smoothing) * of_class * weight; }
};

// gradient_j = (scale p_j - dense b_j) slope_j, but at_target at the one target.
template <class T>
struct LossGradient {
  T scale, dense, at_target;
  bool nan;
};
template <class V>
SUMEXP_FN V dense_gradient(V p, V scale, V weight, V minus_dense) {
  return fma(p, scale, weight * minus_dense);
}

template <class T>
struct LossResult {
  T loss, lse, log_prob, entropy, z_loss;
  LossGradient<T> gradient;
};

// The one NaN, whatever arithmetic made it.
template <class T>
SUMEXP_FN T one_nan(T x) {
  return x == x ? x : Limits<T>::nan();
}
SUMEXP_FN double number(double w) { return w; }
SUMEXP_FN double number(DD<double> w) { return w.hi + w.lo; }

// sum of b (log S - z) of a dense sum, m and L = log S - m being the row's
template <class T>
SUMEXP_FN Wide<T> distance_to(const DenseSum<T>& dense, Wide<T> L) {
  return dense.distance + dense.weight * L;
}

template <class T>
SUMEXP_FN LossResult<T> nan_loss(const LossState<T>& state) {
  const T nan = Limits<T>::nan();
  return {nan, is_nan(state.sum.R) ? nan : state.sum.m, nan, nan, nan, {nan, nan, nan, true}};
}

// each_part(body): body(part) for each of the part_count parts of a target of indices. Without `entropy` and `gradient` these
// are not made.
template <class T, class EachPart>
SUMEXP_FN LossResult<T> finish_loss(const LossOptions& o, const LossState<T>& state, std::int64_t part_count,
                                    const EachPart& each_part, double loss_factor, double gradient_factor, bool entropy,
                                    bool gradient) {
  using O = WideOf<T>;
  if (is_nan(state.sum.R) || !is_finite(state.sum.m)) return nan_loss(state);
  const RowSum<T> sum = row_sum(state.sum);
  const T infinity = Limits<T>::infinity;
  const Wide<T> L = log_over_max(sum), lse = O::from(sum.m) + L, zero = O::constant(0);
  const double lse_1 = number(lse), dense_scale = o.dense_scale();
  const bool has_dense = o.has_dense(), too_large = !is_finite(lse_1 * lse_1 * o.z_loss);
  const Wide<T> z_loss = o.z_loss == 0.0 || too_large ? zero : lse * lse * O::constant(o.z_loss);
  const bool single = part_count == 1, plain = single && !has_dense && o.z_loss == 0.0;

  Wide<T> loss = zero, own = zero, weights = zero;  // own: -log_prob
  bool lost = o.z_loss != 0.0 && too_large, own_lost = false;
  LossPart<T> last = {0, 0.0, 0.0, T(0)};
  each_part([&](const LossPart<T>& part) SUMEXP_INLINE {
    const double a = part.a(o);
    last = part;
    weights = weights + O::constant(a);
    if (part.z == -infinity) {
      lost |= a != 0.0, own_lost |= part.weight != 0.0;
      return;
    }
    const Wide<T> distance = O::from(sum.m, T(0) - part.z) + L;
    loss = loss + distance * O::constant(a), own = own + distance * O::constant(part.weight);
  });
  if (has_dense) {
    loss = loss + distance_to(state.dense, L) * O::constant(dense_scale);
    weights = weights + state.dense.weight * O::constant(dense_scale);
    lost |= state.dense.lost && dense_scale != 0.0;
    if (o.probabilities) {
      own = o.mixed() ? distance_to(state.plain, L) : distance_to(state.dense, L);
      own_lost = o.mixed() ? state.plain.lost : state.dense.lost;
    }
  }
  loss = loss + z_loss;

  LossResult<T> to = {};
  if (plain) to.loss = weighted_loss(cross_entropy(sum, last.z), last.a(o) * loss_factor);
  else if (lost) to.loss = weighted_loss(infinity, loss_factor);
  else to.loss = O::narrow(loss * O::constant(loss_factor));
  to.loss = one_nan(to.loss);
  to.lse = O::narrow(lse);
  to.log_prob = own_lost ? -infinity : one_nan(T(0) - O::narrow(own));
  to.z_loss = lost && o.z_loss != 0.0 && too_large ? infinity : O::narrow(z_loss);
  if (entropy) to.entropy = O::narrow(L + state.spread / total(sum));
  if (!gradient) return to;
  const double f = gradient_factor / o.temperature;
  if (!is_finite(f)) {  // of a mean over nothing
    to.gradient = {T(0), T(0), T(0), true};
    return to;
  }
  const Wide<T> of_lse = lse * O::constant(2.0 * o.z_loss), all = weights + of_lse;
  to.gradient = {one_nan(static_cast<T>(number(all) * f)), static_cast<T>(dense_scale * f), T(0), false};
  if (plain) {
    to.gradient.at_target = CrossEntropyWithGrad::finish(sum, last.z).at_target * to.gradient.scale;
  } else if (single) {
    // (all - a) p_t - a (1 - p_t), a the whole weight of t
    const double own_dense = has_dense ? dense_scale * last.of_class : 0.0;
    const Wide<T> others = others_over_max(sum), whole = sum.c + others,
                  e_t = O::from(probability_of_log(last.z - sum.m).value);
    const Wide<T> minus_rest = ((e_t + O::scaled(sum.c, -1.0)) + O::scaled(others, -1.0)) / whole;
    const Wide<T> own_part = O::constant(last.a(o)),
                  rest_of_all = has_dense ? state.dense.weight * O::constant(dense_scale) + O::constant(-own_dense) : zero;
    const Wide<T> g = (rest_of_all + of_lse) * (e_t / whole) + (own_part + O::constant(own_dense)) * minus_rest;
    to.gradient.at_target = O::narrow(g * O::constant(f));
  }
  to.gradient.at_target = one_nan(to.gradient.at_target);
  return to;
}

}  // namespace sumexp::SUMEXP_NS
