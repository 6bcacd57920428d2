// Elementwise functions of the log domain, for one instruction set: elementwise_kernels_<isa>().
#include SUMEXP_SIMD
//
#include "elementwise.hpp"

#include "../../numerics/log_domain.hpp"
#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

// -- between arrays and pieces of double -----------------------------------------------------------------

template <class D>
SUMEXP_FN void put_wide(Twin<D> w, double* to) {
  D::store(to, w.a), D::store(to + D::W, w.b);
}
SUMEXP_FN void put_wide(F64 w, double* to) { F64::store(to, w); }
template <class D>
SUMEXP_FN Twin<D> get_wide(const double* from, Twin<D>*) {
  return {D::load(from), D::load(from + D::W)};
}
SUMEXP_FN F64 get_wide(const double* from, F64*) { return F64::load(from); }

template <class S>
void load(const char* from, std::int64_t stride, int count, double* to) {
  int i = 0;
  if (stride == 0 && count > 0) {
    S first;
    memcpy(&first, from, sizeof(S));
    const double value = widen(first);
    for (; i < count; ++i) to[i] = value;
  }
  if (stride == sizeof(S)) {
    if constexpr (sizeof(S) == 8) {
      memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
      return;
    } else {
      for (; i + F32::W <= count; i += F32::W)
        put_wide(WideOf<F32>::from(F32::load(reinterpret_cast<const S*>(from) + i)), to + i);
    }
  }
  for (; i < count; ++i) {
    S stored;
    memcpy(&stored, from + i * stride, sizeof(S));
    to[i] = widen(stored);
  }
}
SUMEXP_FN void round_to(double x, double& to) { to = x; }
template <class S>
SUMEXP_FN void round_to(double x, S& to) {
  narrow(rounded(x), to);
}
template <class S>
void store(char* to, std::int64_t stride, int count, const double* from) {
  int i = 0;
  if (stride == sizeof(S)) {
    if constexpr (sizeof(S) == 8) {
      memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
      return;
    } else {
      using W = typename WideOf<F32>::W;
      for (; i + F32::W <= count; i += F32::W)
        F32::store(reinterpret_cast<S*>(to) + i, quiet(WideOf<F32>::narrow(get_wide(from + i, static_cast<W*>(nullptr)))));
    }
  }
  for (; i < count; ++i) {
    S stored;
    round_to(from[i], stored);
    memcpy(to + i * stride, &stored, sizeof(S));
  }
}

// -- the functions: W is F64, or DD<F64> for results of double --------------------------------------------------

using V = F64;

template <class M>
SUMEXP_FN V not_a_number(M where, V x) {
  return pick(where, V(Limits<double>::nan()), x);
}
SUMEXP_FN V infinity() { return V(Limits<double>::infinity); }
// small - big, 0 of equal numbers, infinite ones too
template <class W, class M>
SUMEXP_FN W apart(V small, V big, M equals) {
  using O = Working<W>;
  return O::choose(equals, O::from(V(0.0)), O::difference(small, big));
}
SUMEXP_FN auto both_absent(V a, V b) { return equal(pick(equal(a, b), a, V(0.0)), V(0.0) - infinity()); }

// Of the few lanes that need it, and a call, so that it stays out of the loops.
__attribute__((noinline)) V next_to_zero(V m, V big, V small, bool minus) {
  return log_next_to_zero(m, two_sum(small, V(0.0) - big), minus);
}

// m + L, L = log(1 +- e^(small - big)). Where the two cancel, the other way.
template <class W>
SUMEXP_FN V sum_of(V m, W L, V big, V small, bool minus) {
  using O = Working<W>;
  const auto infinite = at_or_above(absolute(m), infinity());
  const V plain = pick(infinite, m + O::head(L), O::plus(m, L));
  const V limit = pick(infinite, V(-1.0), pick(equal(m, V(0.0)), V(-1.0), absolute(m) * V(O::kCancelled)));
  const auto cancelled = at_or_above(limit, absolute(plain));
  return count(cancelled) ? pick(cancelled, next_to_zero(m, big, small, minus), plain) : plain;
}

// log(e^a + e^b) = m + log(1 + e^-|a - b|), m = max(a, b).
//   error   |a - b| exact (or to 2^-53), the logarithm within 2^-51, in pairs 2^-59, of itself, the sum rounded once. Where m
//   and
//           the logarithm cancel to 2^-20 of m, in pairs to 2^-6, it is the logarithm of e^m (1 + e^-|a - b|), that being
//           within 2^-96 of what it is.
struct LogAddExp {
  template <class W>
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
SUMEXP_FN F64 negative(F64 t) { return pick(at_or_above(t, V(0.0)), V(-1.0), t); }
SUMEXP_FN DD<F64> negative(DD<F64> t) {
  const auto above = at_or_above(t.hi, V(0.0));
  return {pick(above, V(-1.0), t.hi), pick(above, V(0.0), t.lo)};
}

// log(e^a - e^b) = a + log(1 - e^-(a - b)) for a > b, with the error of the above.
struct LogSubExp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V a = in[0], b = in[1];
    const W t = O::difference(b, a);
    const V sum = sum_of(a, log_of_complement(exponential<V>(negative(t))), a, b, true);
    const V result = pick(at_or_above(O::head(t), V(0.0)), V(Limits<double>::nan()), not_a_number(unordered(O::head(t)), sum));
    const V zero = pick(at_or_above(a, infinity()), V(Limits<double>::nan()), V(-Limits<double>::infinity));
    out[0] = pick(equal(a, b), zero, result);
  }
};

// log(1 - e^-|x|): log1p where e^-|x| is small, else the logarithm of -expm1(-|x|). A number of one sign: nothing cancels.
struct Log1mExp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V x = in[0], t = V(0.0) - absolute(x);
    const V result = O::plus(V(0.0), log_of_complement(exponential<V>(O::from(t))));
    out[0] = pick(equal(x, V(0.0)), V(-Limits<double>::infinity), not_a_number(unordered(x), result));
  }
};

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): two numbers of one sign.
struct Softplus {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V x = in[0], m = at_least(V(0.0), x), t = V(0.0) - absolute(x);
    const W L = log1p_or_itself<V>(exponential<V>(O::from(t)).value());
    out[0] = not_a_number(unordered(x), pick(at_or_above(m, infinity()), m, O::plus(m, L)));
  }
};

// With E = e^-|a - b|, the weights of the larger and the smaller of a and b are 1 / (1 + E) and E / (1 + E), of which none is a
// difference. Times g: rounded once, and among subnormals once more.
template <class W>
struct Weights {
  using O = Working<W>;
  Exponential<V, W> e;
  W big, small;  // small: without 2^n

  SUMEXP_FN explicit Weights(W t, bool minus) : e(exponential<V>(t)) {
    const W below = minus ? e.complement() : O::from(V(1.0)) + e.value();
    big = O::from(V(1.0)) / below;
    small = e.one_plus_p() / below;
  }
  SUMEXP_FN V big_times(V g) const { return O::times(big, g); }
  SUMEXP_FN V small_times(V g) const { return O::times(O::scaled(small, exact_pow2(e.half)), g) * exact_pow2(e.n - e.half); }
};

struct LogAddExpVjp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], a = in[1], b = in[2];
    const auto a_up = at_or_above(a, b);
    const V big = pick(a_up, a, b), small = pick(a_up, b, a);
    const Weights<W> weights(apart<W>(small, big, equal(a, b)), false);
    const V more = weights.big_times(g), less = weights.small_times(g);
    const auto absent = both_absent(a, b);
    out[0] = clear(absent, pick(a_up, more, less)), out[1] = clear(absent, pick(a_up, less, more));
  }
};

struct SoftplusVjp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], x = in[1];
    const Weights<W> weights(Working<W>::from(V(0.0) - absolute(x)), false);
    out[0] = pick(at_or_above(x, V(0.0)), weights.big_times(g), weights.small_times(g));
  }
};

// da = g / (1 - E), db = -g E / (1 - E), E = e^-(a - b)
struct LogSubExpVjp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    using O = Working<W>;
    const V g = in[0], a = in[1], b = in[2];
    const W t = O::difference(b, a);
    const Weights<W> weights(negative(t), true);
    const auto absent = both_absent(a, b);
    const auto equals = equal(a, b);
    const V pole = g * infinity(), none = V(Limits<double>::nan());
    const V da = pick(equals, pole, weights.big_times(g)), db = pick(equals, V(0.0) - pole, V(0.0) - weights.small_times(g));
    const V head = O::head(t);
    // a < b, NaN, or both +inf
    const V bad = pick(at_or_above(V(0.0), head), V(0.0), none);
    out[0] = clear(absent, da + bad), out[1] = clear(absent, db + bad);
  }
};

// dx = g sign(x) E / (1 - E), E = e^-|x|; at 0 as from above
struct Log1mExpVjp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V g = in[0], x = in[1], size = absolute(x), zero = V(0.0);
    const auto pole = equal(x, zero);
    const Weights<W> weights(Working<W>::from(pick(pole, V(-1.0), zero - size)), true);
    const V slope = pick(pole, g * infinity(), weights.small_times(g));
    out[0] = pick(at_or_above(x, zero), slope, zero - slope);
  }
};

// The two terms of a VJP with tangents for g, added as they are rounded to double.
template <class Vjp>
struct Jvp {
  template <class W>
  static SUMEXP_FN void apply(const V* in, V* out) {
    const V first[3] = {in[0], in[2], in[3]}, second[3] = {in[1], in[2], in[3]};
    V da[2], db[2];
    Vjp::template apply<W>(first, da);
    Vjp::template apply<W>(second, db);
    out[0] = da[0] + db[1];
  }
};

template <class Op, class W, int inputs, int outputs>
void map(const double* const* in, double* const* out, int count) {
  for (int i = 0; i < count; i += V::W) {  // pieces have room for whole vectors
    V x[inputs], y[outputs];
    for (int k = 0; k < inputs; ++k) x[k] = V::load(in[k] + i);
    Op::template apply<W>(x, y);
    for (int k = 0; k < outputs; ++k) V::store(out[k] + i, quiet(y[k]));
  }
}

#define SUMEXP_MAP(Op, inputs, outputs) \
  { map<Op, V, inputs, outputs>, map<Op, DD<V>, inputs, outputs> }
const cpu::ElementwiseKernels kKernels = {
    {load<f16>, load<bf16>, load<float>, load<double>},
    {store<f16>, store<bf16>, store<float>, store<double>},
    {SUMEXP_MAP(LogAddExp, 2, 1), SUMEXP_MAP(LogSubExp, 2, 1), SUMEXP_MAP(Log1mExp, 1, 1), SUMEXP_MAP(Softplus, 1, 1),
     SUMEXP_MAP(LogAddExpVjp, 3, 2), SUMEXP_MAP(LogSubExpVjp, 3, 2), SUMEXP_MAP(Log1mExpVjp, 2, 1),
     SUMEXP_MAP(SoftplusVjp, 2, 1), SUMEXP_MAP(Jvp<LogAddExpVjp>, 4, 1), SUMEXP_MAP(Jvp<LogSubExpVjp>, 4, 1)}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(ElementwiseKernels, elementwise_kernels_, SUMEXP_NS::kKernels)
