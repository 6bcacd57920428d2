// What an instruction set offers to sampling: the states of chunks and the tree over them, the tree of terms inside one chunk,
// and noise. The walks themselves are of integers and single divisions, and are compiled once (cpu/sampling).
#pragma once

#include "tables.hpp"

#include <cstdint>

namespace sumexp::cpu {

// A node of the tree over chunks: the sum of exponentials below it is 2^(N - carry) sum, and its largest logit m.
struct SumNode {
  double m, sum;
  std::int64_t N;
};

// What a row's states merge to.
enum class RowKind { finite, nan, infinite, nothing };  // nothing: no logit above -inf
struct RowRoot {
  RowKind kind;
  double m, over_m;  // log sum_j e^(x_j) = m + over_m
};

// The nodes of a tree over C chunks, level by level: C of single chunks, ceil(C / 2) of pairs, ... the root.
inline std::int64_t tree_nodes(std::int64_t chunks) {
  std::int64_t all = chunks;
  for (; chunks > 1; all += chunks) chunks = (chunks + 1) / 2;
  return all;
}

// Leaves of the tree inside a chunk of `count` elements: a power of two, 16 at least. The tree is 2 * leaves doubles: node v
// (1 is the root, [leaves, 2 leaves) are the leaves), whose highest bit is h, is the sum of nodes v + h and v + 2 h.
inline int leaves_of(int count) { return count <= 16 ? 16 : 2 << (31 - __builtin_clz(static_cast<unsigned>(count - 1))); }

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
  } of[2];
  // Standard Gumbel noise from open uniforms: -log E with E = -log1p(-v) or, from w = 1 - v, -log w.
  void (*gumbel)(const double* v, const double* w, std::int64_t count, double* noise);
};

SUMEXP_DECLARE_TABLES(SamplingKernels, sampling_kernels_)

}  // namespace sumexp::cpu
