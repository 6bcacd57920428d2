// A draw from the softmax of a row: the walk down the tree in which the row's sum was added, for the CPU and the GPU
// (csrc/numerics/README.md, "Sampling").
//
//   at a node with the sums A and B, go left with probability A / (A + B)
//   over chunks      A, B from the states of ExpState, relative to one power of two; the odd node at the end of a level goes
//                    up as it is
//   inside a chunk   A, B from a tree of the chunk's terms in double: 2 * leaves numbers, of which node v (1 is the root,
//                    [leaves, 2 leaves) are the leaves), whose highest bit is h, is the sum of nodes v + h and v + 2 h
#pragma once

#include "../numerics/philox.hpp"
#include "../numerics/state.hpp"

namespace sumexp {

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

}  // namespace sumexp

namespace sumexp::SUMEXP_NS {

// -- the tree over chunks ------------------------------------------------------------------------------------------------

template <class T>
SUMEXP_FN SumNode node_of(const ExpState<T>& state) {
  return {static_cast<double>(state.m), head(total(state)), state.N};
}
template <class T>
SUMEXP_FN RowRoot root_of(const ExpState<T>& state) {
  RowRoot root = {RowKind::finite, static_cast<double>(state.m), 0};
  if (is_nan(state.R)) root.kind = RowKind::nan;
  else if (!is_finite(state.m)) root.kind = state.m > T(0) ? RowKind::infinite : RowKind::nothing;
  else root.over_m = head(log_over_max(state));
  return root;
}

// The nodes of a tree over C chunks, level by level: C of single chunks, ceil(C / 2) of pairs, ... the root.
SUMEXP_FN std::int64_t tree_nodes(std::int64_t chunks) {
  std::int64_t all = chunks;
  for (; chunks > 1; all += chunks) chunks = (chunks + 1) / 2;
  return all;
}
SUMEXP_FN int tree_levels(std::int64_t chunks) {
  int levels = 1;
  for (; chunks > 1; ++levels) chunks = (chunks + 1) / 2;
  return levels;
}
SUMEXP_FN std::int64_t level_size(std::int64_t chunks, int level) { return (chunks + (std::int64_t{1} << level) - 1) >> level; }

// Node i of a level above `below`, which has `count`.
template <class T>
SUMEXP_FN ExpState<T> parent_of(const ExpState<T>* below, std::int64_t count, std::int64_t i) {
  return 2 * i + 1 < count ? merge(below[2 * i], below[2 * i + 1]) : below[2 * i];
}

// States and nodes of the levels above chunk c, whose state has changed; what becomes of the row.
template <class T>
SUMEXP_FN RowRoot regrow_tree(ExpState<T>* below, std::int64_t chunks, SumNode* nodes, std::int64_t c) {
  nodes[c] = node_of(below[c]);
  for (std::int64_t count = chunks; count > 1;) {
    ExpState<T>* const level = below + count;
    nodes += count;
    c /= 2;
    level[c] = parent_of(below, count, c);
    nodes[c] = node_of(level[c]);
    below = level, count = (count + 1) / 2;
  }
  return root_of(*below);
}

// -- inside a chunk ------------------------------------------------------------------------------------------------------

// Leaves of the tree inside a chunk of `count` elements: a power of two, 16 at least.
SUMEXP_FN int leaves_of(int count) {
  int leaves = 16;
  while (leaves < count) leaves *= 2;
  return leaves;
}

// A chunk's terms are e^(x - m) in double, of floats as of doubles, down to e^-916 of the chunk's largest: relative to `base`,
// base_of(m), or base_of(0) where m is not finite.
template <class D, class R>
SUMEXP_FN D chunk_term(D x, D anchor, const R& reduce) {
  return FullTerms::term(FullTerms::parts(x - anchor, reduce));
}

// -- decisions -----------------------------------------------------------------------------------------------------------

// The probability of the smaller of two sides, and which that is.
struct Branch {
  double p;
  bool left_is_smaller;
};
SUMEXP_FN Branch branch(double left, double right) {
  const bool smaller = left <= right;
  return {(smaller ? left : right) / (left + right), smaller};
}
// Of nodes whose sums are relative to powers of two of their own.
template <class T>
SUMEXP_FN Branch branch(const SumNode& left, const SumNode& right) {
  const bool left_upper = left.m >= right.m;
  const SumNode &upper = left_upper ? left : right, &lower = left_upper ? right : left;
  const std::int64_t gap = exponent_gap(static_cast<T>(lower.m), lower.N, static_cast<T>(upper.m), upper.N);
  const double small = shifted<float>(lower.sum, gap);
  return left_upper ? branch(upper.sum, small) : branch(small, upper.sum);
}

// Steps of a walk: 0 .. 10 inside a chunk, from here on down the tree over chunks.
inline constexpr int kChunkSteps = 16;
// Nodes inside chunks, where nodes are numbered (by counts); those over chunks come first.
SUMEXP_FN std::uint64_t node_inside(std::int64_t chunk, int v) {
  return (std::uint64_t{1} << 46) + static_cast<std::uint64_t>(chunk) * 4096 + static_cast<std::uint64_t>(v);
}

// One draw's way down. Two steps share a block of random bits.
struct Walk {
  RowRandom random;
  std::uint64_t draw;
  int at;
  Bits128 block;

  SUMEXP_FN Walk(const RowRandom& random, std::int64_t draw)
      : random(random), draw(static_cast<std::uint64_t>(draw)), at(-1), block{} {}

  SUMEXP_FN std::uint64_t bits(int step) {
    if (step / 2 != at) {
      at = step / 2;
      block = random.at(Purpose::draw, draw, static_cast<std::uint64_t>(at));
    }
    return step % 2 ? block.half(1) : block.half(0);
  }
  SUMEXP_FN bool right(const Branch& b, int step) {
    const auto lower = [&] { return random.at(Purpose::draw_low, draw, static_cast<std::uint64_t>(step)).half(0); };
    return happens(b.p, bits(step), lower) != b.left_is_smaller;
  }
  // The element of a chunk of `leaves` leaves.
  SUMEXP_FN int inside(const double* tree, int leaves) {
    int i = 0, step = 0;
    for (int h = 1; h < leaves; h *= 2, ++step)
      if (right(branch(tree[2 * h + i], tree[3 * h + i]), step)) i += h;
    return i;
  }
  // The chunk. root: the last of the nodes, which has so many levels above it, itself included.
  template <class T>
  SUMEXP_FN std::int64_t over_chunks(const SumNode* root, std::int64_t chunks, int levels) {
    std::int64_t i = 0;
    const SumNode* level_start = root;
    for (int level = levels - 2, step = kChunkSteps; level >= 0; --level, ++step) {
      const std::int64_t size = level_size(chunks, level);
      level_start -= size;
      i *= 2;
      if (i + 1 == size) continue;
      i += right(branch<T>(level_start[i], level_start[i + 1]), step);
    }
    return i;
  }
};

// -- results -------------------------------------------------------------------------------------------------------------

// The logarithm of a class's probability, of its logit as the row's sum has it.
SUMEXP_FN double log_probability(double logit, const RowRoot& root) { return (logit - root.m) - root.over_m; }

// -- noise ---------------------------------------------------------------------------------------------------------------

// The log of a positive normal number, by the series of numerics/log.hpp.
template <class D>
SUMEXP_FN D noise_log(D x) {
  D k;
  const D m = exponent_split(x, k);
  using C = LogConstants;
  return fma(k, D(C::ln2_hi), log1p_narrow(m - D(1.0)) + k * D(C::ln2_lo));
}
// Standard Gumbel noise of an open uniform: -log E with E = -log1p(-low) or, from high = 1 - low, -log high.
template <class D>
SUMEXP_FN D gumbel_of(D low, D high) {
  const D zero = D(0.0);
  const auto near_zero = at_or_above(D(0.5), low);
  const D e = zero - pick(near_zero, log1p_narrow(zero - pick(near_zero, low, D(0.5))), noise_log(high));
  return zero - noise_log(e);
}
// The two of element i.
struct Uniforms {
  double low, high;
};
SUMEXP_FN Uniforms noise_uniforms(const RowRandom& random, std::int64_t i) {
  const Bits128 bits = random.at(Purpose::noise, static_cast<std::uint64_t>(i), 0);
  return {open_uniform(bits.half(0), bits.half(1)), open_uniform(~bits.half(0), ~bits.half(1))};
}

}  // namespace sumexp::SUMEXP_NS
