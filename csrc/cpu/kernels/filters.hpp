// Sweeps over a row for the filters of sampling (sampling/filters.hpp), a table an instruction set. T is float or double; terms
// and masses are those of numerics/mass.hpp. Where terms are null, an element's mass is 1.
#pragma once

#include <cstdint>

#include "../isa.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

__extension__ using FilterMass = unsigned __int128;

inline constexpr int kFilterBounds = 7;
inline constexpr int kFilterPadding = 16;  // elements behind a compacted array that may be written

// Of the elements that are not below a bound.
template <class T>
struct FilterRange {
  T least, largest;  // +inf and -inf where there are none
  std::int64_t count;
};

struct FilterSplit {
  FilterMass above;  // of the elements from `below` up
  std::int64_t above_count, inside;
};

template <class T>
struct FilterKernel {
  int group;  // 16 or 32
  // The range above -inf; its largest is NaN where one is in the row. tops: the largest elements of groups of `group` elements,
  // whose number is returned; n / 32 or more, n / 16 + 16 at most. A chunk's groups are next to each other.
  FilterRange<T> (*overview)(const T* x, std::int64_t n, T* tops, std::int64_t* groups);
  FilterRange<T> (*range)(const T* x, std::int64_t n, T from);
  // Terms relative to `maximum`, and the sum of their masses.
  FilterMass (*terms)(const T* x, std::int64_t n, T maximum, T* terms);
  // The sum of the terms times 2^carry, in double: what has no mass is in it. Relative error n 2^-53.
  double (*sum)(const T* x, std::int64_t n, T maximum);
  // Sums of the terms whose elements are at or above each bound, times 2^carry, within 2^-12.
  void (*sums_above)(const T* x, const T* terms, std::int64_t n, const T* bounds, double* sums);
  // Compacts elements in [from, below), `from` finite, and their terms, where there are any; in place if wanted.
  FilterSplit (*split)(const T* x, const T* terms, std::int64_t n, T from, T below, T* x_to, T* terms_to);
  // The same without terms: x alone is compacted, and of those from `below` up the sum is told, as above.
  FilterSplit (*split_apart)(const T* x, std::int64_t n, T maximum, T from, T below, T* x_to, double* above);
  // The place of the which-th element that equals `value`, from 1, or of the last.
  std::int64_t (*find)(const T* x, std::int64_t n, T value, std::int64_t which);
};

struct FilterKernels {
  FilterKernel<float> f32;
  FilterKernel<double> f64;
};

SUMEXP_DECLARE_TABLES(FilterKernels, filter_kernels_)

}  // namespace sumexp::cpu
