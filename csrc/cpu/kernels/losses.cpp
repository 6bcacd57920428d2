#include SUMEXP_SIMD
//
#include "losses.hpp"

#include "../../numerics/tanh.hpp"
#include "../../ops/losses.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"
#if SUMEXP_REGISTERS
#include "panel.hpp"
#endif

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

// What depends on how logits and gradients are stored.
template <class V>
struct Storage {
  using T = ElementOf<V>;

  bool (*panel_states)(const cpu::Panel& panel, void* states);  // null: rows go one by one
  // factor p of each term, to the caller's memory; null: not in one step
  void (*put_probabilities)(void* to, int count, bool stream, const T* terms, const TermScale<V>& scale, T factor);
};
template <class V, class Terms, class S>
constexpr Storage<V> storage() {
  using T = ElementOf<V>;
  Storage<V> of = {};
#if SUMEXP_REGISTERS
  of.panel_states = [](const cpu::Panel& panel, void* states) {
    return panel_states<Terms, V, true, true, S>(&panel, 1, static_cast<TileState<V>*>(states));
  };
#endif
  if constexpr (std::is_same_v<S, T> || V::kRegister)
    of.put_probabilities = [](void* to, int count, bool stream, const T* terms, const TermScale<V>& scale, T factor) {
      const V all = V(factor);
      store_chunk<V>(static_cast<S*>(to), count, stream, [&](int i, auto memory) SUMEXP_INLINE {
        return all * probability<Terms>(memory.template load<V>(terms + i, T(0)), scale);
      });
    };
  return of;
}

// Terms: FullTerms of logits that are stored as T, ShortTerms of 16 bits.
template <class V, class Terms>
struct LossKernel {
  using T = ElementOf<V>;
  using State = LossState<T>;
  using Gradient = LossGradient<T>;
  static constexpr int kChunk = Geometry<T>::kChunk;
  static constexpr bool kOverlaps = V::kRegister && sizeof(T) == 4 && !Terms::kShort;

  const Storage<V>& storage;
  const cpu::LossJob& job;
  cpu::LossScratch& scratch;
  const cpu::LossRow* row;
  const std::int64_t n = job.plan->n;
  const LossOptions options = {
      n, job.smoothing, job.z_loss, job.temperature, job.target_moves != nullptr, job.weight != nullptr};
  const bool probabilities = options.probabilities, mixed = options.mixed(), has_dense = options.has_dense();
  const bool changes_logits = job.softcap != 0.0 || job.temperature != 1.0;
  T* maxima = static_cast<T*>(scratch.maxima[scratch.row]);  // of the chunks

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
  // x times kScale, of a row apart.
  void undivided(std::int64_t first, int count, T* to) const {
    job.moves->pack_row(*job.plan, cpu::kIn0, row->logits, first, count, to);
    cap_logits(to, count, nullptr);
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      memory.store(to + i, memory.template load<V>(to + i, T(0)) * V(static_cast<T>(LossTop<T>::kScale)));
    });
  }
  void set_apart() {
    T* const x = static_cast<T*>(scratch.z);
    for (std::int64_t first = 0; first < n; first += kChunk) {
      job.moves->pack_row(*job.plan, cpu::kIn0, row->logits, first, count_of(first), x);
      cap_logits(x, count_of(first), nullptr);
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

  // -- first sweep -------------------------------------------------------------------------------------------

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

  // Of chunk c: the sum of its exponentials, and with it what else the loss has (State).
  ExpState<T> sum_chunk(std::int64_t c, const T* z, int count, T* terms, OverlapOf<V, true>* overlap) {
    const ExpState<T> sum = terms ? exp_chunk<Terms, V, true, true>(z, count, terms, {job.ahead, overlap})
                                  : exp_chunk<Terms, V, true, false>(z, count, static_cast<T*>(nullptr), {job.ahead});
    maxima[c] = sum.m;
    find_class(c, z, count);
    return sum;
  }
  void find_class(std::int64_t c, const T* z, int count) {
    if (!job.finds_class || (z_place >= 0 && !(maxima[c] > best_z))) return;
    int i = 0;
    while (i < count - 1 && z[i] != maxima[c]) ++i;
    best_z = maxima[c], z_place = c * kChunk + i;
  }
  void reduce(std::int64_t c, T* terms, OverlapOf<V, true>* overlap, ExpState<T>& sum) {
    const int count = count_of(c * kChunk);
    sum = sum_chunk(c, logits(c * kChunk, count), count, terms, overlap);
  }
  void reduce(std::int64_t c, T* terms, OverlapOf<V, true>* overlap, State& state) {
    const std::int64_t first = c * kChunk;
    const int count = count_of(first);
    const T* const z = logits(first, count);
    state = State::empty(top.apart);
    if (row->entropy && !terms) terms = static_cast<T*>(scratch.terms);
    state.sum = sum_chunk(c, z, count, terms, overlap);
    add_sums(first, count, z, terms, state);
  }
  // What a state has beside the sum of the exponentials, of a chunk from `first` on.
  void add_sums(std::int64_t first, int count, const T* z, const T* terms, State& state) {
    const T m = state.sum.m;
    if (row->entropy && is_finite(m)) state.spread = spread_of<V>(z, terms, count, m);
    if (has_dense) {
      const T* const y = probabilities ? target(first, count) : nullptr;
      const T *x = z, from = top.apart ? static_cast<T>(top.scaled()) : m;
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

  // -- second sweep --------------------------------------------------------------------------------------------

  const T* terms_of(std::int64_t c, std::int64_t first, int count, const T* kept, T* slopes) const {
    const T m = maxima[c];
    if (kept) {
      if (slopes) logits(first, count, slopes);
      return kept + first;
    }
    T* const terms = static_cast<T*>(scratch.terms);
    each_term<Terms, V>(logits(first, count, slopes), count, m,
                        [&](int i, auto memory, V term) SUMEXP_INLINE { memory.store(terms + i, term); });
    return terms;
  }
  void map_all(const Normalizer<T>& normalizer, const Gradient& gradient, const T* kept) const {
    const std::int64_t end = job.first_class + job.classes;
    for (std::int64_t first = job.first_class, stop; first < end; first = stop) {
      const std::int64_t c = first / kChunk;
      stop = (c + 1) * kChunk < end ? (c + 1) * kChunk : end;
      map(c, first, static_cast<int>(stop - first), normalizer, gradient, kept);
    }
  }
  // Of classes of chunk c.
  void map(std::int64_t c, std::int64_t first, int count, const Normalizer<T>& normalizer, const Gradient& gradient,
           const T* kept) const {
    T* const slopes = job.softcap != 0.0 ? static_cast<T*>(scratch.slopes) : nullptr;
    if (gradient.nan) return put_nan(first, count);
    const T* terms = terms_of(c, first, count, kept, slopes);
    const TermScale<V> scale = scale_of(c, count, normalizer, terms);
    put(first, count, terms, scale, gradient, slopes);
  }
  void put_nan(std::int64_t first, int count) const {
    T* const out = static_cast<T*>(scratch.out);
    fill_chunk<V>(out, count, Limits<T>::nan());
    job.moves->unpack_row(*job.plan, cpu::kOut, row->gradient, first, count, out);
  }
  // Of classes from `first` on, of one chunk, from their terms.
  void put(std::int64_t first, int count, const T* terms, const TermScale<V>& scale, const Gradient& gradient,
           const T* slopes) const {
    const bool direct = job.stores && job.item == sizeof(T);
    T* const out = direct ? reinterpret_cast<T*>(row->gradient) + first : static_cast<T*>(scratch.out);
    const V all = V(gradient.scale);
    const bool bounded = is_finite(gradient.scale);
    if (writes_probabilities(gradient)) {
      char* const to = row->gradient + first * job.item;
      storage.put_probabilities(to, count, job.stream, terms, scale, gradient.scale);
      return write_target(first, count, gradient);
    }
    if (has_dense) {
      const T* const b = dense(first, count, probabilities ? target(first, count) : nullptr);
      const V minus = V(T(0) - gradient.dense), one = V(T(1));
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        const V p = probability<Terms>(memory.template load<V>(terms + i, T(0)), scale);
        const V weight = b ? memory.template load<V>(b + i, T(0)) : one;
        memory.store(out + i,
                     bounded ? dense_gradient(p, all, weight, minus) : times_unbounded(p, gradient.scale) + weight * minus);
      });
    } else if (bounded) {
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        memory.store(out + i, all * probability<Terms>(memory.template load<V>(terms + i, T(0)), scale));
      });
    } else {
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        const V p = probability<Terms>(memory.template load<V>(terms + i, T(0)), scale);
        memory.store(out + i, times_unbounded(p, gradient.scale));
      });
    }
    const double f = gradient.late ? row->gradient_factor : row->gradient_factor / job.temperature;
    for (std::int64_t k = 0; k < row->part_count; ++k)
      if (const std::int64_t i = row->parts[k].index - first; i >= 0 && i < count)
        out[i] = row->part_count == 1 ? gradient.at_target : out[i] - static_cast<T>(part(k).a(options) * f);
    if (slopes)
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        memory.store(out + i, memory.template load<V>(out + i, T(0)) * memory.template load<V>(slopes + i, T(0)));
      });
    if (gradient.late) job.moves->divide(job.temperature, count, out);
    if (!bounded || gradient.late)
      each_vector<V>(count, [&](int i, auto memory)
                                SUMEXP_INLINE { memory.store(out + i, quiet(memory.template load<V>(out + i, T(0)))); });
    if (!direct) job.moves->unpack_row(*job.plan, cpu::kOut, row->gradient, first, count, out);
  }

  // What probability() takes of a chunk beside its terms, which are others where the chunk is far below the row's maximum.
  SUMEXP_FN TermScale<V> scale_of(std::int64_t c, int count, const Normalizer<T>& normalizer, const T*& terms) const {
    const ChunkScale<T> k = chunk_scale<Terms>(normalizer, maxima[c]);
    if (k.far) {
      T* const far = static_cast<T*>(scratch.terms);
      for (int i = 0; i < count; ++i) far[i] = far_term<Terms>(terms[i], k);
      terms = far;
    }
    return k.template scale<V>();
  }
  // Is the gradient scale p, in the caller's memory as it is, but of the one target?
  bool writes_probabilities(const Gradient& gradient) const {
    return storage.put_probabilities && job.stores && !has_dense && job.softcap == 0.0 && row->part_count == 1 &&
           !gradient.nan && !gradient.late && is_finite(gradient.scale);
  }
  void write_target(std::int64_t first, int count, const Gradient& gradient) const {
    const std::int64_t index = row->parts[0].index;
    if (index < first || index >= first + count) return;
    if (job.item == sizeof(T)) write<T>(row->gradient + index * std::int64_t{sizeof(T)}, gradient.at_target);
    else job.moves->unpack_row(*job.plan, cpu::kOut, row->gradient, index, 1, &gradient.at_target);
  }

  // -- rows one behind the other: a gradient is written while the next row is summed ----------------------------------

  struct Waiting {
    cpu::LossRow row;
    cpu::TargetPart part;
    Normalizer<T> scale;
    Gradient gradient;
    const T* terms;
    T* maxima;
  };
  static_assert(sizeof(Waiting) <= cpu::LossScratch::kWaitingBytes);
  const Waiting& waiting() const { return as<Waiting>(scratch.waiting); }
  // The kernel of the row that waits.
  LossKernel behind() const {
    LossKernel kernel{storage, job, scratch, &waiting().row};
    kernel.maxima = waiting().maxima;
    return kernel;
  }
  void wait(const Normalizer<T>& scale, const Gradient& gradient, const T* kept) const {
    Waiting& to = as<Waiting>(scratch.waiting);
    to = {*row, row->parts[0], scale, gradient, kept, maxima};
    to.row.parts = &to.part;
    scratch.waits = true, scratch.row = 1 - scratch.row;
  }
  // reduce, and the same chunk of the waiting row's gradient.
  void reduce_over(const LossKernel& behind, std::int64_t c, T* terms, ExpState<T>& sum) {
    const std::int64_t first = c * kChunk;
    const int count = count_of(first);
    const Waiting& waiting = behind.waiting();
    const T* kept = waiting.terms + first;
    const TermScale<V> scale = behind.scale_of(c, count, waiting.scale, kept);
    T* const to = reinterpret_cast<T*>(waiting.row.gradient) + first;
    write_while<V>(kept, to, count, OfTerms<V>{scale, V(waiting.gradient.scale)},
                   [&](OverlapOf<V, true>* overlap) { reduce(c, terms, overlap, sum); });
    behind.write_target(first, count, waiting.gradient);
  }
  void write_waiting() const {
    behind().map_all(waiting().scale, waiting().gradient, waiting().terms);
    scratch.waits = false;
  }

#if SUMEXP_REGISTERS
  // -- rows of one chunk, V::W at a time -------------------------------------------------------------------------------

  struct PanelSums {
    T m[V::W], N[V::W];
    Wide<T> c[V::W], R[V::W], rho[V::W], L[V::W];
    T h[V::W], l[V::W], top_term[V::W], top[V::W];

    PanelSums(const TileState<V>& state, const RowSum<V>& sum, Wide<V> log) {
      const TermScale<V> scale = term_scale<Terms, true>(sum, state.N);
      V::store(m, state.m), V::store(N, state.N);
      put_lanes(sum.c, c), put_lanes(sum.R, R), put_lanes(sum.rho, rho), put_lanes(log, L);
      V::store(h, scale.h), V::store(l, scale.l), V::store(top_term, scale.top_term), V::store(top, scale.top);
    }
    ExpState<T> state(int b) const { return {m[b], static_cast<std::int64_t>(N[b]), c[b], R[b]}; }
    LoggedSum<T> logged(int b) const { return {{m[b], c[b], R[b], rho[b]}, L[b]}; }
    TermScale<V> scale(int b) const { return {V(h[b]), V(l[b]), V(top_term[b]), V(top[b])}; }
  };
  // Rows with probabilities or one target each, of which nothing but loss and gradient is asked, have the rest of finish_loss
  // in vectors.
  struct PanelSingles {
    using Groups = typename PanelRows<V, T, 1, int>::Groups;
    T z[V::W], loss[V::W], at_target[V::W];
    double a[V::W];  // weight of the target
    Wide<T> of_target[V::W], own[V::W], minus_share[V::W], factor[V::W], scale[V::W], all[V::W];
    Groups distances, weights;  // of a dense sum
    bool lost[V::W];

    static bool serve(const LossKernel& kernel) {
      const cpu::LossRow& row = *kernel.row;
      return kernel.options.z_loss == 0.0 && !row.lse && !row.log_prob && !row.entropy && !row.z_loss && !row.predicted &&
             !row.correct;
    }
    void lay_out(int b, const LossKernel& kernel, T m) {
      using O = WideOf<T>;
      const LossPart<T> part = kernel.single_part();
      a[b] = part.a(kernel.options), z[b] = kernel.probabilities ? m : kernel.logit(part.index);
      if (!kernel.has_dense) return;
      const double share = kernel.options.dense_scale() * part.of_class;
      of_target[b] = O::constant(a[b]), own[b] = O::constant(a[b]) + O::constant(share), minus_share[b] = O::constant(-share);
      factor[b] = O::constant(kernel.row->loss_factor), scale[b] = O::constant(kernel.row->gradient_factor);
      const int count = static_cast<int>(kernel.n);
      const T *const x = kernel.logits(0, count), *const y = kernel.probabilities ? kernel.target(0, count) : nullptr;
      const T* const dense = kernel.dense(0, count, y);
      const DenseLanes<V> lanes =
          dense ? dense_lanes<V, false>(x, dense, count, m) : dense_lanes<V, true>(x, nullptr, count, m);
      distances[b] = members_of<V>(lanes.distance), weights[b] = members_of<V>(lanes.weight), lost[b] = lanes.lost;
    }
    void repeat(int from, int b, bool has_dense) {
      z[b] = z[from];
      if (!has_dense) return;
      of_target[b] = of_target[from], own[b] = own[from], minus_share[b] = minus_share[from];
      factor[b] = factor[from], scale[b] = scale[from];
      distances[b] = distances[from], weights[b] = weights[from];
    }
    void finish(const LossOptions& o, const RowSum<V>& sum, Wide<V> L) {
      using O = WideOf<V>;
      const V zero = V(T(0)), z_t = V::load(z);
      const Wide<V> target = wide_lanes(of_target), nothing = O::constant(0);
      const Wide<V> weight = o.probabilities || o.weighted ? weights.fold() : O::constant(static_cast<double>(o.n));
      const Wide<V> dense = weight * O::constant(o.dense_scale());
      const Wide<V> of_part = (O::from(sum.m, zero - z_t) + L) * target;
      const Wide<V> of_dense = (distances.fold() + weight * L) * O::constant(o.dense_scale());
      V::store(loss, O::narrow(((nothing + of_part) + of_dense) * wide_lanes(factor)));
      const Wide<V> g = target_gradient(sum, z_t, (dense + wide_lanes(minus_share)) + nothing, wide_lanes(own)).value;
      V::store(at_target, O::narrow(g * wide_lanes(scale)));
      put_lanes(target + dense, all);
    }
    void finish_plain(const RowSum<V>& sum, Wide<V> L) {
      V::store(loss, cross_entropy(sum.m, L, V::load(z)));
      V::store(at_target, CrossEntropyWithGrad::finish(sum, V::load(z)).at_target);
    }
  };

  // The one target; of probabilities one without weight.
  LossPart<T> single_part() const { return probabilities ? LossPart<T>{0, 0.0, 0.0, T(0)} : part(0); }
  // This row, of a panel. Whether its numbers are such that PanelSingles has its loss and gradient.
  bool finish_single(int b, const PanelSums& sums, const PanelSingles& singles, const T* terms) {
    const double f = row->gradient_factor, scale = options.dense_scale();
    const double all = has_dense ? number(singles.all[b]) : singles.a[b];
    if (!is_finite(singles.z[b]) || is_nan(sums.R[b]) || (has_dense && singles.lost[b] && scale != 0.0)) return false;
    if (row->gradient && (!is_finite(static_cast<T>(f)) || !is_finite(static_cast<T>(all * f)))) return false;
    put(row->loss, one_nan(has_dense ? singles.loss[b] : weighted_loss(singles.loss[b], singles.a[b] * row->loss_factor)));
    if (!row->gradient) return true;
    Gradient gradient = {one_nan(static_cast<T>(all * f)), static_cast<T>(scale * f), singles.at_target[b], false};
    if (!has_dense) gradient.at_target = gradient.at_target * gradient.scale;
    gradient.at_target = one_nan(gradient.at_target);
    put(0, static_cast<int>(n), terms, sums.scale(b), gradient, nullptr);
    return true;
  }
  void finish_any(int b, const PanelSums& sums, const T* terms) {
    const int count = static_cast<int>(n);
    State state = State::empty();
    state.sum = sums.state(b);
    if (row->entropy || has_dense || job.finds_class) {
      const T* const z = logits(0, count);
      find_class(0, z, count);
      add_sums(0, count, z, terms, state);
    }
    const LoggedSum<T> logged = sums.logged(b);
    const Gradient gradient = finish(state, &logged);
    if (!row->gradient) return;
    if (gradient.nan) put_nan(0, count);
    else put(0, count, terms, sums.scale(b), gradient, nullptr);
  }
  static bool panel(const Storage<V>& storage, const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow* rows,
                    int count) {
    constexpr int W = V::W;
    cpu::Panel panel = {};
    panel.in[0] = {const_cast<char*>(rows[0].logits), count > 1 ? rows[1].logits - rows[0].logits : 0};
    panel.terms = {static_cast<char*>(scratch.row_terms[0]), job.terms_pitch};
    panel.count = static_cast<int>(job.plan->n), panel.rows = count, panel.ahead = job.ahead;
    TileState<V> states;
    if (!storage.panel_states(panel, &states)) return false;
    const RowSum<V> sum = row_sum(states);
    const Wide<V> L = log_over_max(sum);
    PanelSums sums(states, sum, L);
    LossKernel kernel{storage, job, scratch, rows};
    const auto take = [&](int b) { kernel.row = rows + b, kernel.maxima = sums.m + b, kernel.z_place = kernel.y_place = -1; };
    const auto terms_of = [&](int b) { return reinterpret_cast<const T*>(panel.terms.first + b * panel.terms.step); };
    const auto left_out = [&](int b) { return !rows[b].probabilities && rows[b].part_count == 0; };
    PanelSingles singles;
    int first = 0;  // that is not left out
    while (first < count && left_out(first)) ++first;
    bool single = first < count && PanelSingles::serve(kernel);
    for (int b = first; single && b < count; ++b) single = rows[b].part_count <= 1;
    if (single) {
      for (int b = first; b < count; ++b)
        if (!left_out(b)) take(b), singles.lay_out(b, kernel, sums.m[b]);
      for (int b = 0; b < W; ++b)
        if (b < first || b >= count || left_out(b)) singles.repeat(first, b, kernel.has_dense);
      if (kernel.has_dense) singles.finish(kernel.options, sum, L);
      else singles.finish_plain(sum, L);
    }
    for (int b = first; b < count; ++b) {
      if (left_out(b)) continue;
      take(b);
      if (!single || !kernel.finish_single(b, sums, singles, terms_of(b))) kernel.finish_any(b, sums, terms_of(b));
    }
    return true;
  }
#else
  static bool panel(const Storage<V>&, const cpu::LossJob&, cpu::LossScratch&, const cpu::LossRow*, int) { return false; }
#endif

  // What the second sweep has of the first; behind it the chunks' maxima.
  struct Saved {
    Normalizer<T> scale;
    Gradient gradient;
    LossTop<T> top;
  };
  static std::int64_t saved_bytes(std::int64_t n) {
    const std::int64_t bytes = std::int64_t{sizeof(Saved)} + chunk_count<T>(n) * std::int64_t{sizeof(T)};
    return (bytes + 15) / 16 * 16;
  }
  T* maxima_of(void* saved) const { return reinterpret_cast<T*>(static_cast<char*>(saved) + sizeof(Saved)); }

  void run() {
    if (!job.from_saved) return sweep();
    const Saved& saved = *static_cast<const Saved*>(row->saved);
    top = saved.top, maxima = maxima_of(row->saved);
    map_all(saved.scale, saved.gradient, nullptr);
  }
  void sweep() {
    const std::int64_t chunks = chunk_count<T>(n);
    if (row->saved) maxima = maxima_of(row->saved);
    T* const kept = row->gradient && job.keeps_terms ? static_cast<T*>(scratch.row_terms[scratch.row]) : nullptr;
    const auto reduce_all = [&](auto& root, auto reduce) {
      using Sum = std::remove_reference_t<decltype(root)>;
      MergeTree<Sum> tree;
      tree.clear();
      root = Sum::empty();
      for (std::int64_t c = 0; c < chunks; ++c) {
        reduce(c, kept ? kept + c * kChunk : nullptr, root);
        if (c + 1 < chunks) tree.push(root);
      }
      root = tree.finish(root);
    };
    State state = State::empty();
    const bool alone = !row->entropy && !has_dense;  // the sum of exponentials
    const auto reduce_row = [&] {
      const auto one = [&](std::int64_t c, T* terms, auto& sum) { reduce(c, terms, nullptr, sum); };
      if (alone) reduce_all(state.sum, one);
      else reduce_all(state, one);
    };
    if (scratch.waits) {
      if constexpr (kOverlaps)
        reduce_all(state.sum, [&, last = behind()](std::int64_t c, T* terms, auto& sum) { reduce_over(last, c, terms, sum); });
      scratch.waits = false;
    } else {
      reduce_row();
    }
    if (overflows) {
      set_apart();
      reduce_row();
    }
    const Gradient gradient = finish(state);
    if (!row->gradient && !row->saved) return;
    const Normalizer<T> scale = gradient.nan ? Normalizer<T>{} : normalizer<Terms>(state.sum);
    if (row->saved) *static_cast<Saved*>(row->saved) = {scale, gradient, top};
    if (!row->gradient) return;
    if constexpr (kOverlaps)
      if (job.overlaps && alone && kept && writes_probabilities(gradient)) return wait(scale, gradient, kept);
    map_all(scale, gradient, kept);
  }
};

template <class V, class Terms, class S>
constexpr Storage<V> kStorage = storage<V, Terms, S>();

template <class V, class Terms, class S>
void loss_row(const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow& row) {
  LossKernel<V, Terms>{kStorage<V, Terms, S>, job, scratch, &row}.run();
}
void write_waiting(const cpu::LossJob& job, cpu::LossScratch& scratch) {
  LossKernel<F32, FullTerms>{kStorage<F32, FullTerms, float>, job, scratch, nullptr}.write_waiting();
}
template <class V, class Terms, class S>
bool loss_panel(const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow* rows, int count) {
  return LossKernel<V, Terms>::panel(kStorage<V, Terms, S>, job, scratch, rows, count);
}

#if SUMEXP_REGISTERS
constexpr int kFloats = F32::W, kDoubles = F64::W;
#else
constexpr int kFloats = 1, kDoubles = 1;
#endif

#define SUMEXP_EACH_STORAGE(F)                                                                              \
  {                                                                                                         \
    F<F32, ShortTerms, f16>, F<F32, ShortTerms, bf16>, F<F32, FullTerms, float>, F<F64, FullTerms, double>, \
        F<F32, ShortTerms, float>                                                                           \
  }
constexpr auto kSavedFloats = LossKernel<F32, FullTerms>::saved_bytes, kSavedShort = LossKernel<F32, ShortTerms>::saved_bytes;

const cpu::LossKernels kLossKernels = {{kFloats, kFloats, kFloats, kDoubles, kFloats},
                                       SUMEXP_EACH_STORAGE(loss_row),
                                       SUMEXP_EACH_STORAGE(loss_panel),
                                       write_waiting,
                                       {kSavedShort, kSavedShort, kSavedFloats, LossKernel<F64, FullTerms>::saved_bytes}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(LossKernels, loss_kernels_, SUMEXP_NS::kLossKernels)
