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

template <class V>
SUMEXP_FN V smaller(V a, V b) {
  return pick(at_or_above(a, b), b, a);
}

template <class V, class T = ElementOf<V>>
FilterRange<T> range(const T* x, std::int64_t n, T from) {
  constexpr T infinity = Limits<T>::infinity;
  const V bound = V(from);
  V least = V(infinity), most = V(-infinity);
  std::int64_t found = 0;
  each_vector<V>(n, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, -infinity);
    const auto in = at_or_above(v, bound);
    found += count(in);
    least = smaller(least, pick(in, v, V(infinity)));
    most = larger(v, most);
  });
  most = pick(at_or_above(most, bound), most, V(-infinity));
  return {-largest(V(T(0)) - least), largest(most), found};
}

// Widened terms, into sums of masses.
template <class T>
SUMEXP_FN void add_masses(MassSum<T, F64>& sum, Twin<F64> t) {
  sum.add(t.a);
  sum.add(t.b);
}
template <class T>
SUMEXP_FN void add_masses(MassSum<T, F64>& sum, F64 t) {
  sum.add(t);
}
SUMEXP_FN auto widened(F32 t) { return WideOf<F32>::from(t); }
SUMEXP_FN F64 widened(F64 t) { return t; }

SUMEXP_FN double lane_sum(F64 x) { return fold_halves<F64::W / 2>(x); }
SUMEXP_FN double lane_sum(Twin<F64> x) { return lane_sum(x.a + x.b); }

template <class T>
SUMEXP_FN Mass sum_mass(const MassSum<T, F64>& sum) {
  return mass_of<T>(lane_sum(sum.high), lane_sum(sum.low));
}

template <class V, class T = ElementOf<V>>
Mass terms_of(const T* x, std::int64_t n, T maximum, T* terms) {
  const Base<T> base = base_of(maximum);
  const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
  const V anchor = V(base.anchor);
  Mass total = 0;
  for (std::int64_t first = 0; first < n; first += kMassBlock) {
    MassSum<T, F64> sum;
    each_vector<V>(n - first < kMassBlock ? n - first : kMassBlock, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V t = mass_term(memory.template load<V>(x + first + i, -Limits<T>::infinity), anchor, reduce);
      memory.store(terms + first + i, t);
      add_masses(sum, widened(t));
    });
    total += sum_mass(sum);
  }
  return total;
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
      for (int k = 0; k < kFilterBounds; ++k) acc[k] = acc[k] + pick(at_or_above(v, V(bounds[k])), t, V(T(0)));
    });
    for (int k = 0; k < kFilterBounds; ++k) sums[k] += lane_sum(widened(acc[k]));
  }
}

template <class V, bool kTerms, class T = ElementOf<V>>
FilterSplit split_row(const T* x, const T* terms, std::int64_t n, T from, T below, T* x_to, T* terms_to) {
  const V lower = V(from), upper = V(below), none = V(-Limits<T>::infinity);
  FilterSplit result = {0, 0, 0};
  for (std::int64_t first = 0; first < n; first += kMassBlock) {
    MassSum<T, F64> sum;
    each_vector<V>(n - first < kMassBlock ? n - first : kMassBlock, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + first + i, -Limits<T>::infinity);
      if (count(at_or_above(v, lower)) == 0) return;
      const auto high = at_or_above(v, upper);
      const auto inside = at_or_above(pick(high, none, v), lower);
      V t;
      if constexpr (kTerms) t = memory.template load<V>(terms + first + i, T(0));
      const int above = count(high);
      if (above) {
        result.above_count += above;
        if constexpr (kTerms) add_masses(sum, widened(pick(high, t, V(T(0)))));
      }
      if (const int found = count(inside)) {
        compress(x_to + result.inside, inside, v);
        if constexpr (kTerms) compress(terms_to + result.inside, inside, t);
        result.inside += found;
      }
    });
    if constexpr (kTerms) result.above += sum_mass(sum);
  }
  if constexpr (!kTerms) result.above = static_cast<Mass>(result.above_count);
  return result;
}
template <class V, class T = ElementOf<V>>
FilterSplit split(const T* x, const T* terms, std::int64_t n, T from, T below, T* x_to, T* terms_to) {
  return terms ? split_row<V, true>(x, terms, n, from, below, x_to, terms_to)
               : split_row<V, false>(x, terms, n, from, below, x_to, terms_to);
}

template <class V, class T = ElementOf<V>>
std::int64_t find(const T* x, std::int64_t n, T value, std::int64_t which) {
  std::int64_t last = -1, i = 0;  // of the vectors that have one
  for (; i + V::W <= n; i += V::W) {
    const int found = count(equal(V::load(x + i), V(value)));
    if (found == 0) continue;
    last = i;
    if (which <= found) break;
    which -= found;
  }
  std::int64_t at = -1;
  const auto look = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end && which > 0; ++j)
      if (x[j] == value) at = j, --which;
  };
  if (i + V::W > n) {
    look(i, n);
    if (at >= 0 || last < 0) return at;
    which = V::W;
  }
  look(last, last + V::W);
  return at;
}

template <class V>
constexpr cpu::FilterKernel<ElementOf<V>> kernel_of() {
  return {range<V>, terms_of<V>, sums_above<V>, split<V>, find<V>};
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS

#define SUMEXP_JOIN_(a, b) a##b
#define SUMEXP_JOIN(a, b) SUMEXP_JOIN_(a, b)

namespace sumexp::cpu {
const FilterKernels& SUMEXP_JOIN(filter_kernels_, SUMEXP_NS)() {
  using namespace SUMEXP_NS;
  static constexpr FilterKernels kernels = {kernel_of<F32>(), kernel_of<F64>()};
  return kernels;
}
}  // namespace sumexp::cpu
