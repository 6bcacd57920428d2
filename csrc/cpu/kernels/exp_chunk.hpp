// Sums of exponentials of one chunk: the reductions under every op on logits. Each is a function of its own, compiled once an
// instruction set (exp_chunk.cpp) and shared by all ops.
#pragma once

#include "../../numerics/state.hpp"
#include "lanes.hpp"
#include "overlap.hpp"

namespace sumexp::SUMEXP_NS {

// The largest element is the largest of these lanes; -inf for none. NaN are passed over.
template <class V, class E>
SUMEXP_FN V lane_max(const E* x, int count) {
  using T = ElementOf<V>;
  if (count <= V::W) {
    const V x0 = count == V::W ? V::load(x) : Part{count}.load<V>(x, -Limits<T>::infinity);
    return larger(x0, V(-Limits<T>::infinity));
  }
  V best[4] = {V(-Limits<T>::infinity), V(-Limits<T>::infinity), V(-Limits<T>::infinity), V(-Limits<T>::infinity)};
  int i = 0;
  for (; i + 4 * V::W <= count; i += 4 * V::W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) best[u] = larger(V::load(x + i + u * V::W), best[u]);
  for (; i + V::W <= count; i += V::W) best[0] = larger(V::load(x + i), best[0]);
  if (i < count) best[1] = larger(Part{count - i}.load<V>(x + i, -Limits<T>::infinity), best[1]);
  return larger(larger(best[0], best[1]), larger(best[2], best[3]));
}

// The largest element below `limit` is the largest of these lanes; -inf for none.
template <class V, class E>
SUMEXP_FN V lane_max_below(const E* x, int count, ElementOf<V> limit) {
  using T = ElementOf<V>;
  const V lowest = V(-Limits<T>::infinity), bound = V(limit);
  V best = lowest;
  each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, -Limits<T>::infinity);
    best = larger(pick(at_or_above(v, bound), lowest, v), best);
  });
  return best;
}

// What the memory does while a chunk is summed: elements to the next chunk, or row, which is prefetched, and other work.
template <class V, bool kStore>
struct Meanwhile {
  std::int64_t ahead = 0;
  OverlapOf<V, kStore>* overlap = nullptr;
};
// The next chunk comes into the first cache, what is behind it into the second; a share at a time (lane_reduce). Before and
// after, ns per float of 4096 rows of 32,000 (Zen 5, 2026-11): logsumexp, one thread, 0.234, 0.190; softmax 0.336, 0.295.
template <int kChunk>
struct WithinRow {
  static constexpr bool kFewApart = true;
  std::int64_t near, far;

  explicit WithinRow(std::int64_t ahead) {
    const bool longer = ahead > kChunk || ahead < -kChunk;
    near = longer ? kChunk : ahead;
    far = longer && (ahead >= 2 * kChunk || ahead < 0) ? ahead : 2 * near;
  }
  template <class E>
  SUMEXP_FN void at_vector(const E*, int) const {}
  template <class E>
  SUMEXP_FN void at_share(const E* x, int elements) const {
    constexpr int kLine = 64 / sizeof(E);  // elements of a cache line
    if (near)
      for (int i = 0; i < elements; i += kLine) {
        __builtin_prefetch(x + i + near, 0, 3);
        __builtin_prefetch(x + i + far, 0, 2);
      }
  }
};
// ... and another row is written. Its pages are touched two chunks before. All goes by vectors, so that the way to memory is
// never idle, nor full: a share at a time, cross-entropy with its gradient took 0.38 ns per float of 4096 rows of 32,000, by
// vectors 0.28 (one thread, Zen 5, AVX-512, 2026-11).
template <class V, bool kStore, int kChunk>
struct WithWork : WithinRow<kChunk> {
  using T = ElementOf<V>;
  const OverlapOf<V, kStore> row;
  const std::decay_t<decltype(row.value)> value;  // in registers

  explicit WithWork(const Meanwhile<V, kStore>& m) : WithinRow<kChunk>(m.ahead), row(*m.overlap), value(row.value) {
    m.overlap->written = true;
    for (int i = 0; i < row.count; i += 4096 / int(sizeof(T))) __builtin_prefetch(row.to + 2 * kChunk + i, 0, 2);
  }
  SUMEXP_FN void at_vector(const T* x, int i) const {
    if (i % (64 / int(sizeof(T))) == 0) {
      __builtin_prefetch(x + i + this->near, 0, 3);
      __builtin_prefetch(x + i + this->far, 0, 2);
      __builtin_prefetch(row.from + i + 512, 0, 3);
    }
    constexpr int kVectors = 64 / sizeof(T) / V::W;  // of a cache line, written together
    if ((i / V::W + 1) % kVectors != 0) return;
    i += V::W - kVectors * V::W + row.skew;
    if (i + kVectors * V::W > row.count) return;
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k, i += V::W) V::stream(row.to + i, value.common(V::load(row.from + i)));
  }
  template <class E>
  SUMEXP_FN void at_share(const E*, int) const {}
};
// Of rows that are short (a lane has one element at most, or they go as panels), and of the portable variant.
struct ToNextRow {
  static constexpr bool kFewApart = false;
  std::int64_t ahead;
  template <class E>
  SUMEXP_FN void at_vector(const E* x, int i) const {
    __builtin_prefetch(x + i + ahead, 0, 2);
  }
  template <class E>
  SUMEXP_FN void at_share(const E*, int) const {}
};

// The terms of a chunk, summed to one group of lanes, as Terms has it (hi in sums[0], lo in sums[1]). kApart: elements
// from `bound` up are counted in `counted` instead. kStore: terms, theirs too, are written to `terms`, which may be x. While
// the arithmetic runs, the memory does what is to be done meanwhile.
template <class Terms, class V, bool kApart, bool kStore, class E, class Memory>
SUMEXP_FN void sum_term_lanes(const E* x, int count, const Reduction<V>& reduce, V bound, int& counted, ElementOf<V>* terms,
                              const Memory& meanwhile, V (&sums)[Terms::kSums][Geometry<ElementOf<V>>::kGroup / V::W]) {
  using T = ElementOf<V>;
  int left_out = 0;
  lane_reduce<V, Terms::kSums>(
      count, Terms::template start<T>(), sums,
      [&](auto* acc, int i, auto memory) SUMEXP_INLINE {
        using U = std::remove_pointer_t<decltype(acc)>;  // V, or some of them unrolled
        const U raw = memory.template load<U>(x + i, -Limits<T>::infinity);
        for (int j = 0; j < U::W; j += V::W) meanwhile.at_vector(x, i + j);
        const Reduction<U> to = {U(reduce.shift), U(reduce.floor)};
        auto e = Terms::parts(raw, to);
        U term = Terms::term(e);
        if constexpr (kStore) memory.store(terms + i, term);
        if constexpr (kApart) {
          const auto out = at_or_above(raw, U(bound));
          if (!Memory::kFewApart || __builtin_expect(any(out), false)) {
            left_out += ::sumexp::SUMEXP_NS::count(out);
            e.s = clear(out, e.s);
            term = Terms::term(e);
          }
        }
        Terms::add(acc, e, term);
      },
      [&](int first, int elements) SUMEXP_INLINE { meanwhile.at_share(x + first, elements); });
  counted = left_out;
}

// The same, folded to one number: sum of e^x 2^(carry - N), for `reduce` to 2^N.
template <class Terms, class V, bool kApart, bool kStore, class E>
Wide<ElementOf<V>> sum_terms(const E* x, int count, Reduction<ElementOf<V>> reduce, ElementOf<V> bound, int& counted,
                             ElementOf<V>* terms, const Meanwhile<V, kStore>& meanwhile);

// The state of a chunk, its maximum kept out of R (kApart) or in it. kStore: its terms go to `terms`, relative to what
// base_of(maximum) says; `terms` may be x, but not where the maximum is apart, since x may be read again.
template <class Terms, class V, bool kApart, bool kStore, class E>
ExpState<ElementOf<V>> exp_chunk(const E* x, int count, ElementOf<V>* terms, const Meanwhile<V, kStore>& meanwhile = {});

// The terms of a chunk alone: the same instructions on the same input, hence the same bits. `use(i, memory, term)`.
template <class Terms, class V, class E, class Use>
SUMEXP_FN void each_term(const E* x, int count, ElementOf<V> maximum, Use use) {
  using T = ElementOf<V>;
  const Base<T> base = base_of(is_finite(maximum) ? maximum : T(0));  // a chunk of -inf alone has zero terms
  const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
  const V anchor = V(base.anchor);
  each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
    use(i, memory, Terms::term(Terms::parts(memory.template load<V>(x + i, T(0)) - anchor, reduce)));
  });
}

}  // namespace sumexp::SUMEXP_NS
