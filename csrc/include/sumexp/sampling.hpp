// Sampling from the softmax of rows of logits, on the CPU: indices, and counts of many draws.
//
//   float x[8] = {2, 1, 3, 5, 4, 0, 1, 2};
//   const std::int64_t shape[2] = {2, 4}, strides[2] = {16, 4};
//   const std::uint64_t seed = 42;
//   std::int64_t out[2];
//   sumexp::SampleCall call;
//   call.dtype = sumexp::DType::f32;
//   call.ndim = 2, call.shape = shape, call.axis = 1;
//   call.logits = {x, strides};
//   call.seed = {&seed, 0};
//   call.out = out;
//   sumexp::Status status = sumexp::sample(call);
//
// Promise: a class of probability p is drawn with probability p (1 ± 1e-6) down to p = 1e-30; one of probability 0 never. A
// row's draws depend on its logits, its options, its seed and its stream alone. csrc/numerics/README.md says how.
#pragma once

#include <sumexp/filters.hpp>

namespace sumexp {

// One value a row, that of row r at data[r * step]: step 0 is one value for all, 1 an array. Rows are counted in C order over
// all dimensions but the axis.
template <class T>
struct PerRow {
  const T* data = nullptr;  // absent: the default
  std::int64_t step = 0;
};

struct SampleCall {
  DType dtype = DType::f32;
  int ndim = 0;  // from 1
  const std::int64_t* shape = nullptr;
  int axis = -1;  // of the classes
  View logits;
  View where;  // optional mask, one byte an element, 0: never drawn
  // Options. Filters (top_k, top_p, min_p) are for sample and sample_probabilities; temperature 0 takes no account of them.
  PerRow<std::uint64_t> seed;   // must be given
  PerRow<std::int64_t> stream;  // the row's number
  PerRow<double> temperature;   // 1; 0 is the lowest index among the largest logits, infinity any
  PerRow<std::int64_t> top_k;   // no limit; from 1
  PerRow<double> top_p;         // 1; above 0, up to 1
  PerRow<double> min_p;         // 0; from 0 to 1
  FilterOrder order = FilterOrder::vllm;
  std::int64_t num_samples = 1;  // from 0; up to 2^48, of sample_counts 2^53
  bool replacement = true;
  std::int64_t* out = nullptr;  // of sample and finish_pieces: num_samples a row, one row after the other
  // Optional results of sample. Of logits as they are given, without temperature and filters, and of the distribution that is
  // drawn from; without replacement that is the distribution of the first draw: at temperature 0 it has one class, though later
  // draws take the largest that are left.
  double* log_prob = nullptr;           // as out
  double* filtered_log_prob = nullptr;  // as out
  std::int64_t* kept = nullptr;         // one a row: how many classes may be drawn
  double* cut_logit = nullptr;          // one a row: class j may be drawn if and only if its logit (after the temperature, but
  std::int64_t* cut_index = nullptr;    // before it in order llama_cpp) is above cut_logit, or equals it and j <= cut_index
};

// Draws. A row with a NaN, or +inf, or nothing to draw from is an invalid_argument that names it, here and below, and if
// num_samples is 0; results, optional ones too, are undefined then: other rows may have been written.
SUMEXP_API Status sample(const SampleCall& call) noexcept;

// How often num_samples draws (with replacement) give each class, in time that does not depend on num_samples: `counts` has the
// shape of the logits and these strides in bytes. They are undefined where a row is refused.
SUMEXP_API Status sample_counts(const SampleCall& call, std::int64_t* counts, const std::int64_t* strides) noexcept;

// With what probability `sample` draws each class of each row, as the decisions on its way multiply: rows x classes, in C
// order. For tests. They are undefined where a row is refused.
SUMEXP_API Status sample_probabilities(const SampleCall& call, double* probabilities) noexcept;

// -- a row in pieces: for logits that are never there all at once ------------------------------------------------------------
// The classes come in pieces that begin at multiples of chunk_classes. sample_piece adds a piece: for each row and each chunk
// in it the chunk's state, and the class that each of num_samples draws takes if it comes to this chunk. finish_pieces draws.
// Temperature 0 (of rows other than f64: in float) is refused by both, and by sample_piece a row with a finite logit whose
// quotient by the temperature is +inf: a piece does not have the row's largest logit, by which sample serves them. A quotient
// of -inf is never drawn. Where a row is refused, states and classes, or out, are undefined.

SUMEXP_API std::int64_t chunk_classes(DType dtype) noexcept;      // 2048, of f64 512
SUMEXP_API std::int64_t piece_state_bytes(DType dtype) noexcept;  // of one chunk of one row

// call: ndim 2, axis 1, of the piece (rows x classes); without filters, where, and results but those below.
// states: rows x chunks of piece_state_bytes, where this piece's chunks begin at `chunk`; classes: rows x chunks x num_samples,
// within their chunk.
SUMEXP_API Status sample_piece(const SampleCall& call, std::int64_t chunk, std::int64_t chunks, void* states,
                               std::int16_t* classes) noexcept;
// call.shape is rows x all classes; logits are not read.
SUMEXP_API Status finish_pieces(const SampleCall& call, std::int64_t chunks, const void* states,
                                const std::int16_t* classes) noexcept;

// -- noise -------------------------------------------------------------------------------------------------
// Standard Gumbel noise in double for rows x n elements in C order: element i of row r from (seed, stream, i).
SUMEXP_API Status gumbel_noise(PerRow<std::uint64_t> seed, PerRow<std::int64_t> stream, std::int64_t rows, std::int64_t n,
                               double* out) noexcept;

}  // namespace sumexp
