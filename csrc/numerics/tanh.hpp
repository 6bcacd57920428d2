// tanh(u) and its derivative, from e^y and 1 - e^y of y = -2 |u| (probability_of_log):
//
//   tanh |u| = (1 - e^y) / (1 + e^y)          1 - tanh^2 u = 4 e^y / (1 + e^y)^2
//
// Neither cancels: 1 - e^y keeps its digits as u -> 0 and e^y as |u| -> infinity.
//
// Contract  any u; tanh(+-infinity) = +-1 with derivative 0; NaN gives NaN; -0 gives +0
//           tanh within 3.3 * 2^-24 (2^-53), the derivative within 5 * 2^-24 (2^-53), relative (numerics/README.md, "Losses")
#pragma once

#include "exp.hpp"

namespace sumexp::SUMEXP_NS {

template <class V>
struct Tanh {
  V value, slope;  // tanh(u), 1 - tanh^2(u)
};
template <class V>
SUMEXP_FN Tanh<V> tanh_of(V u) {
  using T = ElementOf<V>;
  const V zero = V(T(0)), one = V(T(1));
  const auto positive = at_or_above(u, zero);
  const Probability<V> e = probability_of_log(pick(positive, V(T(-2)), V(T(2))) * u);
  const V inverse = one / (one + e.value), size = e.rest / (one + e.value);
  return {pick(positive, size, zero - size), (V(T(4)) * e.value) * (inverse * inverse)};
}

// softcap tanh(x / softcap), and the derivative; infinite x stay what they are, with derivative 0.
template <class V>
SUMEXP_FN Tanh<V> capped(V x, V softcap) {
  using T = ElementOf<V>;
  const V infinity = V(Limits<T>::infinity);
  const Tanh<V> t = tanh_of(x / softcap);
  const V value = pick(equal(x, infinity), x, softcap * t.value);
  return {pick(equal(x, V(T(0)) - infinity), x, value), t.slope};
}

}  // namespace sumexp::SUMEXP_NS
