#include SUMEXP_SIMD
//
#include "filters.hpp"

#include "../../numerics/mass.hpp"
#include "compress.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::FilterRange;
using cpu::FilterSplit;
using cpu::kFilterBounds;

// body(u, i, memory) for every vector; u, the place in memory modulo kWays, is known to the compiler.
constexpr int kWays = 4;
template <class V, class Body>
SUMEXP_FN void each_of_four(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kWays * V::W <= n; i += kWays * V::W)
#pragma GCC unroll 4
    for (int u = 0; u < kWays; ++u) body(u, i + u * V::W, Whole{});
  for (; i + V::W <= n; i += V::W) body(0, i, Whole{});
  if (i < n) body(1, i, Part{static_cast<int>(n - i)});
}
template <class V>
SUMEXP_FN V largest_of(const V (&v)[kWays]) {
  return larger(larger(v[0], v[1]), larger(v[2], v[3]));
}

// Of elements from `from` up: -least, largest and their number, by lanes.
template <class V>
struct LaneRange {
  using T = ElementOf<V>;
  V negative_least[kWays], most[kWays];
  std::int64_t found = 0, nans = 0;

  SUMEXP_FN LaneRange() {
    for (int u = 0; u < kWays; ++u) negative_least[u] = most[u] = V(-Limits<T>::infinity);
  }
  template <bool kNaNs = false>
  SUMEXP_FN void add(const T* x, std::int64_t n, V from) {
    each_of_four<V>(n, [&](int u, std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + i, -Limits<T>::infinity);
      const auto in = at_or_above(v, from);
      found += count(in);
      if constexpr (kNaNs) nans += count(unordered(v));
      negative_least[u] = larger(pick(in, V(T(0)) - v, V(-Limits<T>::infinity)), negative_least[u]);
      most[u] = larger(v, most[u]);
    });
  }
};

template <class V, class T = ElementOf<V>>
FilterRange<T> range(const T* x, std::int64_t n, T from) {
  LaneRange<V> lanes;
  lanes.add(x, n, V(from));
  const T most = largest(largest_of(lanes.most));
  return {-largest(largest_of(lanes.negative_least)), most >= from ? most : -Limits<T>::infinity, lanes.found};
}

template <class V>
constexpr int group_of() {
  return V::W < 8 ? 32 : 16;
}
template <class V, class T = ElementOf<V>>
FilterRange<T> overview(const T* x, std::int64_t n, T* tops, std::int64_t* groups) {
  constexpr int kStep = group_of<V>() * V::W;
  const V lowest = V(sizeof(T) == 4 ? T(-0x1.fffffep127) : T(-0x1.fffffffffffffp1023));
  LaneRange<V> lanes;
  V most = V(-Limits<T>::infinity);
  T* top = tops;
  for (std::int64_t first = 0; first < n; first += kStep, top += V::W) {
    lanes.template add<true>(x + first, n - first < kStep ? n - first : kStep, lowest);
    const V of_step = largest_of(lanes.most);
    V::store(top, of_step);
    most = larger(of_step, most);
    for (int u = 0; u < kWays; ++u) lanes.most[u] = V(-Limits<T>::infinity);
  }
  *groups = top - tops;
  return {-largest(largest_of(lanes.negative_least)), lanes.nans ? Limits<T>::nan() : largest(most), lanes.found};
}

SUMEXP_FN auto widened(F32 t) { return WideOf<F32>::from(t); }
SUMEXP_FN F64 widened(F64 t) { return t; }

SUMEXP_FN double lane_sum(F64 x) { return fold_halves<F64::W / 2>(x); }
SUMEXP_FN double lane_sum(Twin<F64> x) { return lane_sum(x.a + x.b); }

// Sums of masses by lanes, two where a vector widens to two: of kMassVectors vectors, each lane's exact.
constexpr int kMassVectors = kMassBlock;
template <class T>
struct LaneMasses {
  MassSum<T, F64> a, b;
  SUMEXP_FN void add(F64 t) { a.add(t); }
  SUMEXP_FN void add(Twin<F64> t) { a.add(t.a), b.add(t.b); }
  // Lanes become integers before they are added.
  SUMEXP_FN Mass total() const { return of_lanes(a) + of_lanes(b); }

 private:
  SUMEXP_FN static Mass of_lanes(const MassSum<T, F64>& sum) {
    double high[F64::W], low[F64::W];
    F64::store(high, sum.high_part());
    F64::store(low, sum.low);
    Mass total = 0;
    for (int i = 0; i < F64::W; ++i) total += mass_of<T>(high[i], low[i]);
    return total;
  }
};

// Terms as they are made of elements.
template <class V>
struct TermMaker {
  using T = ElementOf<V>;
  V anchor;
  Reduction<V> reduce;

  SUMEXP_FN explicit TermMaker(T maximum) : TermMaker(base_of(maximum)) {}
  SUMEXP_FN explicit TermMaker(const Base<T>& base) : anchor(base.anchor), reduce{V(base.reduce.shift), V(base.reduce.floor)} {}
  SUMEXP_FN V operator()(V x) const { return mass_term(x, anchor, reduce); }
  SUMEXP_FN V small_too(V x) const { return FullTerms::term(FullTerms::parts(x - anchor, reduce)); }
};

template <class V, class T = ElementOf<V>>
Mass terms_of(const T* x, std::int64_t n, T maximum, T* terms) {
  const TermMaker<V> term(maximum);
  Mass total = 0;
  constexpr int kStep = kMassVectors * V::W;
  for (std::int64_t first = 0; first < n; first += kStep) {
    LaneMasses<T> sum;
    each_vector<V>(n - first < kStep ? n - first : kStep, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V t = term(memory.template load<V>(x + first + i, -Limits<T>::infinity));
      memory.store(terms + first + i, t);
      sum.add(widened(t));
    });
    total += sum.total();
  }
  return total;
}

// Sums of terms in double, by lanes.
struct LaneSums {
  F64 sum[2] = {F64(0.0), F64(0.0)};
  SUMEXP_FN void add(F64 t) { sum[0] = sum[0] + t; }
  SUMEXP_FN void add(Twin<F64> t) { sum[0] = sum[0] + t.a, sum[1] = sum[1] + t.b; }
  SUMEXP_FN double total() const { return lane_sum(sum[0] + sum[1]); }
};

template <class V, class T = ElementOf<V>>
double sum_of(const T* x, std::int64_t n, T maximum) {
  const TermMaker<V> term(maximum);
  LaneSums sums;
  each_vector<V>(n, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    sums.add(widened(term.small_too(memory.template load<V>(x + i, -Limits<T>::infinity))));
  });
  return sums.total();
}

// Lanes add in T: a relative error of 2^-13 at most, of 2048 numbers one after the other.
template <class V, class T = ElementOf<V>>
void sums_above(const T* x, const T* terms, std::int64_t n, const T* bounds, double* sums) {
  constexpr int kStep = 2048;
  for (int k = 0; k < kFilterBounds; ++k) sums[k] = 0;
  for (std::int64_t first = 0; first < n; first += kStep) {
    V acc[kFilterBounds];
#pragma GCC unroll 8
    for (int k = 0; k < kFilterBounds; ++k) acc[k] = V(T(0));
    each_vector<V>(n - first < kStep ? n - first : kStep, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + first + i, -Limits<T>::infinity);
      const V t = terms ? memory.template load<V>(terms + first + i, T(0)) : V(T(1));
#pragma GCC unroll 8
      for (int k = 0; k < kFilterBounds; ++k) acc[k] = pick(at_or_above(v, V(bounds[k])), acc[k] + t, acc[k]);
    });
    for (int k = 0; k < kFilterBounds; ++k) sums[k] += lane_sum(widened(acc[k]));
  }
}

// What is asked of the elements from `below` up: their number, the mass of their terms, or the sum of terms that are made here.
enum class Above { count, mass, sum };

template <class V, Above kAbove, class T = ElementOf<V>>
FilterSplit split_row(const T* x, const T* terms, std::int64_t n, T maximum, T from, T below, T* x_to, T* terms_to,
                      double* above_sum) {
  const V lower = V(from), upper = V(below), none = V(-Limits<T>::infinity);
  const TermMaker<V> make(maximum);
  FilterSplit result = {0, 0, 0};
  LaneSums sums;
  constexpr int kStep = kMassVectors * V::W;
  for (std::int64_t first = 0; first < n; first += kStep) {
    const std::int64_t end = n - first < kStep ? n : first + kStep;
    LaneMasses<T> masses;
    const auto take = [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + i, -Limits<T>::infinity);
      const auto high = at_or_above(v, upper);
      const auto inside = at_or_above(pick(high, none, v), lower);
      result.above_count += count(high);
      compress(x_to + result.inside, inside, v);
      if constexpr (kAbove == Above::mass) {
        const V t = memory.template load<V>(terms + i, T(0));
        masses.add(widened(pick(high, t, V(T(0)))));
        compress(terms_to + result.inside, inside, t);
      }
      if constexpr (kAbove == Above::sum) sums.add(widened(pick(high, make.small_too(v), V(T(0)))));
      result.inside += count(inside);
    };
    // A branch for some vectors, not for each: what it finds is seldom foreseen.
    std::int64_t i = first;
    for (; i + kWays * V::W <= end; i += kWays * V::W) {
      int found = 0;
#pragma GCC unroll 4
      for (int u = 0; u < kWays; ++u) found += count(at_or_above(V::load(x + i + u * V::W), lower));
      if (found == 0) continue;
#pragma GCC unroll 4
      for (int u = 0; u < kWays; ++u) take(i + u * V::W, Whole{});
    }
    for (; i + V::W <= end; i += V::W) take(i, Whole{});
    if (i < end) take(i, Part{static_cast<int>(end - i)});
    if constexpr (kAbove == Above::mass) result.above += masses.total();
  }
  if constexpr (kAbove == Above::count) result.above = static_cast<Mass>(result.above_count);
  if constexpr (kAbove == Above::sum) *above_sum = sums.total();
  return result;
}
// The same with nothing from `below` up.
template <class V, class T = ElementOf<V>>
FilterSplit compact(const T* x, std::int64_t n, T from, T* to) {
  const V lower = V(from);
  std::int64_t inside = 0, i = 0;
  for (; i + kWays * V::W <= n; i += kWays * V::W) {
    V v[kWays];
    int found[kWays], any = 0;
#pragma GCC unroll 4
    for (int u = 0; u < kWays; ++u) {
      v[u] = V::load(x + i + u * V::W);
      any += found[u] = count(at_or_above(v[u], lower));
    }
    if (any == 0) continue;
#pragma GCC unroll 4
    for (int u = 0; u < kWays; ++u) {
      compress(to + inside, at_or_above(v[u], lower), v[u]);
      inside += found[u];
    }
  }
  each_vector<V>(n - i, [&](std::int64_t j, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i + j, -Limits<T>::infinity);
    const auto in = at_or_above(v, lower);
    compress(to + inside, in, v);
    inside += count(in);
  });
  return {0, 0, inside};
}
template <class V, class T = ElementOf<V>>
FilterSplit split(const T* x, const T* terms, std::int64_t n, T from, T below, T* x_to, T* terms_to) {
  if (!terms && !(below < Limits<T>::infinity)) return compact<V>(x, n, from, x_to);
  return terms ? split_row<V, Above::mass>(x, terms, n, T(0), from, below, x_to, terms_to, nullptr)
               : split_row<V, Above::count>(x, terms, n, T(0), from, below, x_to, terms_to, nullptr);
}
template <class V, class T = ElementOf<V>>
FilterSplit split_apart(const T* x, std::int64_t n, T maximum, T from, T below, T* x_to, double* above) {
  T* const none = nullptr;
  return split_row<V, Above::sum>(x, none, n, maximum, from, below, x_to, none, above);
}

template <class V, class T = ElementOf<V>>
std::int64_t find(const T* x, std::int64_t n, T value, std::int64_t which) {
  constexpr int kStep = 16 * V::W;
  std::int64_t block = -1, before = 0;  // the block that has it, and how many come before that
  for (std::int64_t first = 0, found = 0; first < n && found < which; first += kStep) {
    std::int64_t here = 0;
    each_of_four<V>(n - first < kStep ? n - first : kStep, [&](int, std::int64_t i, auto memory) SUMEXP_INLINE {
      here += count(equal(memory.template load<V>(x + first + i, Limits<T>::nan()), V(value)));
    });
    if (here) block = first, before = found;
    found += here;
  }
  std::int64_t at = -1;
  for (std::int64_t j = block; j >= 0 && j < n && j < block + kStep && before < which; ++j)
    if (x[j] == value) at = j, ++before;
  return at;
}

template <class V>
constexpr cpu::FilterKernel<ElementOf<V>> kernel_of() {
  return {group_of<V>(), overview<V>, range<V>, terms_of<V>, sum_of<V>, sums_above<V>, split<V>, split_apart<V>, find<V>};
}

constexpr cpu::FilterKernels kKernels = {kernel_of<F32>(), kernel_of<F64>()};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(FilterKernels, filter_kernels_, SUMEXP_NS::kKernels)
