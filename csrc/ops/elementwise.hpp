// Elementwise functions of the log domain and their derivatives: apply<W>(in, out) for V, double or a vector of doubles. W is
// V, or DD<V> for results of double. Every number is computed in double, from inputs of any dtype (numerics/log_domain.hpp).
//
// Whoever includes it has defined, for V, `unordered`, `count` and `quiet` before.
#pragma once

#include "../numerics/log_domain.hpp"

#if defined(__CUDACC__)
#define SUMEXP_APART __host__ __device__ __noinline__
#else
#define SUMEXP_APART __attribute__((noinline))
#endif

namespace sumexp::SUMEXP_NS::elementwise {

template <class M, class V>
SUMEXP_FN V not_a_number(M where, V x) {
  return pick(where, V(Limits<double>::nan()), x);
}
template <class V>
SUMEXP_FN V infinity() {
  return V(Limits<double>::infinity);
}
// small - big, 0 of equal numbers, infinite ones too
template <class W, class V, class M>
SUMEXP_FN W apart(V small, V big, M equals) {
  using O = Working<W>;
  return O::choose(equals, O::from(V(0.0)), O::difference(small, big));
}
template <class V>
SUMEXP_FN auto both_absent(V a, V b) {
  return equal(pick(equal(a, b), a, V(0.0)), V(0.0) - infinity<V>());
}

// Of the few lanes that need it, and a call, so that it stays out of the loops.
template <class V>
SUMEXP_APART V next_to_zero(V m, V big, V small, bool minus) {
  return log_next_to_zero(m, two_sum(small, V(0.0) - big), minus);
}

// m + L, L = log(1 +- e^(small - big)). Where the two cancel, the other way.
template <class W, class V>
SUMEXP_FN V sum_of(V m, W L, V big, V small, bool minus) {
  using O = Working<W>;
  const auto infinite = at_or_above(absolute(m), infinity<V>());
  const V plain = pick(infinite, m + O::head(L), O::plus(m, L));
  const V limit = pick(infinite, V(-1.0), pick(equal(m, V(0.0)), V(-1.0), absolute(m) * V(O::kCancelled)));
  const auto cancelled = at_or_above(limit, absolute(plain));
  return count(cancelled) ? pick(cancelled, next_to_zero(m, big, small, minus), plain) : plain;
}

// log(e^a + e^b) = m + log(1 + e^-|a - b|), m = max(a, b).
//   error   |a - b| exact (or to 2^-53), the logarithm within 2^-51, in pairs 2^-59, of itself, the sum rounded once. Where m
//           and the logarithm cancel to 2^-20 of m, in pairs to 2^-6, it is the logarithm of e^m (1 + e^-|a - b|), that being
//           within 2^-96 of what it is.
struct LogAddExp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V a = in[0], b = in[1];
    const auto a_up = at_or_above(a, b);
    const V big = pick(a_up, a, b), small = pick(a_up, b, a);
    const W t = apart<W>(small, big, equal(a, b));
    const V sum = sum_of(big, log1p_or_itself<V>(exponential<V>(t).value()), big, small, false);
    out[0] = not_a_number(unordered(Working<W>::head(t)), sum);
  }
};

// t where it is negative (or NaN), else a number that is
template <class V>
SUMEXP_FN V negative(V t) {
  return pick(at_or_above(t, V(0.0)), V(-1.0), t);
}
template <class V>
SUMEXP_FN DD<V> negative(DD<V> t) {
  const auto above = at_or_above(t.hi, V(0.0));
  return {pick(above, V(-1.0), t.hi), pick(above, V(0.0), t.lo)};
}

// log(e^a - e^b) = a + log(1 - e^-(a - b)) for a > b, with the error of the above.
struct LogSubExp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V a = in[0], b = in[1];
    const W t = O::difference(b, a);
    const V sum = sum_of(a, log_of_complement(exponential<V>(negative(t))), a, b, true);
    const V result = pick(at_or_above(O::head(t), V(0.0)), V(Limits<double>::nan()), not_a_number(unordered(O::head(t)), sum));
    const V zero = pick(at_or_above(a, infinity<V>()), V(Limits<double>::nan()), V(-Limits<double>::infinity));
    out[0] = pick(equal(a, b), zero, result);
  }
};

// log(1 - e^-|x|): log1p where e^-|x| is small, else the logarithm of -expm1(-|x|). A number of one sign: nothing cancels.
struct Log1mExp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V x = in[0], t = V(0.0) - absolute(x);
    const V result = O::plus(V(0.0), log_of_complement(exponential<V>(O::from(t))));
    out[0] = pick(equal(x, V(0.0)), V(-Limits<double>::infinity), not_a_number(unordered(x), result));
  }
};

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): two numbers of one sign.
struct Softplus {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V x = in[0], m = at_least(V(0.0), x), t = V(0.0) - absolute(x);
    const W L = log1p_or_itself<V>(exponential<V>(O::from(t)).value());
    out[0] = not_a_number(unordered(x), pick(at_or_above(m, infinity<V>()), m, O::plus(m, L)));
  }
};

// With E = e^-|a - b|, the weights of the larger and the smaller of a and b are 1 / (1 + E) and E / (1 + E), of which none is a
// difference. Times g: rounded once, and among subnormals once more.
template <class V, class W>
struct Weights {
  using O = Working<W>;
  Exponential<V, W> e;
  V lift;        // a power of two that both lack: 1 - E may have a reciprocal beyond the largest number
  W big, small;  // small: without 2^n

  SUMEXP_FN explicit Weights(W t, bool minus) : e(exponential<V>(t)), lift(V(1.0)) {
    W below = minus ? e.complement() : O::from(V(1.0)) + e.value();
    if (minus) {
      lift = pick(at_or_above(V(0x1p-900), absolute(O::head(t))), V(0x1p100), lift);
      below = O::scaled(below, lift);
    }
    big = O::from(V(1.0)) / below;
    small = e.one_plus_p() / below;
  }
  SUMEXP_FN V big_times(V g) const { return O::times(big, g) * lift; }
  SUMEXP_FN V small_times(V g) const {
    return O::times(O::scaled(small, exact_pow2(e.half)), g) * (exact_pow2(e.n - e.half) * lift);
  }
};

struct LogAddExpVjp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], a = in[1], b = in[2];
    const auto a_up = at_or_above(a, b);
    const V big = pick(a_up, a, b), small = pick(a_up, b, a);
    const Weights<V, W> weights(apart<W>(small, big, equal(a, b)), false);
    const V more = weights.big_times(g), less = weights.small_times(g);
    const auto absent = both_absent(a, b);
    out[0] = clear(absent, pick(a_up, more, less)), out[1] = clear(absent, pick(a_up, less, more));
  }
};

struct SoftplusVjp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], x = in[1];
    const Weights<V, W> weights(Working<W>::from(V(0.0) - absolute(x)), false);
    out[0] = pick(at_or_above(x, V(0.0)), weights.big_times(g), weights.small_times(g));
  }
};

// da = g / (1 - E), db = -g E / (1 - E), E = e^-(a - b)
struct LogSubExpVjp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V g = in[0], a = in[1], b = in[2];
    const W t = O::difference(b, a);
    const Weights<V, W> weights(negative(t), true);
    const auto absent = both_absent(a, b);
    const auto equals = equal(a, b);
    const V pole = g * infinity<V>(), none = V(Limits<double>::nan());
    const V da = pick(equals, pole, weights.big_times(g)), db = pick(equals, V(0.0) - pole, V(0.0) - weights.small_times(g));
    const V head = O::head(t);
    // a < b, NaN, or both +inf
    const V bad = pick(at_or_above(V(0.0), head), V(0.0), none);
    out[0] = clear(absent, da + bad), out[1] = clear(absent, db + bad);
  }
};

// dx = g sign(x) E / (1 - E), E = e^-|x|; at 0 as from above
struct Log1mExpVjp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], x = in[1], size = absolute(x), zero = V(0.0);
    const auto pole = equal(x, zero);
    const Weights<V, W> weights(Working<W>::from(pick(pole, V(-1.0), zero - size)), true);
    const V slope = pick(pole, g * infinity<V>(), weights.small_times(g));
    out[0] = pick(at_or_above(x, zero), slope, zero - slope);
  }
};

// The two terms of a VJP with tangents for g, added as they are rounded to double.
template <class Vjp>
struct Jvp {
  template <class W, class V>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V first[3] = {in[0], in[2], in[3]}, second[3] = {in[1], in[2], in[3]};
    V da[2], db[2];
    Vjp::template apply<W>(first, da);
    Vjp::template apply<W>(second, db);
    out[0] = da[0] + db[1];
  }
};

using LogAddExpJvp = Jvp<LogAddExpVjp>;
using LogSubExpJvp = Jvp<LogSubExpVjp>;

}  // namespace sumexp::SUMEXP_NS::elementwise
