// sumexp for rows of many lengths: attention rows, with masks, lengths, biases and sinks, and segments, rows one after the
// other in one array. softmax, log_softmax, logsumexp and their derivatives, on the CPU.
//
// What is left out is not read, or read and not looked at: whatever stands there, the result is that of the row's other
// elements alone, to the byte. Bounds are those of the operations on plain rows (sumexp.hpp), for the logits as the options
// make them.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

// What softmax and log_softmax are along a row without elements, or with nothing above -inf and no sink: 0 and -inf, or NaN.
// Its logsumexp is -inf, its gradient 0.
enum class Empty : std::int32_t { zero = 0, nan = 1 };

// The rows of x run along one axis. Element j of a row is the logit
//
//   z_j = softcap(x_j / temperature) + bias_j,    softcap(v) = c tanh(v / c)
//
// or left out: by `where`, by its place (from lengths on, or above the causal diagonal), and then its result is 0 (log_softmax:
// -inf). The sink is one more logit of the row, neither scaled nor returned: S = sum_j e^(z_j) + e^sink.
// Every View has `ndim` strides in bytes, 0 where it is broadcast; those of lengths and sink along the axis do not matter, nor
// do those of results with one value a row (logsumexp).
struct MaskedCall {
  Op op = Op::softmax;  // softmax, log_softmax or logsumexp
  DType dtype = DType::f32;
  int ndim = 0;  // 1 .. kMaxDims
  const std::int64_t* shape = nullptr;
  int axis = -1;  // from -ndim
  View x;
  View where;           // one byte an element, 0: left out
  View lengths;         // std::int64_t, 0 to shape[axis]: a row is its first `lengths` elements
  bool causal = false;  // row i of the last other dimension is its elements j <= i + causal_offset
  std::int64_t causal_offset = 0;
  View bias, sink;
  double softcap = 0.0;      // c; 0: none
  double temperature = 1.0;  // > 0; infinity: every finite x is 0
  Empty empty = Empty::zero;
  View out;  // the result; of a VJP, that is where g is given, the gradient of x. May be exactly x or, of full shape, g
  View g;    // what comes back for the result; a View{} where it is not given (an array without elements may have no address)
  View dbias, dsink;  // of a VJP alone: the gradients of bias and sink, summed where their strides are 0; may be absent
};
SUMEXP_API Status masked(const MaskedCall& call) noexcept;

// Row s of each feature is elements offsets[s] .. offsets[s + 1] along the first of two dimensions; features are the second.
struct SegmentsCall {
  // softmax, log_softmax, logsumexp, their VJPs, log_softmax_jvp or logsumexp_jvp: inputs as in sumexp.hpp
  Op op = Op::softmax;
  DType dtype = DType::f32;
  std::int64_t elements = 0, features = 1, segments = 0;
  const std::int64_t* offsets = nullptr;  // segments + 1 of them, from 0 to `elements`, none below the one before
  View in[2];  // two strides in bytes; of one value a row: from a segment to the next, and of features
  View out;    // where it is elements, may be exactly an input that is elements; else apart from them
};
SUMEXP_API Status segments(const SegmentsCall& call) noexcept;
// The offsets of `segments` segments from the segment of each element, which may not fall.
SUMEXP_API Status segment_offsets(const std::int64_t* ids, std::int64_t elements, std::int64_t segments,
                                  std::int64_t* offsets) noexcept;

}  // namespace sumexp
