// The rows of a MaskedCall: where each lies, and which elements of it are there.
#pragma once

#include <cstring>
#include <limits>

#include "../../include/sumexp/ragged.hpp"
#include "../../ops/masked.hpp"
#include "row.hpp"

namespace sumexp::cpu {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum { kX = 0, kG, kMask, kLengths, kBias, kSink, kResult, kDBias, kDSink, kViews };

struct BatchDim {
  std::int64_t size, stride[kViews];
};
struct RowAddresses {
  char* of[kViews];  // null where absent
};

struct MaskedPlan {
  const MaskedCall& call;
  const RaggedJob& forward;  // softmax and log_softmax: also where their VJP begins; logsumexp: itself, or its VJP
  const RaggedJob* backward;
  int batch_dims = 0;
  BatchDim batch[kMaxDims];
  std::int64_t rows = 1, n = 0, stride[kViews];  // along the axis
  std::int64_t causal_rows = 1;
  char* data[kViews];
  bool back;               // a VJP
  bool options = false;    // elements are not their logits
  bool row_value = false;  // the result, and g, is one value a row
  double absent = 0.0;     // what is written where something is left out
  MaskedScale scale;       // what the options make of an element

  MaskedPlan(const MaskedCall& call, const RaggedJob& forward, const RaggedJob* backward);

  RowAddresses addresses(std::int64_t r) const {
    RowAddresses at;
    for (int k = 0; k < kViews; ++k) at.of[k] = data[k];
    for (int d = batch_dims - 1; d >= 0; --d) {
      const std::int64_t i = d > 0 ? r % batch[d].size : r;
      if (d > 0) r /= batch[d].size;
      for (int k = 0; k < kViews; ++k)
        if (at.of[k]) at.of[k] += i * batch[d].stride[k];
    }
    return at;
  }
  // The plan of one row for each number of view k, the first that has it; of no rows too, as far as the view has numbers.
  MaskedPlan distinct(int k) const;
  // Elements of row r that are there.
  std::int64_t count(std::int64_t r, const RowAddresses& at) const {
    std::int64_t length = n;
    if (at.of[kLengths]) std::memcpy(&length, at.of[kLengths], sizeof(length));
    return SUMEXP_NS::MaskedLimits{n, causal_rows, call.causal_offset, call.causal}.count(r, length);
  }
};

Status check_lengths(const MaskedPlan& plan);

}  // namespace sumexp::cpu
