// The filters of sampling: which elements of a row may be drawn.
//
// Elements have one order: larger logits first, of equal ones the lower index. Every filter keeps a prefix of it, and so does any
// sequence of them; a Cut is the last element that is kept.
//
//   top_k   the first k elements.
//   top_p   the shortest prefix whose mass is at least p times the mass of what the filters before it kept. Masses are integers
//           (numerics/mass.hpp), p is the double as it is given, and the product is exact: neither threads nor instruction sets nor
//           an order of addition enter.
//   min_p   the elements with x_j - m >= log(min_p), m the row's largest: e^(x_j - m) >= min_p. The difference is exact, log(min_p)
//           a double (`log_of` in numerics/mass.hpp); equality keeps.
//
// At least one element is kept, whatever k and p are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sumexp::cpu {

enum class FilterOrder {
  vllm,       // min_p, top_k, top_p
  hf,         // top_k, top_p, min_p: transformers
  llama_cpp,  // the same, of logits that are not divided by the temperature yet
};

struct Filters {
  std::int64_t top_k = 0;  // below 1: none
  double top_p = 1;        // 1 and above: none
  double min_p = 0;        // 0 and below: none
  FilterOrder order = FilterOrder::vllm;

  bool any() const { return top_k >= 1 || top_p < 1 || min_p > 0; }
};

// x_j is kept if and only if x_j > logit, or x_j == logit and j <= index.
template <class T>
struct Cut {
  T logit;
  std::int64_t index, kept;
};

// Bytes of scratch, 64-byte aligned, that filter_cut wants for rows of up to n elements: 2 n of T and 100 KB.
template <class T>
std::size_t filter_scratch(std::int64_t n);

// The cut of a contiguous row of T (float or double; that of 16-bit rows is float's). Excluded elements are -inf; they are never
// kept. A row without a finite maximum has {-inf, -1, 0}; of a row with NaN nothing is promised, and callers look for one before.
template <class T>
Cut<T> filter_cut(const T* x, std::int64_t n, const Filters& filters, void* scratch);

}  // namespace sumexp::cpu
