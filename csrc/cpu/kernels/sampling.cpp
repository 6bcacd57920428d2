#include SUMEXP_SIMD
//
#include "sampling.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::RowKind;
using cpu::RowRoot;
using cpu::SumNode;

template <class T>
SumNode node_of(const ExpState<T>& state) {
  return {static_cast<double>(state.m), head(total(state)), state.N};
}

template <class T>
RowRoot root_of(const ExpState<T>& state) {
  RowRoot root = {RowKind::finite, static_cast<double>(state.m), 0};
  if (is_nan(state.R)) root.kind = RowKind::nan;
  else if (!is_finite(state.m)) root.kind = state.m > T(0) ? RowKind::infinite : RowKind::nothing;
  else root.over_m = head(log_over_max(state));
  return root;
}

// Levels as cpu::tree_nodes counts them: the tree of MergeTree (numerics/geometry.hpp). An odd node at the end goes up as it
// is.
template <class T>
RowRoot grow(void* all, std::int64_t chunks, SumNode* nodes) {
  auto* below = static_cast<ExpState<T>*>(all);
  for (std::int64_t c = 0; c < chunks; ++c) nodes[c] = node_of(below[c]);
  for (std::int64_t count = chunks; count > 1;) {
    ExpState<T>* const level = below + count;
    nodes += count;
    const std::int64_t above = (count + 1) / 2;
    for (std::int64_t i = 0; i < above; ++i) {
      level[i] = 2 * i + 1 < count ? merge(below[2 * i], below[2 * i + 1]) : below[2 * i];
      nodes[i] = node_of(level[i]);
    }
    below = level, count = above;
  }
  return root_of(*below);
}

template <class T>
RowRoot regrow(void* all, std::int64_t chunks, SumNode* nodes, std::int64_t c) {
  auto* below = static_cast<ExpState<T>*>(all);
  nodes[c] = node_of(below[c]);
  for (std::int64_t count = chunks; count > 1;) {
    ExpState<T>* const level = below + count;
    nodes += count;
    c /= 2;
    level[c] = 2 * c + 1 < count ? merge(below[2 * c], below[2 * c + 1]) : below[2 * c];
    nodes[c] = node_of(level[c]);
    below = level, count = (count + 1) / 2;
  }
  return root_of(*below);
}

template <class V>
void reduce(const void* x, int count, void* state) {
  using T = ElementOf<V>;
  as<ExpState<T>>(state) =
      exp_chunk<FullTerms, V, true, false>(static_cast<const T*>(x), count, static_cast<T*>(nullptr), Geometry<T>::kChunk);
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

// Of floats as of doubles: e^(x - m) in double, down to e^-916 of the chunk's largest.
template <class V>
void terms(const void* from, int count, double* tree) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(from);
  double wide[Geometry<T>::kChunk];
  const T m = largest(lane_max<V>(x, count));
  const int leaves = cpu::leaves_of(count);
  double* const leaf = tree + leaves;
  each_term<FullTerms, F64>(widened(x, count, wide), count, static_cast<double>(m),
                            [&](int i, auto memory, F64 term) SUMEXP_INLINE { memory.store(leaf + i, term); });
  for (int i = count; i < leaves; ++i) leaf[i] = 0;
  int h = leaves / 2;
  for (; h >= F64::W; h /= 2)
    for (int i = 0; i < h; i += F64::W) F64::store(tree + h + i, F64::load(tree + 2 * h + i) + F64::load(tree + 3 * h + i));
  for (; h > 0; h /= 2)
    for (int i = 0; i < h; ++i) tree[h + i] = tree[2 * h + i] + tree[3 * h + i];
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

// log of a positive normal number, by the series of numerics/log.hpp
SUMEXP_FN F64 log_of(F64 x) {
  F64 k;
  const F64 m = exponent_split(x, k);
  using C = LogConstants;
  return fma(k, F64(C::ln2_hi), log1p_narrow(m - F64(1.0)) + k * F64(C::ln2_lo));
}

void gumbel(const double* v, const double* w, std::int64_t count, double* noise) {
  const F64 zero = F64(0.0);
  each_vector<F64>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    const F64 low = memory.template load<F64>(v + i, 0.5), high = memory.template load<F64>(w + i, 0.5);
    const auto near_zero = at_or_above(F64(0.5), low);
    const F64 e = zero - pick(near_zero, log1p_narrow(zero - pick(near_zero, low, F64(0.5))), log_of(high));
    memory.store(noise + i, zero - log_of(e));
  });
}

template <class V>
constexpr cpu::SamplingKernels::Of kernels_of() {
  using T = ElementOf<V>;
  return {sizeof(ExpState<T>), reduce<V>, grow<T>, regrow<T>, terms<V>, find_largest<V>, keep<V>};
}

const cpu::SamplingKernels kSampling = {{kernels_of<F32>(), kernels_of<F64>()}, gumbel};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(SamplingKernels, sampling_kernels_, SUMEXP_NS::kSampling)
