// A call of the softmax layer as CPU and GPUs see it.
#pragma once

#include "../../include/sumexp/linear.hpp"
#include "../plan.hpp"

namespace sumexp::cpu {

// Everything but targets and the options of the loss.
Status check_head(const LinearCrossEntropyCall& call);
// How many tokens have logits at a time, of so many.
std::int64_t head_rows(const LinearCrossEntropyCall& call, std::int64_t tokens);
// The loss of tokens [first, first + count) of the batch, without logits; its shape goes to `shape`.
CrossEntropyCall loss_of_tokens(const LinearCrossEntropyCall& call, std::int64_t first, std::int64_t count,
                                std::int64_t* shape);

inline std::int64_t head_item(const LinearCrossEntropyCall& call) { return call.loss.dtype == DType::f64 ? 8 : 4; }

}  // namespace sumexp::cpu
