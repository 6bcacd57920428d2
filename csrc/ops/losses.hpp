// What cross-entropy with its options makes of a row (include/sumexp/losses.hpp has the formula, numerics/README.md, "Losses",
// the error): the sums of a chunk beside those of the exponentials, how two of them merge, and what a finished row gives.
#pragma once

#include "cross_entropy.hpp"

namespace sumexp::SUMEXP_NS {

// -- the sums of a row ---------------------------------------------------------------------------------------------

// Distances between logits, and sums of them, are kept times this: those of doubles overflow without.
template <class T>
inline constexpr double kShrink = sizeof(T) == 8 ? 0x1p-32 : 1.0;
template <class V>
SUMEXP_FN V shrunk(V x) {
  using T = ElementOf<V>;
  if constexpr (kShrink<T> == 1.0) return x;
  else return x * V(static_cast<T>(kShrink<T>));
}
// m - z, shrunk, of which z = -inf has none.
template <class V>
SUMEXP_FN Wide<V> distance_below(V m, V z) {
  const V zero = V(ElementOf<V>(0)), from = shrunk(m);
  return WideOf<V>::from(from, zero - pick(equal(z, V(-Limits<ElementOf<V>>::infinity)), from, shrunk(z)));
}

// sum_j b_j (m - z_j), shrunk, and sum_j b_j of dense weights b, without the elements that are -inf, of which `lost` says
// whether one has a weight. All parts have the sign of their weight, so that nothing cancels among weights of one sign.
template <class T>
struct DenseSum {
  Wide<T> distance, weight;
  bool lost;

  SUMEXP_FN static DenseSum empty() { return {WideOf<T>::constant(0), WideOf<T>::constant(0), false}; }
};

// a or b, member by member, as pick of ExpState is
template <class T>
SUMEXP_FN DenseSum<T> pick(bool mask, const DenseSum<T>& a, const DenseSum<T>& b) {
  return {pick(mask, a.distance, b.distance), pick(mask, a.weight, b.weight), mask ? a.lost : b.lost};
}

// A chunk or more of a row: what exponentials sum to, and beside it what losses ask for.
template <class T>
struct LossState {
  ExpState<T> sum;
  DenseSum<T> dense, plain;  // of the weights that the loss has, and of the target's own
  Wide<T> spread;            // sum_j e^(z_j) (m - z_j), relative to what sum is
  bool apart;                // of a row that is (LossTop): distances are those of its x from the row's maximum

  SUMEXP_FN static LossState empty(bool apart = false) {
    return {ExpState<T>::empty(), DenseSum<T>::empty(), DenseSum<T>::empty(), WideOf<T>::constant(0), apart};
  }
};

// up: from the lower maximum to the upper one, finite and shrunk
template <class T>
SUMEXP_FN DenseSum<T> merge(bool a_upper, const DenseSum<T>& a, const DenseSum<T>& b, Wide<T> up) {
  const Wide<T> lower = pick(a_upper, b.distance, a.distance) + pick(a_upper, b.weight, a.weight) * up;
  return {pick(a_upper, a.distance, b.distance) + lower, a.weight + b.weight, a.lost || b.lost};
}
template <class T>
SUMEXP_MERGE_FN LossState<T> merge(const LossState<T>& a, const LossState<T>& b) {
  using O = WideOf<T>;
  const bool a_upper = a.sum.m >= b.sum.m;
  const ExpState<T> upper = pick(a_upper, a.sum, b.sum), lower = pick(a_upper, b.sum, a.sum);
  const bool rise = is_finite(lower.m) && is_finite(upper.m);
  const Wide<T> up = rise ? O::from(upper.m, T(0) - lower.m) : O::constant(0);
  const std::int64_t gap = exponent_gap(lower.m, lower.N, upper.m, upper.N);
  const Wide<T> of_dense = a.apart || !rise ? O::constant(0) : distance_below(upper.m, lower.m);
  LossState<T> to = {merge(a.sum, b.sum), merge(a_upper, a.dense, b.dense, of_dense),
                     merge(a_upper, a.plain, b.plain, of_dense), pick(a_upper, a.spread, b.spread), a.apart};
  if (rise && gap > kFarBelow) to.spread = to.spread + shifted<T>(pick(a_upper, b.spread, a.spread) + total(lower) * up, gap);
  return to;
}

// t (m - z), t the term of z
template <class V>
SUMEXP_FN Wide<V> spread_part(V term, V m, V z) {
  const V zero = V(ElementOf<V>(0));
  return WideOf<V>::from(term) * WideOf<V>::from(pick(equal(term, zero), zero, m - z));
}
// The sum of two losses or weights, of rows or parts of one; infinite where pairs would make a NaN of it.
SUMEXP_FN double sum_or_infinity(double a, double b) { return a + b; }
SUMEXP_FN DD<double> sum_or_infinity(DD<double> a, DD<double> b) {
  const double head = a.hi + b.hi;
  if (!(head - head == 0.0)) return {head, 0.0};
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
  double below = 0.0;  // of a row apart: LossTop::below of the class
  SUMEXP_FN double a(const LossOptions& o) const { return (1.0 - o.smoothing) * of_class * weight; }
};

// gradient_j = (scale p_j - dense b_j) slope_j, but at_target at the one target.
template <class T>
struct LossGradient {
  T scale, dense, at_target;
  bool nan;           // all of it is `scale`: NaN, or 0 on a GPU where nothing is left of a mean
  bool late = false;  // divided by the temperature at last, since factors would overflow
};
// A row in which a quotient by the temperature T overflows is taken less its maximum: z_j = 2 ((x_j/2 - top/2) / T). What is
// lost of large distances then, weighted sums of them have from x itself: they are of top - x_j.
template <class T>
struct LossTop {
  bool apart = false;
  T top = T(0);
  double temperature = 1.0;

  // top - x, shrunk
  SUMEXP_FN double below(T x) const { return static_cast<double>(shrunk(top)) - static_cast<double>(shrunk(x)); }
  SUMEXP_FN Wide<T> over_temperature(double distances) const {
    return WideOf<T>::constant(distances == 0.0 ? 0.0 : distances / temperature / kShrink<T>);
  }
};
template <class V>
SUMEXP_FN V dense_gradient(V p, V scale, V weight, V minus_dense) {
  return fma(p, scale, weight * minus_dense);
}
// scale p of a scale that is not finite: where p is 0, infinity makes 0 of it.
template <class V>
SUMEXP_FN V times_unbounded(V p, ElementOf<V> scale) {
  using T = ElementOf<V>;
  return pick(equal(p, V(T(0))), V(is_nan(scale) ? scale : T(0)), p * V(scale));
}

template <class T>
struct LossResult {
  T loss, lse, log_prob, entropy, z_loss;
  LossGradient<T> gradient;
};

// The class with the largest y among pairs, whose weights may be of the same one; of equal ones the lowest. each_pair(body):
// body(index, weight) for each. -1 of no pair.
template <class EachPair>
SUMEXP_FN std::int64_t largest_class(const EachPair& each_pair) {
  std::int64_t found = -1;
  double best = 0.0;
  each_pair([&](std::int64_t index, double) {
    double y = 0.0;
    each_pair([&](std::int64_t other, double weight) { y = other == index ? y + weight : y; });
    if (found < 0 || y > best || (y == best && index < found)) best = y, found = index;
  });
  return found;
}

SUMEXP_FN double number(double w) { return w; }
// Over a denominator of 0: nothing, which is NaN, or 0.
SUMEXP_FN double mean_of(double sum, double denominator, bool zero_if_empty) {
  if (denominator == 0.0) return zero_if_empty ? 0.0 : Limits<double>::nan();
  return quiet(sum / denominator);
}
SUMEXP_FN double number(DD<double> w) { return w.hi + w.lo; }

// scale (d + rest) of a shrunk distance d, which by itself may overflow
template <class T>
SUMEXP_FN Wide<T> scaled_distance(Wide<T> d, Wide<T> rest, double scale) {
  using O = WideOf<T>;
  const Wide<T> factor = O::constant(scale), whole = O::scaled(d, 1.0 / kShrink<T>);
  if (is_finite(head(whole))) return (whole + rest) * factor;
  return O::scaled(d * factor, 1.0 / kShrink<T>) + rest * factor;
}
// scale sum b (log S - z) of a dense sum, m and L = log S - m being the row's
template <class T>
SUMEXP_FN Wide<T> distance_to(const DenseSum<T>& dense, Wide<T> L, double scale, const LossTop<T>& top) {
  if (!top.apart) return scaled_distance<T>(dense.distance, dense.weight * L, scale);
  return top.over_temperature(number(dense.distance) * scale) + dense.weight * L * WideOf<T>::constant(scale);
}
// a (lse - z) of a part
template <class T>
SUMEXP_FN Wide<T> distance_to(const LossPart<T>& part, T m, Wide<T> L, double a, const LossTop<T>& top) {
  if (!top.apart) return scaled_distance<T>(distance_below(m, part.z), L, a);
  return top.over_temperature(part.below * a) + L * WideOf<T>::constant(a);
}

// Whether it is its distances that overflow, not a weight.
template <class T>
SUMEXP_FN bool too_far(const DenseSum<T>& dense, Wide<T> distance) {
  return !is_finite(number(distance)) && is_finite(number(dense.weight));
}

template <class T>
SUMEXP_FN LossResult<T> nan_loss(const LossState<T>& state) {
  const T nan = Limits<T>::nan();
  return {nan, is_nan(state.sum.R) ? nan : state.sum.m, nan, nan, nan, {nan, nan, nan, true}};
}

// Of the one target: rest p_t - own (1 - p_t), own being its whole weight and rest that of the others; and e_t = e^(z_t - m).
template <class V>
struct TargetGradient {
  Wide<V> value, e_t;
};
template <class V>
SUMEXP_FN TargetGradient<V> target_gradient(const RowSum<V>& sum, V z_t, Wide<V> rest, Wide<V> own) {
  using O = WideOf<V>;
  const Wide<V> others = others_over_max(sum), whole = sum.c + others, e_t = O::from(probability_of_log(z_t - sum.m).value);
  const Wide<V> minus_rest = ((e_t + O::scaled(sum.c, -1.0)) + O::scaled(others, -1.0)) / whole;
  return {rest * (e_t / whole) + own * minus_rest, e_t};
}

// A row's sum, and L = log S - m.
template <class T>
struct LoggedSum {
  RowSum<T> sum;
  Wide<T> L;
};

// each_part(body): body(part) for each of the part_count parts of a target of indices. Without `entropy` and `gradient` these
// are not made. known: of state.sum, where it was made before.
template <class T, class EachPart>
SUMEXP_MERGE_FN LossResult<T> finish_loss(const LossOptions& o, const LossState<T>& state, std::int64_t part_count,
                                          const EachPart& each_part, double loss_factor, double gradient_factor, bool entropy,
                                          bool gradient, const LossTop<T>& top = {}, const LoggedSum<T>* known = nullptr) {
  using O = WideOf<T>;
  if (is_nan(state.sum.R) || !is_finite(state.sum.m)) return nan_loss(state);
  const RowSum<T> sum = known ? known->sum : row_sum(state.sum);
  const T infinity = Limits<T>::infinity;
  const double shift = top.apart ? static_cast<double>(top.top) / o.temperature : 0.0, dense_scale = o.dense_scale();
  const Wide<T> L = known ? known->L : log_over_max(sum), zero = O::constant(0);
  const Wide<T> lse = (top.apart && is_finite(shift) ? O::constant(shift) : O::from(sum.m)) + L;
  const double lse_1 = is_finite(shift) ? number(lse) : shift;
  const bool has_dense = o.has_dense(), too_large = o.z_loss != 0.0 && !is_finite(lse_1 * (lse_1 * o.z_loss));
  const Wide<T> z_loss = o.z_loss == 0.0 || too_large ? zero : lse * (lse * O::constant(o.z_loss));
  const bool single = part_count == 1, plain = single && !has_dense && o.z_loss == 0.0;

  Wide<T> loss = zero, own = zero, weights = zero;  // own: -log_prob
  bool lost = o.z_loss != 0.0 && too_large, own_lost = false;
  LossPart<T> last = {0, 0.0, 0.0, T(0)};
  each_part([&](const LossPart<T>& part) SUMEXP_INLINE {
    const double a = part.a(o);
    last = part;
    weights = weights + O::constant(a);
    if (part.z == -infinity && !top.apart) {
      lost |= a != 0.0, own_lost |= part.weight != 0.0;
      return;
    }
    const Wide<T> of_loss = distance_to(part, sum.m, L, a, top), of_own = distance_to(part, sum.m, L, part.weight, top);
    if (is_finite(number(of_loss)) || !is_finite(a)) loss = sum_or_infinity(loss, of_loss);
    else lost |= a != 0.0;
    if (is_finite(number(of_own)) || !is_finite(part.weight)) own = sum_or_infinity(own, of_own);
    else own_lost |= part.weight != 0.0;
  });
  if (has_dense) {
    const Wide<T> distance = distance_to(state.dense, L, dense_scale, top);
    loss = sum_or_infinity(loss, distance);
    weights = weights + state.dense.weight * O::constant(dense_scale);
    lost |= (state.dense.lost && dense_scale != 0.0) || too_far(state.dense, distance);
    if (o.probabilities) {
      const DenseSum<T> target = pick(o.mixed(), state.plain, state.dense);
      own = distance_to(target, L, 1.0, top);
      own_lost = target.lost || too_far(target, own);
    }
  }
  loss = sum_or_infinity(loss, z_loss);

  const bool infinite = head(loss) - head(loss) != 0.0 && !is_nan(loss);
  LossResult<T> to = {};
  if (plain && !top.apart) to.loss = weighted_loss(cross_entropy(sum.m, L, last.z), last.a(o) * loss_factor);
  else if (lost) to.loss = weighted_loss(infinity, loss_factor);
  else if (infinite) to.loss = weighted_loss(head(loss) > 0.0 ? infinity : -infinity, loss_factor);
  else to.loss = O::narrow(loss * O::constant(loss_factor));
  to.loss = quiet(to.loss);
  to.lse = is_finite(shift) ? O::narrow(lse) : static_cast<T>(shift);
  to.log_prob = own_lost ? -infinity : quiet(T(0) - O::narrow(own));
  to.z_loss = lost && o.z_loss != 0.0 && too_large ? infinity : O::narrow(z_loss);
  if (entropy) to.entropy = O::narrow(L + state.spread / total(sum));
  if (!gradient) return to;
  double f = gradient_factor / o.temperature;
  if (!is_finite(gradient_factor)) {  // of a mean over nothing
    const T nan = Limits<T>::nan();
    to.gradient = {nan, nan, nan, true};
    return to;
  }
  const double slope = o.z_loss == 0.0 ? 0.0 : lse_1 * (2.0 * o.z_loss);  // infinite, it is all there is of the sums
  const bool unbounded = !is_finite(slope);
  const Wide<T> of_lse = o.z_loss == 0.0 || unbounded ? zero : lse * O::constant(2.0 * o.z_loss);
  const double all = unbounded ? slope : number(weights + of_lse);
  const bool late = !is_finite(static_cast<T>(f)) || !is_finite(static_cast<T>(all * f));
  if (late) f = gradient_factor;
  to.gradient = {quiet(static_cast<T>(all * f)), static_cast<T>(dense_scale * f), T(0), false, late};
  if (plain) {
    to.gradient.at_target = CrossEntropyWithGrad::finish(sum, last.z).at_target * to.gradient.scale;
  } else if (single) {
    const double own_dense = has_dense ? dense_scale * last.of_class : 0.0;
    const Wide<T> rest = has_dense ? state.dense.weight * O::constant(dense_scale) + O::constant(-own_dense) : zero;
    const TargetGradient<T> g = target_gradient(sum, last.z, rest + of_lse, O::constant(last.a(o)) + O::constant(own_dense));
    to.gradient.at_target = unbounded && number(g.e_t) > 0.0 ? static_cast<T>(slope * f) : O::narrow(g.value * O::constant(f));
  }
  to.gradient.at_target = quiet(to.gradient.at_target);
  return to;
}

}  // namespace sumexp::SUMEXP_NS
