// The cut of a row (include/sumexp/filters.hpp), for what draws from it.
#pragma once

#include <cstddef>

#include "../../include/sumexp/filters.hpp"

namespace sumexp::cpu {

using sumexp::FilterOrder;
using sumexp::Filters;

// x_j is kept if and only if x_j > logit, or x_j == logit and j <= index.
template <class T>
struct Cut {
  T logit;
  std::int64_t index, kept;
};

// Bytes of scratch, 64-byte aligned, that filter_cut wants for rows of up to n elements: 2 n of T and 50 KB.
template <class T>
std::size_t filter_scratch(std::int64_t n);

// The largest element of each chunk, `step` doubles apart.
struct ChunkMaxima {
  double* first = nullptr;
  std::int64_t step = 1, chunk = 0;
};

// The cut of a contiguous row of T (float or double; that of 16-bit rows is float's). Excluded elements are -inf; they are
// never kept. Of a row with NaN, with +inf, or of -inf alone, it is {that, -1, 0}. `index` false: where all that equal its
// logit are kept, its index may be one behind the last of them.
template <class T>
Cut<T> filter_cut(const T* x, std::int64_t n, const Filters& filters, void* scratch, bool index = true,
                  const ChunkMaxima& maxima = {});

}  // namespace sumexp::cpu
