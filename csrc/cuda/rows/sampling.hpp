// Draws from rows on a device, as host and kernels see them.
#pragma once

#include "../../include/sumexp/sampling.hpp"
#include "../../numerics/formats.hpp"
#include "../arch/arch.hpp"
#include "filters.hpp"
#include "row_views.hpp"

namespace sumexp::cuda {

// All pointers are device memory. cuts: one a row, or null; a cut's logit is that of x / T, in order llama_cpp of x as it is
// given (find_cuts in filters.hpp makes them).
struct SampleRows {
  enum { kLogits, kMask, kCounts, kViews };
  RowViews<kViews> views;
  DType dtype;
  PerRow<std::uint64_t> seed;
  PerRow<std::int64_t> stream;
  PerRow<double> temperature;
  const RowCut* cuts;
  bool late;  // the temperature comes after the cut
  bool replacement;
  std::int64_t draws;  // of a row
  std::int64_t* out;
  double *log_prob, *filtered_log_prob;  // optional, as in SampleCall
  std::int64_t* kept;
  double* cut_logit;
  std::int64_t* cut_index;
  // A row is shared out to `parts` blocks: draws, or chunks of counts. A block has its own part of the workspace: states and
  // nodes of the tree over chunks, the same of the logits as they are given, counts of nodes, marks of what was taken.
  std::int64_t chunks, nodes, parts;
  int levels;
  char* workspace;
  std::int64_t nodes_at, raw_at, counts_at, taken_at, block_bytes;
  // Of rows in pieces: states (rows x all_chunks), of which the chunks here begin at first_chunk, and the class of each draw
  // in each chunk.
  std::int64_t first_chunk, all_chunks;
  char* states;
  std::int16_t* classes;
};

}  // namespace sumexp::cuda

namespace sumexp::SUMEXP_NS {

enum class SampleTask { draws, counts, pieces, finish };

// Kernels are of what a row is computed in: those of float serve 16-bit rows as well.
template <class T>
struct SamplingOf {
  static cudaError_t run(SampleTask task, const cuda::SampleRows& rows, std::int64_t blocks, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
