// Draws from one row, or counts of them, by a block: its tree, the walks, what is told of them.
#pragma once

#include "../../ops/binomial.hpp"
#include "sampling.hpp"
#include "sampling_row.cuh"

namespace sumexp::SUMEXP_NS {

inline constexpr int kSampleWarps = 8;
inline constexpr int kDrawsAThread = 16;  // that share a chunk's tree

struct SampleBoard {
  double numbers[kSampleWarps];
  std::int64_t integers[kSampleWarps];
  std::int64_t chosen;
};

// The lowest place among the largest elements.
struct LargestElement {
  double value;
  std::int64_t place;  // -1: none above -inf
};

// One row in a block, all of whose threads call all of this. `rows` stays a kernel's parameter.
template <class T>
class SampledBlock {
 public:
  using State = ExpState<T>;
  static constexpr int kChunk = Geometry<T>::kChunk;

  SUMEXP_DEVICE SampledBlock(const cuda::SampleRows& rows, std::int64_t row, SampleBoard& board, double* tree)
      : rows(rows), row(row), board(board), tree(tree) {
    char* at[cuda::SampleRows::kViews];
    place_row(rows.views, row, at);
    counts_row = at[cuda::SampleRows::kCounts];
    x.x = at[cuda::SampleRows::kLogits], x.mask = at[cuda::SampleRows::kMask];
    x.n = rows.views.n, x.stride = rows.views.stride[cuda::SampleRows::kLogits];
    x.mask_stride = rows.views.stride[cuda::SampleRows::kMask];
    x.dtype = rows.dtype, x.late = rows.late, x.taken = nullptr, x.half_largest = 0;
    temperature = rows.temperature.data ? rows.temperature.data[row * rows.temperature.step] : 1.0;
    greedy = static_cast<T>(temperature) == T(0);
    x.divisor = static_cast<T>(temperature);
    x.scale = temperature == 1.0 || greedy                              ? SampledRow<T>::Scale::none
              : x.divisor == Limits<T>::infinity || temperature > kMost ? SampledRow<T>::Scale::vanish
                                                                        : SampledRow<T>::Scale::divide;
    x.cut = rows.cuts && !greedy;
    if (x.cut) x.cut_logit = rows.cuts[row].logit, x.cut_index = rows.cuts[row].index;
    random = {rows.seed.data[row * rows.seed.step],
              static_cast<std::uint64_t>(rows.stream.data ? rows.stream.data[row * rows.stream.step] : row)};
    char* const memory = rows.workspace + blockIdx.x * rows.block_bytes;
    states = reinterpret_cast<State*>(memory);
    nodes = reinterpret_cast<SumNode*>(memory + rows.nodes_at);
    raw_states = reinterpret_cast<State*>(memory + rows.raw_at);
    counts = reinterpret_cast<std::int64_t*>(memory + rows.counts_at);
    marks = reinterpret_cast<std::uint32_t*>(memory + rows.taken_at);
  }

  // -- what all threads learn from each -------------------------------------------------------------------------------------

  template <class V, class Combine>
  SUMEXP_DEVICE V over_block(V value, V* slots, Combine combine) {
#pragma unroll
    for (int bit = arch::lane_count / 2; bit > 0; bit /= 2) value = combine(value, arch::shfl_xor(value, bit));
    arch::block_sync();
    if (arch::lane() == 0) slots[arch::warp()] = value;
    arch::block_sync();
    value = slots[0];
    for (int w = 1; w < warps(); ++w) value = combine(value, slots[w]);
    return value;
  }
  SUMEXP_DEVICE double largest_of(double v) {
    return over_block(v, board.numbers, [](double a, double b) { return arch::larger(a, b); });
  }
  SUMEXP_DEVICE std::int64_t most_of(std::int64_t v) {
    return over_block(v, board.integers, [](std::int64_t a, std::int64_t b) { return a > b ? a : b; });
  }
  SUMEXP_DEVICE std::int64_t sum_of(std::int64_t v) {
    return over_block(v, board.integers, [](std::int64_t a, std::int64_t b) { return a + b; });
  }

  // -- the tree over chunks -------------------------------------------------------------------------------------------------

  SUMEXP_DEVICE void reduce_all(const SampledRow<T>& from, State* to, ChunkFacts& facts) {
#pragma unroll 1
    for (std::int64_t c = arch::warp(); c < rows.chunks; c += warps()) {
      const State state = reduce_sampled(from, c, facts);
      if (arch::lane() == 0) to[c] = state;
    }
    arch::block_sync();
  }
  // nodes: of these states, or null
  SUMEXP_DEVICE RowRoot grow(State* below, SumNode* level_nodes) {
    for (std::int64_t i = threadIdx.x; level_nodes && i < rows.chunks; i += blockDim.x) level_nodes[i] = node_of(below[i]);
#pragma unroll 1
    for (std::int64_t count = rows.chunks; count > 1;) {
      State* const level = below + count;
      if (level_nodes) level_nodes += count;
      const std::int64_t above = (count + 1) / 2;
      for (std::int64_t i = threadIdx.x; i < above; i += blockDim.x) {
        const State state = parent_of(below, count, i);
        level[i] = state;
        if (level_nodes) level_nodes[i] = node_of(state);
      }
      arch::block_sync();
      below = level, count = above;
    }
    arch::block_sync();
    return root_of(*below);
  }

  // The states, nodes and root of what is drawn from; false where the row is not to be drawn from. Of greedy rows the largest.
  SUMEXP_DEVICE bool prepare(bool count_kept) {
    root = {RowKind::nothing, 0, 0};
    largest = {-Limits<double>::infinity, -1};
    kept = 0;
    if (!(temperature >= 0.0) || rows.chunks == 0) return false;
    if (greedy) {
      kept = 1;
      return find_largest() && largest.place >= 0 && is_finite(largest.value);
    }
    for (;;) {
      ChunkFacts facts = {false, 0};
      reduce_all(x, states, facts);
      if (count_kept && !x.cut) kept = sum_of(facts.kept);
      if (x.scale != SampledRow<T>::Scale::divide || temperature >= 1.0 || most_of(facts.overflows) == 0) break;
      if (!divide_apart()) break;
    }
    if (x.cut) kept = rows.cuts[row].kept;
    root = grow(states, nodes);
    return root.kind == RowKind::finite;
  }
  // From now on differences from the largest element are divided; false where that is no number.
  SUMEXP_DEVICE bool divide_apart() {
    T m = -Limits<T>::infinity;
    bool nan = false;
    for (std::int64_t j = threadIdx.x; j < x.n; j += blockDim.x) {
      const T v = x.given(j);
      nan = nan || v != v;
      m = arch::larger(v, m);
    }
    m = static_cast<T>(largest_of(m));
    if (most_of(nan) || !(m < Limits<T>::infinity)) return false;
    x.scale = SampledRow<T>::Scale::apart;
    x.half_largest = m * T(0.5);
    return true;
  }
  // Of what is left; false where there is a NaN.
  SUMEXP_DEVICE bool find_largest() {
    T m = -Limits<T>::infinity;
    std::int64_t place = -1;
    bool nan = false, overflows = false;
    for (std::int64_t j = threadIdx.x; j < x.n; j += blockDim.x) {
      const T v = x.element(j, overflows);
      nan = nan || v != v;
      if (v > m) m = v, place = j;
    }
    if (most_of(nan)) return false;
    const T best = static_cast<T>(largest_of(m));
    const std::int64_t lowest = -most_of(m == best && place >= 0 ? -place : -x.n);
    largest = {static_cast<double>(best) + 0.0, lowest < x.n ? lowest : -1};
    return true;
  }

  // -- inside a chunk -------------------------------------------------------------------------------------------------------

  // The tree of terms of chunk c.
  SUMEXP_DEVICE int make_terms(std::int64_t c) {
    const int count = chunk_size<T>(x.n, c), leaves = leaves_of(count);
    const std::int64_t first = c * kChunk;
    double* const leaf = tree + leaves;
    T m = -Limits<T>::infinity;
    bool overflows = false;
    for (int i = threadIdx.x; i < leaves; i += blockDim.x) {
      const T v = i < count ? x.element(first + i, overflows) : -Limits<T>::infinity;
      m = arch::larger(v, m);
      leaf[i] = static_cast<double>(v);
    }
    const double top = largest_of(m);
    const Base<double> base = base_of(is_finite(top) ? top : 0.0);
    for (int i = threadIdx.x; i < leaves; i += blockDim.x)
      leaf[i] = i < count ? chunk_term(leaf[i], base.anchor, base.reduce) : 0.0;
    arch::block_sync();
#pragma unroll 1
    for (int h = leaves / 2; h > 0; h /= 2) {
      for (int i = threadIdx.x; i < h; i += blockDim.x) tree[h + i] = tree[2 * h + i] + tree[3 * h + i];
      arch::block_sync();
    }
    return leaves;
  }

  // -- draws ----------------------------------------------------------------------------------------------------------------

  SUMEXP_DEVICE Walk walk_of(std::int64_t draw) const { return Walk(random, draw); }
  SUMEXP_DEVICE std::int64_t chunk_of(Walk& walk) const {
    return walk.template over_chunks<T>(nodes + rows.nodes - 1, rows.chunks, rows.levels);
  }

  // Draws [d0, d1) with replacement. What has come to chunk c waits as -1 - c.
  SUMEXP_DEVICE void draw(std::int64_t d0, std::int64_t d1) {
    std::int64_t* const out = rows.out + row * rows.draws;
    if (greedy) {
      for (std::int64_t d = d0 + threadIdx.x; d < d1; d += blockDim.x) out[d] = largest.place;
      return;
    }
    const std::int64_t batch = std::int64_t{kDrawsAThread} * blockDim.x;
#pragma unroll 1
    for (std::int64_t first = d0; first < d1; first += batch) {
      const std::int64_t end = first + batch < d1 ? first + batch : d1;
      for (std::int64_t d = first + threadIdx.x; d < end; d += blockDim.x) {
        Walk walk = walk_of(d);
        out[d] = -1 - chunk_of(walk);
      }
#pragma unroll 1
      for (std::int64_t c;;) {
        std::int64_t next = -rows.chunks - 1;
        for (std::int64_t d = first + threadIdx.x; d < end; d += blockDim.x)
          if (out[d] < 0 && out[d] > next) next = out[d];
        next = most_of(next);
        if (next < -rows.chunks) break;
        c = -1 - next;
        const int leaves = make_terms(c);
        for (std::int64_t d = first + threadIdx.x; d < end; d += blockDim.x)
          if (out[d] == next) out[d] = c * kChunk + walk_of(d).inside(tree, leaves);
      }
    }
  }

  // All draws without replacement, each by thread 0. How many could be made.
  SUMEXP_DEVICE std::int64_t draw_apart() {
    std::int64_t* const out = rows.out + row * rows.draws;
    for (std::int64_t i = threadIdx.x; i < (x.n + 31) / 32; i += blockDim.x) marks[i] = 0;
    x.taken = marks;
    arch::block_sync();
#pragma unroll 1
    for (std::int64_t d = 0; d < rows.draws; ++d) {
      std::int64_t c = 0;
      if (greedy) {
        find_largest();
        if (largest.place < 0) return d;
        if (threadIdx.x == 0) out[d] = largest.place;
      } else {
        Walk walk = walk_of(d);
        c = chunk_of(walk);
        const int leaves = make_terms(c);
        if (threadIdx.x == 0) out[d] = c * kChunk + walk.inside(tree, leaves);
      }
      if (threadIdx.x == 0) marks[out[d] / 32] |= 1u << (out[d] % 32);
      arch::block_sync();
      if (greedy || d + 1 == rows.draws) continue;
      if (arch::warp() == 0) {
        ChunkFacts facts = {false, 0};
        const State state = reduce_sampled(x, c, facts);
        if (threadIdx.x == 0) {
          states[c] = state;
          board.chosen = regrow_tree(states, rows.chunks, nodes, c).kind == RowKind::nothing;
        }
      }
      arch::block_sync();
      if (board.chosen) return d + 1;
    }
    return rows.draws;
  }

  // -- what is told of draws [d0, d1), of which those before `made` were made; -1: the row is not to be drawn from -----------

  SUMEXP_DEVICE void tell(std::int64_t d0, std::int64_t d1, std::int64_t made, const LargestElement& first, bool row_too) {
    std::int64_t* const out = rows.out + row * rows.draws;
    const double nan = Limits<double>::nan();
    for (std::int64_t d = d0 + threadIdx.x; d < d1; d += blockDim.x)
      if (d >= made) out[d] = -1;
    if (row_too && threadIdx.x == 0) {
      const bool any = made >= 0;
      if (rows.kept) rows.kept[row] = any ? kept : 0;
      if (rows.cut_logit)
        rows.cut_logit[row] = !any ? nan : greedy ? first.value : x.cut ? x.cut_logit : -Limits<double>::infinity;
      if (rows.cut_index) rows.cut_index[row] = !any ? -1 : greedy ? first.place : x.cut ? x.cut_index : -1;
    }
    if (rows.filtered_log_prob)
      for (std::int64_t d = d0 + threadIdx.x; d < d1; d += blockDim.x) {
        double& to = rows.filtered_log_prob[row * rows.draws + d];
        bool overflows = false;
        if (d >= made) to = nan;
        else if (greedy) to = out[d] == first.place ? 0.0 : -Limits<double>::infinity;
        else to = log_probability(static_cast<double>(x.scaled(x.given(out[d]), overflows)), root);
      }
    if (!rows.log_prob) return;
    RowRoot of_given = root;
    if (made > 0 && (x.scale != SampledRow<T>::Scale::none || x.cut || greedy)) {
      ChunkFacts facts = {false, 0};
      const SampledRow<T> given = x.raw();
      reduce_all(given, raw_states, facts);
      of_given = grow(raw_states, nullptr);
    }
    for (std::int64_t d = d0 + threadIdx.x; d < d1; d += blockDim.x)
      rows.log_prob[row * rows.draws + d] =
          d < made && of_given.kind == RowKind::finite ? log_probability(static_cast<double>(x.given(out[d])), of_given) : nan;
  }

  // -- counts in place of draws ---------------------------------------------------------------------------------------------

  SUMEXP_DEVICE void split(const std::int64_t& of, std::int64_t& to_left, std::int64_t& to_right, const Branch& b,
                           std::uint64_t node) const {
    const std::int64_t draws = of, fewer = binomial(draws, b.p, random, node);
    to_left = b.left_is_smaller ? fewer : draws - fewer;
    to_right = draws - to_left;
  }
  // Level by level, so that a node's parent is split before it.
  SUMEXP_DEVICE void count_chunks() {
    if (threadIdx.x == 0) counts[rows.nodes - 1] = rows.draws;
    arch::block_sync();
    std::int64_t above = rows.nodes - 1;
#pragma unroll 1
    for (int level = rows.levels - 2; level >= 0; --level) {
      const std::int64_t size = level_size(rows.chunks, level), start = above - size;
      for (std::int64_t i = threadIdx.x; 2 * i < size; i += blockDim.x) {
        const std::int64_t parent = above + i, at = start + 2 * i;
        if (2 * i + 1 == size) counts[at] = counts[parent];
        else if (counts[parent] == 0) counts[at] = counts[at + 1] = 0;
        else
          split(counts[parent], counts[at], counts[at + 1], branch<T>(nodes[at], nodes[at + 1]),
                static_cast<std::uint64_t>(parent));
      }
      above = start;
      arch::block_sync();
    }
  }
  SUMEXP_DEVICE void put_counts(std::int64_t c, const std::int64_t* of, std::int64_t absent) {
    const std::int64_t stride = rows.views.stride[cuda::SampleRows::kCounts];
    for (int i = threadIdx.x; i < chunk_size<T>(x.n, c); i += blockDim.x)
      *reinterpret_cast<std::int64_t*>(counts_row + (c * kChunk + i) * stride) = of ? of[i] : absent;
  }
  SUMEXP_DEVICE void count_elements(std::int64_t c, std::int64_t* inside) {
    if (greedy) {
      const std::int64_t place = largest.place - c * kChunk;
      put_counts(c, nullptr, 0);
      arch::block_sync();
      if (threadIdx.x == 0 && place >= 0 && place < kChunk)
        *reinterpret_cast<std::int64_t*>(counts_row + largest.place * rows.views.stride[cuda::SampleRows::kCounts]) =
            rows.draws;
      return;
    }
    if (counts[c] == 0) return put_counts(c, nullptr, 0);
    const int leaves = make_terms(c);
    if (threadIdx.x == 0) inside[1] = counts[c];
    arch::block_sync();
#pragma unroll 1
    for (int h = 1; h < leaves; h *= 2) {
      for (int v = h + int(threadIdx.x); v < 2 * h; v += int(blockDim.x)) {
        if (inside[v] == 0) inside[v + h] = inside[v + 2 * h] = 0;
        else split(inside[v], inside[v + h], inside[v + 2 * h], branch(tree[v + h], tree[v + 2 * h]), node_inside(c, v));
      }
      arch::block_sync();
    }
    put_counts(c, inside + leaves, 0);
    arch::block_sync();
  }

  const cuda::SampleRows& rows;
  const std::int64_t row;
  SampleBoard& board;
  double* const tree;
  SampledRow<T> x;
  char* counts_row;
  double temperature;
  bool greedy;
  RowRandom random;
  State *states, *raw_states;
  SumNode* nodes;
  std::int64_t *counts, kept;
  std::uint32_t* marks;
  RowRoot root;
  LargestElement largest;

 private:
  static constexpr double kMost = sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
};

}  // namespace sumexp::SUMEXP_NS
