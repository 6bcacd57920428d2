// The filters of sampling: which elements of a row may be drawn.
//
// Elements have one order: larger logits first, of equal ones the lower index. Every filter keeps a prefix of it, and so does
// any sequence of them; the cut is the last element that is kept.
//
//   top_k   the first k elements.
//   top_p   the shortest prefix whose mass is at least p times the mass of what the filters before it kept. Masses are
//           integers, p is the double as it is given, and the product is exact: neither threads nor instruction sets nor an
//           order of addition enter. A mass is within 1.15 * 2^-24 (of float64 rows 2^-53) of e^(x_j - m) 2^88, plus 2^24 (m:
//           the row's largest, or a number within log(2)/2 of it).
//   min_p   the elements with x_j - m >= log(min_p), that is, e^(x_j - m) >= min_p. The difference is exact,
//           log(min_p) a double within 0.51 ulp; equality keeps.
//
// At least one element is kept. Elements of -inf never are.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

enum class FilterOrder : int {
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
struct FilterCut {
  double logit;
  std::int64_t index, kept;
};

// The cut of one contiguous row of float32 or float64, already divided by the temperature. A row that has NaN or +inf, or
// nothing above -inf, is refused.
SUMEXP_API Status filter_cut(DType dtype, const void* logits, std::int64_t n, const Filters& filters, FilterCut* cut) noexcept;

}  // namespace sumexp
