// One row of cross-entropy, whatever its terms are: what it is made of, chunk by chunk, the sums that it has beside those of
// the exponentials, and what it gives once it is summed. For losses.cpp.
#pragma once

#include "../../numerics/tanh.hpp"
#include "../../ops/losses.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"
#include "losses.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

template <class V>
constexpr int kGroupVectors = Geometry<ElementOf<V>>::kGroup / V::W;

template <class V>
SUMEXP_FN WideMembers<V> members_of(const Wide<V> (&lanes)[kGroupVectors<V>]) {
  constexpr int each = V::W / F64::W;
  WideMembers<V> member[each * kGroupVectors<V>];
  for (int u = 0; u < kGroupVectors<V>; ++u) put_members(lanes[u], member + each * u);
  return fold_vectors(member);
}
template <class V>
Wide<ElementOf<V>> fold_wide(const Wide<V> (&lanes)[kGroupVectors<V>]) {
  return fold_halves<F64::W / 2>(members_of<V>(lanes));
}

// Calls body(u, i, memory) for the vectors of a chunk, u the place in a group of lanes: element i belongs to lane i mod kGroup.
template <class V, class Body>
SUMEXP_FN void each_in_group(int count, Body body) {
  constexpr int kGroup = Geometry<ElementOf<V>>::kGroup, kVectors = kGroupVectors<V>;
  int i = 0;
  for (; i + kGroup <= count; i += kGroup)
#pragma GCC unroll 16
    for (int u = 0; u < kVectors; ++u) body(u, i + u * V::W, Whole{});
  for (int u = 0; u < kVectors; ++u, i += V::W) {
    if (i + V::W <= count) body(u, i, Whole{});
    else if (i < count) body(u, i, Part{count - i});
  }
}

// Those of a dense sum; b null: ones, which have no weight here.
template <class V>
struct DenseLanes {
  Wide<V> distance[kGroupVectors<V>], weight[kGroupVectors<V>];
  bool lost;
};
template <class V, bool kOnes>
SUMEXP_FN DenseLanes<V> dense_lanes(const ElementOf<V>* z, const ElementOf<V>* b, int count, ElementOf<V> maximum) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  const V m = V(is_finite(maximum) ? maximum : T(0)), zero = V(T(0));
  DenseLanes<V> to;
  for (int u = 0; u < kGroupVectors<V>; ++u) to.distance[u] = to.weight[u] = O::from(zero);
  bool gone = false;
  V lost = zero;
  each_in_group<V>(count, [&](int u, int i, auto memory) SUMEXP_INLINE {
    const V x = memory.template load<V>(z + i, is_finite(maximum) ? maximum : T(0));
    const auto infinite = equal(x, V(-Limits<T>::infinity));
    const Wide<V> d = distance_below(m, x);
    gone |= any(infinite);
    if constexpr (kOnes) {
      to.distance[u] = to.distance[u] + d;
    } else {
      const V w = memory.template load<V>(b + i, T(0));
      lost = larger(pick(infinite, larger(w, zero - w), zero), lost);
      to.distance[u] = to.distance[u] + d * O::from(w);
      to.weight[u] = to.weight[u] + O::from(w);
    }
  });
  to.lost = gone && (kOnes || largest(lost) > T(0));
  return to;
}
template <class V, bool kOnes>
DenseSum<ElementOf<V>> dense_sum(const ElementOf<V>* z, const ElementOf<V>* b, int count, ElementOf<V> maximum) {
  const DenseLanes<V> lanes = dense_lanes<V, kOnes>(z, b, count, maximum);
  const auto weight = kOnes ? WideOf<ElementOf<V>>::constant(count) : fold_wide<V>(lanes.weight);
  return {fold_wide<V>(lanes.distance), weight, lanes.lost};
}

// sum of t_j (m - z_j), t the chunk's terms
template <class V>
Wide<ElementOf<V>> spread_of(const ElementOf<V>* z, const ElementOf<V>* terms, int count, ElementOf<V> maximum) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  const V zero = V(T(0));
  Wide<V> sums[kGroupVectors<V>];
  for (Wide<V>& sum : sums) sum = O::from(zero);
  each_in_group<V>(count, [&](int u, int i, auto memory) SUMEXP_INLINE {
    const V t = memory.template load<V>(terms + i, T(0));
    sums[u] = sums[u] + spread_part(t, V(maximum), memory.template load<V>(z + i, T(0)));
  });
  return fold_wide<V>(sums) * anchor_factor(base_of(maximum));
}

template <class V>
struct LossRowOf {
  using T = ElementOf<V>;
  using State = LossState<T>;
  using Gradient = LossGradient<T>;
  static constexpr int kChunk = Geometry<T>::kChunk;

  const cpu::LossJob& job;
  cpu::LossScratch& scratch;
  const cpu::LossRow* row;
  const std::int64_t n = job.plan->n;
  const LossOptions options = {
      n, job.smoothing, job.z_loss, job.temperature, job.target_moves != nullptr, job.weight != nullptr};
  const bool probabilities = options.probabilities, mixed = options.mixed(), has_dense = options.has_dense();
  const bool changes_logits = job.softcap != 0.0 || job.temperature != 1.0;
  T* maxima = static_cast<T*>(scratch.maxima[scratch.row]);  // of the chunks

  LossRowOf(const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow* row)
      : job(job), scratch(scratch), row(row) {}

  int count_of(std::int64_t first) const { return static_cast<int>(n - first < kChunk ? n - first : kChunk); }
  T weight_of(std::int64_t j) const { return job.weight ? static_cast<const T*>(job.weight)[j] : T(1); }

  // -- what a row is made of, chunk by chunk ---------------------------------------------------------------

  mutable bool overflows = false;  // a quotient by the temperature
  LossTop<T> top = {false, -Limits<T>::infinity, job.temperature};

  // z in place of x; slopes, if any: dz/dx without the temperature
  void scale_logits(T* x, int count, T* slopes) const {
    cap_logits(x, count, slopes);
    if (top.apart) job.moves->divide_apart(job.temperature, &top.top, count, x);
    else if (job.temperature != 1.0 && !job.moves->divide(job.temperature, count, x)) overflows = true;
  }
  void cap_logits(T* x, int count, T* slopes) const {
    if (job.softcap != 0.0) {
      const V cap = V(static_cast<T>(job.softcap));
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        const Tanh<V> t = capped(memory.template load<V>(x + i, T(0)), cap);
        memory.store(x + i, t.value);
        if (slopes) memory.store(slopes + i, t.slope);
      });
    }
  }
  // x, of a row apart
  void undivided(std::int64_t first, int count, T* to) const {
    job.moves->pack_row(*job.plan, cpu::kIn0, row->logits, first, count, to);
    cap_logits(to, count, nullptr);
  }
  void set_apart() {
    T* const x = static_cast<T*>(scratch.z);
    for (std::int64_t first = 0; first < n; first += kChunk) {
      undivided(first, count_of(first), x);
      job.moves->largest(x, count_of(first), &top.top);
    }
    top.apart = true, z_place = y_place = -1;
  }
  const T* logits(std::int64_t first, int count, T* slopes = nullptr) const {
    if (job.in_place) return reinterpret_cast<const T*>(row->logits) + first;
    T* const z = static_cast<T*>(scratch.z);
    job.moves->pack_row(*job.plan, cpu::kIn0, row->logits, first, count, z);
    if (changes_logits) scale_logits(z, count, slopes);
    return z;
  }
  T logit(std::int64_t j) const {
    if (job.in_place) return reinterpret_cast<const T*>(row->logits)[j];
    T z;
    job.moves->pack_row(*job.plan, cpu::kIn0, row->logits, j, 1, &z);
    if (changes_logits) scale_logits(&z, 1, nullptr);
    return z;
  }
  // The target's probabilities.
  const T* target(std::int64_t first, int count) const {
    if (job.target_in_place) return reinterpret_cast<const T*>(row->probabilities) + first;
    T* const y = static_cast<T*>(scratch.dense);
    if (job.target_wide == sizeof(T)) {
      job.target_moves->pack_row(*job.plan, cpu::kIn1, row->probabilities, first, count, y);
      return y;
    }
    std::conditional_t<sizeof(T) == 4, double, float> other[64];
    for (int i = 0; i < count; i += 64) {
      const int some = count - i < 64 ? count - i : 64;
      job.target_moves->pack_row(*job.plan, cpu::kIn1, row->probabilities, first + i, some, other);
      for (int j = 0; j < some; ++j) y[i + j] = static_cast<T>(other[j]);
    }
    return y;
  }
  // Weights of the classes in the loss, over dense_scale; null: ones.
  const T* dense(std::int64_t first, int count, const T* y) const {
    const T* const w = job.weight ? static_cast<const T*>(job.weight) + first : nullptr;
    if (!probabilities || !mixed) return probabilities ? y : w;
    T* const a = static_cast<T*>(scratch.dense);  // where y is, too, if not in place
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      const V smooth = options.smoothed(memory.template load<V>(y + i, T(0)));
      memory.store(a + i, w ? smooth * memory.template load<V>(w + i, T(0)) : smooth);
    });
    return a;
  }

  // -- chunks merge, by functions that all terms share ------------------------------------------------------------------

  template <class Sum>
  __attribute__((noinline)) static void push(MergeTree<Sum>& tree, const Sum& sum) {
    tree.push(sum);
  }
  template <class Sum>
  __attribute__((noinline)) static void finish(const MergeTree<Sum>& tree, Sum& last) {
    last = tree.finish(last);
  }

  // -- beside the exponentials -----------------------------------------------------------------------------------

  T best_z = T(0), best_y = T(0);
  std::int64_t z_place = -1, y_place = -1;

  static void find_largest(const T* x, int count, std::int64_t first, T& best, std::int64_t& place) {
    T top = -Limits<T>::infinity;
    for (int i = 0; i < count; ++i) top = x[i] > top ? x[i] : top;
    if (place >= 0 && !(top > best)) return;
    int i = 0;
    while (i < count - 1 && x[i] != top) ++i;
    best = top, place = first + i;
  }

  void find_class(std::int64_t c, const T* z, int count) {
    if (!job.finds_class || (z_place >= 0 && !(maxima[c] > best_z))) return;
    int i = 0;
    while (i < count - 1 && z[i] != maxima[c]) ++i;
    best_z = maxima[c], z_place = c * kChunk + i;
  }
  // What a state has beside the sum of the exponentials, of a chunk from `first` on.
  void add_sums(std::int64_t first, int count, const T* z, const T* terms, State& state) {
    const T m = state.sum.m;
    if (row->entropy && is_finite(m)) state.spread = spread_of<V>(z, terms, count, m);
    if (has_dense) {
      const T* const y = probabilities ? target(first, count) : nullptr;
      const T *x = z, from = top.apart ? top.top : m;
      if (top.apart) undivided(first, count, static_cast<T*>(scratch.out)), x = static_cast<T*>(scratch.out);
      if (mixed && row->log_prob) state.plain = dense_sum<V, false>(x, y, count, from);
      if (probabilities && row->correct) find_largest(y, count, first, best_y, y_place);
      const T* const b = dense(first, count, y);
      state.dense = b ? dense_sum<V, false>(x, b, count, from) : dense_sum<V, true>(x, b, count, from);
    }
  }

  // -- the finished row --------------------------------------------------------------------------------------

  static void put(void* to, T value) {
    if (to) *static_cast<T*>(to) = value;
  }
  LossPart<T> part(std::int64_t k) const {
    const cpu::TargetPart& part = row->parts[k];
    return {part.index, part.weight, static_cast<double>(weight_of(part.index)), T(0)};
  }
  void put_class(bool nan) const {
    if (row->predicted) *row->predicted = nan ? -1 : z_place;
    if (!row->correct) return;
    const auto each_pair = [&](const auto& body) {
      for (std::int64_t k = 0; k < row->part_count; ++k) body(row->parts[k].index, row->parts[k].weight);
    };
    const std::int64_t right = probabilities ? y_place : largest_class(each_pair);
    *row->correct = !nan && z_place >= 0 && z_place == right;
  }
  __attribute__((noinline)) Gradient finish(const State& state, const LoggedSum<T>* known = nullptr) const {
    const auto each_part = [&](auto body) SUMEXP_INLINE {
      for (std::int64_t k = 0; k < row->part_count; ++k) {
        LossPart<T> of_row = part(k);
        of_row.z = logit(of_row.index);
        if (top.apart) {
          T x;
          undivided(of_row.index, 1, &x);
          of_row.below = top.below(x);
        }
        body(of_row);
      }
    };
    const LossResult<T> result = finish_loss(options, state, row->part_count, each_part, row->loss_factor, row->gradient_factor,
                                             row->entropy != nullptr, row->gradient || row->saved, top, known);
    put(row->loss, result.loss), put(row->lse, result.lse), put(row->log_prob, result.log_prob);
    put(row->entropy, result.entropy), put(row->z_loss, result.z_loss);
    put_class(is_nan(state.sum.R));
    return result.gradient;
  }

  void put_nan(std::int64_t first, int count) const {
    T* const out = static_cast<T*>(scratch.out);
    fill_chunk<V>(out, count, Limits<T>::nan());
    job.moves->unpack_row(*job.plan, cpu::kOut, row->gradient, first, count, out);
  }
};

}  // namespace
}  // namespace sumexp::SUMEXP_NS
