// The sum of exponentials of a row that comes in pieces: from several reads, files, processes or machines.
//
// A piece [first, first + count) of a row is reduced to the states of subtrees of the row's own tree over its chunks (2,048
// elements; 512 of f64), at most 2 log2(chunks) + 2 of them. States are plain data, the same on every CPU. Those of several
// pieces, sorted by `first`, join to the states of all; finished, they give the bytes that one call on the whole row gives,
// provided that pieces meet where chunks do. (Elsewhere two parts of a chunk are merged as chunks are: right, in other bits.)
//
//   SumState states[64];                               // of one row; of more: states[i * rows + r]
//   StreamCall call;
//   call.dtype = DType::f32, call.ndim = 1, call.shape = &n, call.x = {x, &stride}, call.first = 0;
//   reduce_states(call, states);                       // count_states(DType::f32, 0, n) of them
//   join_states(states, count, rows, &count);
//   finish_states(states, count, rows, DType::f32, result, nullptr);
#pragma once

#include "sumexp.hpp"

namespace sumexp {

// Which sums a state holds.
enum Sums : std::int32_t {
  kSumApart = 1,     // the maximum apart: for the logarithm and log_softmax
  kSumAll = 2,       // the maximum in it: for softmax
  kSumWeighted = 4,  // with weights, the maximum apart; not with the others
};

// sum_j e^(x_j) = 2^exponent (at_maximum e^rho + others 2^-carry), numerics/state.hpp; pairs are hi + lo.
struct SumState {
  std::int64_t first, count;  // the elements that it is of
  std::int64_t exponent;
  double maximum;
  double at_maximum[2], others[2];
  double all[2];   // as others, the maximum with them
  double special;  // of weights that are not finite
  std::int32_t dtype, sums;
};

struct StreamCall {
  DType dtype = DType::f32;  // of x, b and out
  int ndim = 0;              // 1 .. kMaxDims; the rows run along the last dimension
  const std::int64_t* shape = nullptr;
  View x, b;               // b: weights, with kSumWeighted; else absent
  std::int64_t first = 0;  // of x in the row
  std::int32_t sums = kSumApart | kSumAll;
};

// How many states elements [first, first + n) of a row take. At most 128; 0 for n = 0.
SUMEXP_API int count_states(DType dtype, std::int64_t first, std::int64_t n) noexcept;

// out: count_states(...) times as many states as there are rows.
SUMEXP_API Status reduce_states(const StreamCall& call, SumState* out) noexcept;

// `count` states of each of `rows` rows, in the order of `first` and without overlap, become *joined ones in place.
SUMEXP_API Status join_states(SumState* states, std::int64_t count, std::int64_t rows, std::int64_t* joined) noexcept;

// The logarithm of the sums, contiguous, of `dtype`, the states' own; of none -inf. With weights log |sum|, and its sign where
// sign is not null; without a place for it a negative sum gives NaN.
SUMEXP_API Status finish_states(const SumState* states, std::int64_t count, std::int64_t rows, DType dtype, void* out,
                                void* sign) noexcept;

// softmax or log_softmax of a piece, of rows whose states are given: of another pass. The bytes of one call, for softmax if the
// piece begins and ends where chunks do (or the row does).
SUMEXP_API Status map_states(Op op, const SumState* states, std::int64_t count, const StreamCall& call, View out) noexcept;

}  // namespace sumexp
