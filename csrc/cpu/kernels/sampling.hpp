// What an instruction set offers to sampling: the states of chunks and the tree over them, the tree of terms inside one chunk,
// and noise. The walks themselves are of integers and single divisions, and are compiled once (cpu/sampling).
#pragma once

#include "../../ops/sampling.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

struct RowKey {
  std::uint64_t seed, stream;
};
inline constexpr int kTogether = 16;  // rows whose walks take their steps together

struct SamplingKernels {
  // T: float or double. x: contiguous T.
  struct Of {
    int state_bytes;
    void (*reduce)(const void* x, int count, void* state);
    // The states and nodes above level 0, and what becomes of the row.
    RowRoot (*grow)(void* states, std::int64_t chunks, SumNode* nodes);
    // The same where chunk c alone has changed.
    RowRoot (*regrow)(void* states, std::int64_t chunks, SumNode* nodes, std::int64_t c);
    void (*terms)(const void* x, int count, double* tree);
    // The largest element and, unless null, its first place; false where one is NaN.
    bool (*largest)(const void* x, int count, double* value, int* place);
    // A copy in which whatever is below the cut, (x, place) in order of x and then of place down, is -inf. How many remain.
    int (*keep)(const void* x, int count, double cut, int last_tied, void* to);
    // The state that `reduce` has of that copy, where little is kept; else false, and nothing is promised of the state.
    bool (*reduce_kept)(const void* x, int count, double cut, int last_tied, void* state);
  } of[2];
  // The first draws of up to kTogether rows, of which each has a tree inside its only chunk, one tree behind the other: what
  // Walk::inside takes there.
  void (*inside)(const RowKey* keys, const double* trees, int rows, int leaves, int* places);
  // Standard Gumbel noise from open uniforms: -log E with E = -log1p(-v) or, from w = 1 - v, -log w.
  void (*gumbel)(const double* v, const double* w, std::int64_t count, double* noise);
};

SUMEXP_DECLARE_TABLES(SamplingKernels, sampling_kernels_)

}  // namespace sumexp::cpu
