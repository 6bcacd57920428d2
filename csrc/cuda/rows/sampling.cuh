// Draws from rows of any length (ops/sampling.hpp): a block takes a row, or some of the draws from it.
//
//   states   a warp reduces a chunk to its state; the tree over chunks grows level by level in the workspace
//   draws    a thread walks a draw over chunks. Then, chunk by chunk of those that were come to, the block makes the tree
//            of the chunk's terms in shared memory, in which the threads walk on
//
// A row with NaN, +inf or nothing to draw from, or with a temperature that is none, gives -1, and NaN, 0 kept and a cut of
// (NaN, -1) as information; without replacement so do the draws for which no class is left.
#pragma once

#include "../../ops/binomial.hpp"
#include "../../ops/sampling.hpp"
#include "../exp_chunk.cuh"
#include "row.cuh"
#include "sampling.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr int kSampleWarps = 8;
inline constexpr int kDrawsAThread = 16;  // that share a chunk's tree

// -- the elements of a row -----------------------------------------------------------------------------------------------

template <class T>
struct SampledRow {
  enum class Scale { none, divide, vanish, apart };

  const char *x, *mask;
  std::int64_t n, stride, mask_stride;
  DType dtype;
  Scale scale;
  bool late, cut;
  T divisor, half_largest;  // the latter of Scale::apart: half of the row's largest element
  double cut_logit;
  std::int64_t cut_index;
  const std::uint32_t* taken;  // marks of what is not drawn again, or null

  SUMEXP_DEVICE T given(std::int64_t j) const {
    if (mask && !mask[j * mask_stride]) return -Limits<T>::infinity;
    const char* const p = x + j * stride;
    if constexpr (sizeof(T) == 4) {
      if (dtype == DType::f16) return widen(*reinterpret_cast<const f16*>(p));
      if (dtype == DType::bf16) return widen(*reinterpret_cast<const bf16*>(p));
    }
    return *reinterpret_cast<const T*>(p);
  }
  // overflows: set where a finite x has a quotient that is not
  SUMEXP_DEVICE T scaled(T v, bool& overflows) const {
    if (scale == Scale::none) return v;
    if (scale == Scale::vanish) return is_finite(v) ? T(0) : v;
    if (scale == Scale::apart) return T(2) * ((v * T(0.5) - half_largest) / divisor);
    const T quotient = v / divisor;
    overflows = overflows || (!is_finite(quotient) && is_finite(v));
    return quotient;
  }
  SUMEXP_DEVICE T left(T v, std::int64_t j) const {
    const T bound = static_cast<T>(cut_logit);
    return v > bound || (v == bound && j <= cut_index) || v != v ? v : -Limits<T>::infinity;
  }
  SUMEXP_DEVICE bool is_taken(std::int64_t j) const { return (taken[j / 32] >> (j % 32)) & 1; }
  // What is drawn from.
  SUMEXP_DEVICE T element(std::int64_t j, bool& overflows) const {
    T v = given(j);
    if (!late) v = scaled(v, overflows);
    if (cut) v = left(v, j);
    if (late) v = scaled(v, overflows);
    return taken && is_taken(j) ? -Limits<T>::infinity : v;
  }
  // The row as it is given, with its mask.
  SUMEXP_DEVICE SampledRow raw() const {
    SampledRow row = *this;
    row.scale = Scale::none, row.cut = false, row.taken = nullptr;
    return row;
  }
};

// Elements of 16 bits in the places of floats: four neighbours a thread.
template <class S>
SUMEXP_DEVICE void load_halves(const char* p, std::int64_t stride, int count, float (&v)[8][Tile<float>::kValues]) {
  const bool packs = stride == 2 && reinterpret_cast<std::uintptr_t>(p) % 8 == 0;
#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int first = 0; first < Tile<float>::kValues; first += 4) {
      const int at = element_of<float>(r, first);
      if (packs && at + 4 <= count) {
        const std::uint64_t pack = *reinterpret_cast<const std::uint64_t*>(p + 2 * at);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[r][first + e] = widen(S{static_cast<std::uint16_t>(pack >> (16 * e))});
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          v[r][first + e] =
              at + e < count ? widen(*reinterpret_cast<const S*>(p + (at + e) * stride)) : -Limits<float>::infinity;
      }
    }
}

struct ChunkFacts {
  bool overflows;
  int kept;  // elements above -inf of this thread
};

// The state of chunk c, by a warp. Terms are FullTerms, of 16-bit rows too.
template <class T>
__device__ __attribute__((noinline)) ExpState<T> reduce_sampled(const SampledRow<T>& row, std::int64_t c, ChunkFacts& facts) {
  constexpr int kValues = Tile<T>::kValues;
  const std::int64_t first = c * Geometry<T>::kChunk;
  const int count = chunk_size<T>(row.n, c);
  const char* const p = row.x + first * row.stride;
  T v[8][kValues];
  if constexpr (sizeof(T) == 4) {
    if (row.dtype == DType::f16) load_halves<f16>(p, row.stride, count, v);
    else if (row.dtype == DType::bf16) load_halves<bf16>(p, row.stride, count, v);
    else load_chunk<T, 8>(p, row.stride, count, v, -Limits<T>::infinity);
  } else {
    load_chunk<T, 8>(p, row.stride, count, v, -Limits<T>::infinity);
  }
  const auto each = [&](auto change) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
      for (int i = 0; i < kValues; ++i) v[r][i] = change(v[r][i], element_of<T>(r, i));
  };
  if (row.mask) {
    const char* const mask = row.mask + first * row.mask_stride;
    each([&](T x, int i) { return i < count && !mask[i * row.mask_stride] ? -Limits<T>::infinity : x; });
  }
#pragma unroll 1
  for (int step = 0; step < 2; ++step) {
    if (step == int(row.late) && row.scale != SampledRow<T>::Scale::none)
      each([&](T x, int) { return row.scaled(x, facts.overflows); });
    if (step == 0 && row.cut) each([&](T x, int i) { return row.left(x, first + i); });
  }
  if (row.taken) each([&](T x, int i) { return i < count && row.is_taken(first + i) ? -Limits<T>::infinity : x; });
#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) facts.kept += v[r][i] > -Limits<T>::infinity;
  return exp_chunk<T, true, false>(v);
}

// -- a block -------------------------------------------------------------------------------------------------------------

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

  // -- what is told of draws [d0, d1), of which those before `made` were made ------------------------------------------------

  SUMEXP_DEVICE void tell(std::int64_t d0, std::int64_t d1, std::int64_t made, const LargestElement& first, bool row_too) {
    std::int64_t* const out = rows.out + row * rows.draws;
    const double nan = Limits<double>::nan();
    for (std::int64_t d = d0 + threadIdx.x; d < d1; d += blockDim.x)
      if (d >= made) out[d] = -1;
    if (row_too && threadIdx.x == 0) {
      const bool any = made > 0;
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

// Part `part` of `parts` of so many.
struct Share {
  std::int64_t first, end;
};
SUMEXP_FN Share share_of(std::int64_t all, std::int64_t part, std::int64_t parts) {
  const std::int64_t step = (all + parts - 1) / parts, first = part * step;
  return {first < all ? first : all, first + step < all ? first + step : all};
}

template <class Body>
SUMEXP_DEVICE void each_part(const cuda::SampleRows& rows, Body body) {
#pragma unroll 1
  for (std::int64_t i = blockIdx.x; i < rows.views.rows * rows.parts; i += gridDim.x) {
    body(i / rows.parts, i % rows.parts);
    arch::block_sync();
  }
}

struct SampleShared {
  SampleBoard board;
  alignas(16) double tree[1];  // as long as the chunks here need
};

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) draw_rows(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t part) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const Share draws = share_of(rows.draws, part, rows.parts);
    const bool finite = block.prepare(rows.kept != nullptr);
    const LargestElement first = block.largest;
    std::int64_t made = 0;
    if (finite) {
      made = rows.draws;
      if (rows.replacement) block.draw(draws.first, draws.end);
      else made = block.draw_apart();
    }
    block.x.taken = nullptr;
    arch::block_sync();
    block.tell(draws.first, draws.end, made, first, part == 0);
  });
}

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) count_rows(SUMEXP_PARAMETER cuda::SampleRows rows, int tree_bytes) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  auto* const inside = reinterpret_cast<std::int64_t*>(reinterpret_cast<char*>(shared.tree) + tree_bytes);
  each_part(rows, [&](std::int64_t row, std::int64_t part) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const Share chunks = share_of(rows.chunks, part, rows.parts);
    const bool finite = block.prepare(false);
    if (finite && !block.greedy) block.count_chunks();
#pragma unroll 1
    for (std::int64_t c = chunks.first; c < chunks.end; ++c) {
      if (finite) block.count_elements(c, inside);
      else block.put_counts(c, nullptr, -1);
    }
  });
}

// For each chunk here its state, and the class in it that each draw takes if it comes to it. A part is a chunk.
template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 2) draw_in_pieces(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t c) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const std::int64_t at = row * rows.all_chunks + rows.first_chunk + c;
    if (arch::warp() == 0) {
      ChunkFacts facts = {false, 0};
      const ExpState<T> state = reduce_sampled(block.x, c, facts);
      if (arch::lane() == 0) reinterpret_cast<ExpState<T>*>(rows.states)[at] = state;
    }
    const int leaves = block.make_terms(c);
    const double all = block.tree[1];
    const bool any = all > 0.0 && all < Limits<double>::infinity;
    for (std::int64_t d = threadIdx.x; d < rows.draws; d += blockDim.x)
      rows.classes[at * rows.draws + d] = static_cast<std::int16_t>(any ? block.walk_of(d).inside(block.tree, leaves) : 0);
  });
}

template <class T>
__global__ void __launch_bounds__(kSampleWarps * 32, 1) finish_pieces(SUMEXP_PARAMETER cuda::SampleRows rows) {
  auto& shared = *arch::dynamic_shared<SampleShared>();
  each_part(rows, [&](std::int64_t row, std::int64_t) {
    SampledBlock<T> block(rows, row, shared.board, shared.tree);
    const auto* const given = reinterpret_cast<const ExpState<T>*>(rows.states) + row * rows.chunks;
    for (std::int64_t c = threadIdx.x; c < rows.chunks; c += blockDim.x) block.states[c] = given[c];
    arch::block_sync();
    bool finite = false;
    if (rows.chunks > 0) finite = block.grow(block.states, block.nodes).kind == RowKind::finite;
    for (std::int64_t d = threadIdx.x; d < rows.draws; d += blockDim.x) {
      std::int64_t drawn = -1;
      if (finite) {
        Walk walk = block.walk_of(d);
        const std::int64_t c = block.chunk_of(walk);
        drawn = c * Geometry<T>::kChunk + rows.classes[(row * rows.chunks + c) * rows.draws + d];
      }
      rows.out[row * rows.draws + d] = drawn;
    }
  });
}

template <class T>
cudaError_t SamplingOf<T>::run(SampleTask task, const cuda::SampleRows& rows, std::int64_t blocks, cudaStream_t stream) {
  if constexpr (sizeof(T) >= 4) {
    constexpr int kChunk = Geometry<T>::kChunk;
    const int longest = rows.views.n < kChunk ? int(rows.views.n) : kChunk;
    unsigned width = 1;
    while (width < kSampleWarps && (rows.chunks > 1 || int(width) * 256 < longest)) width *= 2;
    arch::Launch how;
    how.grid = dim3(unsigned(blocks));
    how.block = dim3(width * arch::lane_count);
    const int tree_bytes = 16 * leaves_of(longest);
    how.dynamic_shared = sizeof(SampleShared) + std::size_t(tree_bytes);
    how.stream = stream;
    switch (task) {
      case SampleTask::draws: return arch::launch(draw_rows<T>, how, rows);
      case SampleTask::pieces: return arch::launch(draw_in_pieces<T>, how, rows);
      case SampleTask::finish: return arch::launch(finish_pieces<T>, how, rows);
      default: how.dynamic_shared += std::size_t(tree_bytes); return arch::launch(count_rows<T>, how, rows, tree_bytes);
    }
  } else {
    return cudaErrorInvalidValue;  // served by those of float
  }
}

}  // namespace sumexp::SUMEXP_NS
