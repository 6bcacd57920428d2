#include SUMEXP_SIMD
//
#include "sampling.hpp"
#include "../../ops/filters.hpp"
#include "../../ops/sampling.hpp"
#include "compress.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

// Levels as tree_nodes counts them: the tree of MergeTree (numerics/geometry.hpp). An odd node at the end goes up as it is.
template <class T>
RowRoot grow(void* all, std::int64_t chunks, SumNode* nodes) {
  auto* below = static_cast<ExpState<T>*>(all);
  for (std::int64_t c = 0; c < chunks; ++c) nodes[c] = node_of(below[c]);
  for (std::int64_t count = chunks; count > 1;) {
    ExpState<T>* const level = below + count;
    nodes += count;
    const std::int64_t above = (count + 1) / 2;
    for (std::int64_t i = 0; i < above; ++i) {
      level[i] = parent_of(below, count, i);
      nodes[i] = node_of(level[i]);
    }
    below = level, count = above;
  }
  return root_of(*below);
}

template <class T>
RowRoot regrow(void* all, std::int64_t chunks, SumNode* nodes, std::int64_t c) {
  return regrow_tree(static_cast<ExpState<T>*>(all), chunks, nodes, c);
}

template <class V>
void reduce(const void* x, int count, void* state) {
  using T = ElementOf<V>;
  as<ExpState<T>>(state) =
      exp_chunk<FullTerms, V, true, false>(static_cast<const T*>(x), count, static_cast<T*>(nullptr), {Geometry<T>::kChunk});
}

SUMEXP_FN const double* widened(const double* x, int, double*) { return x; }
SUMEXP_FN const double* widened(const float* x, int count, double* to) {
  constexpr int kParts = F32::W / F64::W;
  each_vector<F32>(count, [&](int i, auto memory) SUMEXP_INLINE {
    F64 part[kParts];
    put_members(WideOf<F32>::from(memory.template load<F32>(x + i, 0.0f)), part);
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) F64::store(to + i + k * F64::W, part[k]);
  });
  return to;
}

// Level h of a tree, which is in x, and all above it. What is written behind a level is written again by the one below.
template <int h>
SUMEXP_FN void store_levels(double* tree, F64 x) {
  if constexpr (h > 1) store_levels<h / 2>(tree, x + slide_down<h / 2>(x));
  F64::store(tree + h, x);
}

template <class V>
void terms(const void* from, int count, double* tree) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(from);
  double wide[Geometry<T>::kChunk];
  const T m = largest(lane_max<V>(x, count));
  const int leaves = leaves_of(count);
  double* const leaf = tree + leaves;
  const double* const from_double = widened(x, count, wide);
  const Base<double> base = base_of(is_finite(m) ? static_cast<double>(m) : 0.0);
  const Reduction<F64> reduce = {F64(base.reduce.shift), F64(base.reduce.floor)};
  each_vector<F64>(count, [&](int i, auto memory) SUMEXP_INLINE {
    memory.store(leaf + i, chunk_term(memory.template load<F64>(from_double + i, 0.0), F64(base.anchor), reduce));
  });
  for (int i = count; i < leaves; ++i) leaf[i] = 0;
  for (int h = leaves / 2; h > F64::W; h /= 2)
    for (int i = 0; i < h; i += F64::W) F64::store(tree + h + i, F64::load(tree + 2 * h + i) + F64::load(tree + 3 * h + i));
  store_levels<F64::W>(tree, F64::load(tree + 2 * F64::W) + F64::load(tree + 3 * F64::W));
}

template <class V>
bool find_largest(const void* from, int count, double* value, int* place) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(from);
  V best[2] = {V(-Limits<T>::infinity), V(-Limits<T>::infinity)};
  int found = 0, i = 0;
  const auto look = [&](int u, V v) SUMEXP_INLINE {
    found += ::sumexp::SUMEXP_NS::count(unordered(v));
    best[u] = larger(v, best[u]);
  };
  for (; i + 2 * V::W <= count; i += 2 * V::W) look(0, V::load(x + i)), look(1, V::load(x + i + V::W));
  for (; i + V::W <= count; i += V::W) look(0, V::load(x + i));
  if (i < count) look(1, Part{count - i}.template load<V>(x + i, -Limits<T>::infinity));
  if (found) return false;
  const T m = largest(larger(best[0], best[1]));
  if (place) *place = -1;
  if (!(static_cast<double>(m) > *value)) return true;
  *value = static_cast<double>(m);
  if (!place) return true;
  i = 0;
  while (!(V::W <= count - i && ::sumexp::SUMEXP_NS::count(equal(V::load(x + i), V(m)))) && i + V::W <= count) i += V::W;
  T at;
  for (;; ++i) {
    memcpy(&at, x + i, sizeof(T));
    if (at == m) break;
  }
  *place = i;
  return true;
}

template <class V>
int keep(const void* from, int count, double cut, int last_tied, void* at) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(from);
  T* const to = static_cast<T*>(at);
  const V bound = V(static_cast<T>(cut)), out = V(-Limits<T>::infinity);
  const int tied = last_tied < 0 ? 0 : last_tied < count ? last_tied : count;
  int kept = 0;
  each_vector<V>(tied, [&](int i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, Limits<T>::nan());
    const auto in = at_or_above(v, bound);
    kept += ::sumexp::SUMEXP_NS::count(in);
    memory.store(to + i, pick(in, v, out));
  });
  each_vector<V>(count - tied, [&](int i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + tied + i, -Limits<T>::infinity);
    const auto cut_off = at_or_above(bound, v);
    kept += V::W - ::sumexp::SUMEXP_NS::count(cut_off);
    memory.store(to + tied + i, pick(cut_off, out, v));
  });
  return kept;
}

// The elements of a chunk that are kept, next to each other, and where they were; room for a vector behind them.
template <class T>
struct Kept {
  static constexpr int kRoom = Geometry<T>::kChunk + 16;
  T x[kRoom], place[kRoom];
  int count = 0;
};
template <class V, class T = ElementOf<V>>
SUMEXP_FN void collect(const T* x, int count, T cut, int last_tied, Kept<T>& kept) {
  T lane[V::W];
  for (int i = 0; i < V::W; ++i) lane[i] = static_cast<T>(i);
  const V bound = V(cut), lanes = V::load(lane);
  const int tied = last_tied < 0 ? 0 : last_tied < count ? last_tied : count;
  int found = 0;
  const auto take = [&](int i, auto mask, V v) SUMEXP_INLINE {
    compress(kept.x + found, mask, v);
    compress(kept.place + found, mask, lanes + V(static_cast<T>(i)));
    found += ::sumexp::SUMEXP_NS::count(mask);
  };
  each_vector<V>(tied, [&](int i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, -Limits<T>::infinity);
    take(i, at_or_above(v, bound), v);
  });
  const V above = V(next_above(cut));
  each_vector<V>(count - tied, [&](int i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + tied + i, -Limits<T>::infinity);
    take(tied + i, at_or_above(v, above), v);
  });
  V::store(kept.x + found, V(-Limits<T>::infinity));
  kept.count = found;
}

// sum_terms of a chunk of which these alone are there: what is absent adds +0. So each lane adds its own, one by one.
template <class V, class T = ElementOf<V>>
Wide<T> sum_kept(const Kept<T>& kept, int columns, const Reduction<T>& reduce, T bound, int& counted) {
  using G = Geometry<T>;
  constexpr int kVectors = G::kGroup / V::W, kSlots = G::kLanes / V::W;
  const Reduction<V> to = {V(reduce.shift), V(reduce.floor)};
  T high[G::kLanes], low[G::kLanes];
  for (int i = 0; i < columns * G::kGroup; i += V::W) V::store(high + i, V(TermSum<T>::kStart)), V::store(low + i, V(T(0)));
  counted = 0;
  for (int i = 0; i < kept.count; i += V::W) {
    const V raw = V::load(kept.x + i);
    ExpParts<V> parts = exp_parts(raw, to);
    const auto out = at_or_above(raw, V(bound));
    counted += ::sumexp::SUMEXP_NS::count(out);
    parts.s = clear(out, parts.s);
    T r[V::W], u[V::W], s[V::W], rounded[V::W];
    V::store(r, parts.r), V::store(u, parts.u), V::store(s, parts.s), V::store(rounded, term(parts));
    const int here = kept.count - i < V::W ? kept.count - i : V::W;
    for (int k = 0; k < here; ++k) {
      const int lane = static_cast<int>(kept.place[i + k]) % G::kLanes;
      TermSum<T>::accumulate(high[lane], low[lane], {r[k], u[k], s[k]}, rounded[k]);
    }
  }
  V slots[kSlots][2], sums[2][kVectors];
  for (int k = 0; k < columns * kVectors; ++k) {
    slots[k][0] = V::load(high + k * V::W) - V(TermSum<T>::kStart);
    slots[k][1] = V::load(low + k * V::W);
  }
  fold_slots(columns, slots, sums);
  return fold_terms(sums);
}

constexpr int kSparse = 8;  // a chunk is, of which so small a part is kept

template <class V>
bool reduce_kept(const void* from, int count, double cut, int last_tied, void* to) {
  using T = ElementOf<V>;
  Kept<T> kept;
  collect<V>(static_cast<const T*>(from), count, static_cast<T>(cut), last_tied, kept);
  ExpState<T>& state = as<ExpState<T>>(to);
  state = ExpState<T>::empty();
  if (kept.count == 0) return true;
  if (kept.count > count / kSparse) return false;
  state.m = largest(lane_max<V>(kept.x, kept.count));
  const Base<T> base = base_of(state.m);
  if (base.anchor != T(0)) return false;
  state.N = base.N;
  const int columns = column_count<T>(count);
  int counted;
  state.R = sum_kept<V>(kept, columns, base.reduce, state.m, counted);
  state.c = WideOf<T>::constant(counted);
  if (!needs_refinement(state)) return true;
  const T next = largest(lane_max_below<V>(kept.x, kept.count, state.m));
  const Base<T> lower = base_of(next);
  if (lower.anchor != T(0)) return false;
  state.R =
      shifted<T>(sum_kept<V>(kept, columns, lower.reduce, state.m, counted), exponent_gap(next, lower.N, state.m, base.N));
  return true;
}

void gumbel(const double* v, const double* w, std::int64_t count, double* noise) {
  each_vector<F64>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    memory.store(noise + i, gumbel_of(memory.template load<F64>(v + i, 0.5), memory.template load<F64>(w + i, 0.5)));
  });
}

// Step by step, all rows: a walk alone waits for a division and for bits at every step.
void inside(const cpu::RowKey* keys, const double* trees, int rows, int leaves, int* places) {
  const auto random = [&](int k) { return RowRandom{keys[k].seed, keys[k].stream}; };
  std::uint64_t bits[2][cpu::kTogether];
  for (int k = 0; k < rows; ++k) places[k] = 0;
  bool undecided = false;
  for (int h = 1, step = 0; h < leaves; h *= 2, ++step) {
    if (step % 2 == 0) {
      for (int k = 0; k < rows; ++k) {
        const Bits128 block = random(k).at(Purpose::draw, 0, static_cast<std::uint64_t>(step / 2));
        bits[0][k] = block.half(0), bits[1][k] = block.half(1);
      }
    }
    for (int k = 0; k < rows; ++k) {
      const double* const left = trees + 2 * leaves * k + 2 * h + places[k];
      const Branch b = branch(left[0], left[h]);
      const auto first = static_cast<std::int64_t>(bits[step % 2][k] >> 1), upper = static_cast<std::int64_t>(b.p * 0x1p63);
      undecided |= first == upper;
      places[k] += ((first < upper) != b.left_is_smaller) * h;
    }
  }
  for (int k = 0; k < rows && undecided; ++k) places[k] = Walk(random(k), 0).inside(trees + 2 * leaves * k, leaves);
}

template <class V>
constexpr cpu::SamplingKernels::Of kernels_of() {
  using T = ElementOf<V>;
  return {sizeof(ExpState<T>), reduce<V>, grow<T>, regrow<T>, terms<V>, find_largest<V>, keep<V>, reduce_kept<V>};
}

const cpu::SamplingKernels kSampling = {{kernels_of<F32>(), kernels_of<F64>()}, inside, gumbel};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(SamplingKernels, sampling_kernels_, SUMEXP_NS::kSampling)
