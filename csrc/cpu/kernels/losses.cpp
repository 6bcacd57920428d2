#include SUMEXP_SIMD
//
#include "losses.hpp"

#include "../../numerics/tanh.hpp"
#include "../../ops/losses.hpp"
#include "exp_chunk.hpp"
#include "kernel.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

template <class V, int kVectors>
Wide<ElementOf<V>> fold_wide(const Wide<V> (&lanes)[kVectors]) {
  constexpr int each = V::W / F64::W;
  WideMembers<V> member[each * kVectors];
  for (int u = 0; u < kVectors; ++u) put_members(lanes[u], member + each * u);
  return fold_halves<F64::W / 2>(fold_vectors(member));
}

// Calls body(u, i, memory) for the vectors of a chunk, u the place in a group of lanes: element i belongs to lane i mod kGroup.
template <class V, class Body>
SUMEXP_FN void each_in_group(int count, Body body) {
  constexpr int kGroup = Geometry<ElementOf<V>>::kGroup, kVectors = kGroup / V::W;
  int i = 0;
  for (; i + kGroup <= count; i += kGroup)
#pragma GCC unroll 16
    for (int u = 0; u < kVectors; ++u) body(u, i + u * V::W, Whole{});
  for (int u = 0; i < count; ++u, i += V::W) {
    if (i + V::W <= count) body(u, i, Whole{});
    else body(u, i, Part{count - i});
  }
}

template <class V, bool kOnes>
DenseSum<ElementOf<V>> dense_sum(const ElementOf<V>* z, const ElementOf<V>* b, int count, ElementOf<V> maximum) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  constexpr int kVectors = Geometry<T>::kGroup / V::W;
  const V m = V(is_finite(maximum) ? maximum : T(0)), zero = V(T(0));
  Wide<V> distance[kVectors], weight[kVectors];
  for (int u = 0; u < kVectors; ++u) distance[u] = weight[u] = O::from(zero);
  V lost = zero;
  each_in_group<V>(count, [&](int u, int i, auto memory) SUMEXP_INLINE {
    const V x = memory.template load<V>(z + i, is_finite(maximum) ? maximum : T(0));
    const auto gone = equal(x, V(-Limits<T>::infinity));
    const Wide<V> d = distance_below(m, x);
    if constexpr (kOnes) {
      lost = pick(gone, V(T(1)), lost);
      distance[u] = distance[u] + d;
    } else {
      const V w = memory.template load<V>(b + i, T(0));
      lost = larger(pick(gone, larger(w, zero - w), zero), lost);
      distance[u] = distance[u] + d * O::from(w);
      weight[u] = weight[u] + O::from(w);
    }
  });
  return {fold_wide<V>(distance), kOnes ? WideOf<T>::constant(count) : fold_wide<V>(weight), largest(lost) > T(0)};
}

// sum of t_j (m - z_j), t the chunk's terms
template <class V>
Wide<ElementOf<V>> spread_of(const ElementOf<V>* z, const ElementOf<V>* terms, int count, ElementOf<V> maximum) {
  using T = ElementOf<V>;
  using O = WideOf<V>;
  constexpr int kVectors = Geometry<T>::kGroup / V::W;
  const V zero = V(T(0));
  Wide<V> sums[kVectors];
  for (int u = 0; u < kVectors; ++u) sums[u] = O::from(zero);
  each_in_group<V>(count, [&](int u, int i, auto memory) SUMEXP_INLINE {
    const V t = memory.template load<V>(terms + i, T(0));
    sums[u] = sums[u] + spread_part(t, V(maximum), memory.template load<V>(z + i, T(0)));
  });
  return fold_wide<V>(sums) * anchor_factor(base_of(maximum));
}

template <class V, class S>
struct LossKernel {
  using T = ElementOf<V>;
  using Terms = TermsOf<S>;
  using State = LossState<T>;
  using Gradient = LossGradient<T>;
  static constexpr int kChunk = Geometry<T>::kChunk;
  static constexpr bool kStores = std::is_same_v<S, T> || V::kRegister;

  const cpu::LossJob& job;
  cpu::LossScratch& scratch;
  const cpu::LossRow& row;
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
    job.moves->pack_row(*job.plan, cpu::kIn0, row.logits, first, count, to);
    cap_logits(to, count, nullptr);
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      memory.store(to + i, memory.template load<V>(to + i, T(0)) * V(static_cast<T>(LossTop<T>::kScale)));
    });
  }
  void set_apart() {
    T* const x = static_cast<T*>(scratch.z);
    for (std::int64_t first = 0; first < n; first += kChunk) {
      job.moves->pack_row(*job.plan, cpu::kIn0, row.logits, first, count_of(first), x);
      cap_logits(x, count_of(first), nullptr);
      job.moves->largest(x, count_of(first), &top.top);
    }
    top.apart = true, z_place = y_place = -1;
  }
  const T* logits(std::int64_t first, int count, T* slopes = nullptr) const {
    if (job.in_place) return reinterpret_cast<const T*>(row.logits) + first;
    T* const z = static_cast<T*>(scratch.z);
    job.moves->pack_row(*job.plan, cpu::kIn0, row.logits, first, count, z);
    if (changes_logits) scale_logits(z, count, slopes);
    return z;
  }
  T logit(std::int64_t j) const {
    T z;
    job.moves->pack_row(*job.plan, cpu::kIn0, row.logits, j, 1, &z);
    if (changes_logits) scale_logits(&z, 1, nullptr);
    return z;
  }
  // The target's probabilities.
  const T* target(std::int64_t first, int count) const {
    T* const y = static_cast<T*>(scratch.dense);
    if (job.target_wide == sizeof(T)) {
      job.target_moves->pack_row(*job.plan, cpu::kIn1, row.probabilities, first, count, y);
      return y;
    }
    std::conditional_t<sizeof(T) == 4, double, float> other[64];
    for (int i = 0; i < count; i += 64) {
      const int some = count - i < 64 ? count - i : 64;
      job.target_moves->pack_row(*job.plan, cpu::kIn1, row.probabilities, first + i, some, other);
      for (int j = 0; j < some; ++j) y[i + j] = static_cast<T>(other[j]);
    }
    return y;
  }
  // Weights of the classes in the loss, over dense_scale; null: ones.
  const T* dense(std::int64_t first, int count, const T* y) const {
    const T* const w = job.weight ? static_cast<const T*>(job.weight) + first : nullptr;
    if (!probabilities || !mixed) return probabilities ? y : w;
    T* const a = static_cast<T*>(scratch.dense);  // y's own place
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
    if (job.finds_class && (z_place < 0 || sum.m > best_z)) {
      int i = 0;
      while (i < count - 1 && z[i] != sum.m) ++i;
      best_z = sum.m, z_place = c * kChunk + i;
    }
    return sum;
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
    if (row.entropy && !terms) terms = static_cast<T*>(scratch.terms);
    state.sum = sum_chunk(c, z, count, terms, overlap);
    const T m = state.sum.m;
    if (row.entropy && is_finite(m)) state.spread = spread_of<V>(z, terms, count, m);
    if (has_dense) {
      const T* const y = probabilities ? target(first, count) : nullptr;
      const T *x = z, from = top.apart ? static_cast<T>(top.scaled()) : m;
      if (top.apart) undivided(first, count, static_cast<T*>(scratch.out)), x = static_cast<T*>(scratch.out);
      if (mixed && row.log_prob) state.plain = dense_sum<V, false>(x, y, count, from);
      if (probabilities && row.correct) find_largest(y, count, first, best_y, y_place);
      const T* const b = dense(first, count, y);
      state.dense = b ? dense_sum<V, false>(x, b, count, from) : dense_sum<V, true>(x, b, count, from);
    }
  }

  // -- the finished row --------------------------------------------------------------------------------------

  static void put(void* to, T value) {
    if (to) *static_cast<T*>(to) = value;
  }
  LossPart<T> part(std::int64_t k) const {
    const cpu::TargetPart& part = row.parts[k];
    return {part.index, part.weight, static_cast<double>(weight_of(part.index)), T(0)};
  }
  void put_class(bool nan) const {
    if (row.predicted) *row.predicted = nan ? -1 : z_place;
    if (!row.correct) return;
    std::int64_t right = y_place;
    double best = 0.0;
    for (std::int64_t k = 0; k < row.part_count; ++k)
      if (k == 0 || row.parts[k].weight > best) best = row.parts[k].weight, right = row.parts[k].index;
    *row.correct = !nan && z_place >= 0 && z_place == right;
  }
  Gradient finish(const State& state) const {
    const auto each_part = [&](auto body) SUMEXP_INLINE {
      for (std::int64_t k = 0; k < row.part_count; ++k) {
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
    const LossResult<T> result = finish_loss(options, state, row.part_count, each_part, row.loss_factor, row.gradient_factor,
                                             row.entropy != nullptr, row.gradient || row.saved, top);
    put(row.loss, result.loss), put(row.lse, result.lse), put(row.log_prob, result.log_prob);
    put(row.entropy, result.entropy), put(row.z_loss, result.z_loss);
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
    T* const out = static_cast<T*>(scratch.out);
    T* const slopes = job.softcap != 0.0 ? static_cast<T*>(scratch.slopes) : nullptr;
    if (gradient.nan) {
      fill_chunk<V>(out, count, Limits<T>::nan());
      return job.moves->unpack_row(*job.plan, cpu::kOut, row.gradient, first, count, out);
    }
    const T* terms = terms_of(c, first, count, kept, slopes);
    const TermScale<V> scale = scale_of(c, count, normalizer, terms);
    const V all = V(gradient.scale);
    const bool bounded = is_finite(gradient.scale);
    if constexpr (kStores)
      if (writes_probabilities(gradient)) {
        S* const to = reinterpret_cast<S*>(row.gradient) + first;
        store_chunk<V>(to, count, job.stream, [&](int i, auto memory) SUMEXP_INLINE {
          return all * probability<Terms>(memory.template load<V>(terms + i, T(0)), scale);
        });
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
    const double f = gradient.late ? row.gradient_factor : row.gradient_factor / job.temperature;
    for (std::int64_t k = 0; k < row.part_count; ++k)
      if (const std::int64_t i = row.parts[k].index - first; i >= 0 && i < count)
        out[i] = row.part_count == 1 ? gradient.at_target : out[i] - static_cast<T>(part(k).a(options) * f);
    if (slopes)
      each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
        memory.store(out + i, memory.template load<V>(out + i, T(0)) * memory.template load<V>(slopes + i, T(0)));
      });
    if (gradient.late) job.moves->divide(job.temperature, count, out);
    if (!bounded || gradient.late)
      each_vector<V>(count, [&](int i, auto memory)
                                SUMEXP_INLINE { memory.store(out + i, quiet(memory.template load<V>(out + i, T(0)))); });
    job.moves->unpack_row(*job.plan, cpu::kOut, row.gradient, first, count, out);
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
    return kStores && job.stores && !has_dense && job.softcap == 0.0 && row.part_count == 1 && !gradient.nan &&
           !gradient.late && is_finite(gradient.scale);
  }
  void write_target(std::int64_t first, int count, const Gradient& gradient) const {
    if (const std::int64_t i = row.parts[0].index - first; i >= 0 && i < count)
      write<S>(row.gradient + (first + i) * std::int64_t{sizeof(S)}, gradient.at_target);
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
    LossKernel kernel{job, scratch, waiting().row};
    kernel.maxima = waiting().maxima;
    return kernel;
  }
  void wait(const Normalizer<T>& scale, const Gradient& gradient, const T* kept) const {
    Waiting& to = as<Waiting>(scratch.waiting);
    to = {row, row.parts[0], scale, gradient, kept, maxima};
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
    S* const to = reinterpret_cast<S*>(waiting.row.gradient) + first;
    write_while<V>(kept, to, count, OfTerms<V>{scale, V(waiting.gradient.scale)},
                   [&](OverlapOf<V, true>* overlap) { reduce(c, terms, overlap, sum); });
    behind.write_target(first, count, waiting.gradient);
  }
  void write_waiting() const {
    behind().map_all(waiting().scale, waiting().gradient, waiting().terms);
    scratch.waits = false;
  }

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
    const Saved& saved = *static_cast<const Saved*>(row.saved);
    top = saved.top, maxima = maxima_of(row.saved);
    map_all(saved.scale, saved.gradient, nullptr);
  }
  void sweep() {
    const std::int64_t chunks = chunk_count<T>(n);
    if (row.saved) maxima = maxima_of(row.saved);
    T* const kept = row.gradient && job.keeps_terms ? static_cast<T*>(scratch.row_terms[scratch.row]) : nullptr;
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
    const bool alone = !row.entropy && !has_dense;  // the sum of exponentials
    const auto reduce_row = [&] {
      const auto one = [&](std::int64_t c, T* terms, auto& sum) { reduce(c, terms, nullptr, sum); };
      if (alone) reduce_all(state.sum, one);
      else reduce_all(state, one);
    };
    if (scratch.waits) {
      if constexpr (kOverlaps<V, S>)
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
    if (!row.gradient && !row.saved) return;
    const Normalizer<T> scale = gradient.nan ? Normalizer<T>{} : normalizer<Terms>(state.sum);
    if (row.saved) *static_cast<Saved*>(row.saved) = {scale, gradient, top};
    if (!row.gradient) return;
    if constexpr (kOverlaps<V, S>)
      if (job.overlaps && alone && kept && writes_probabilities(gradient)) return wait(scale, gradient, kept);
    map_all(scale, gradient, kept);
  }
};

template <class V, class S>
void loss_row(const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow& row) {
  LossKernel<V, S>{job, scratch, row}.run();
}
template <class V, class S>
void write_waiting(const cpu::LossJob& job, cpu::LossScratch& scratch) {
  LossKernel<V, S>{job, scratch, {}}.write_waiting();
}

// Rows `step` bytes apart, of n elements `stride` bytes apart, each times its factor, a T.
template <class V, class S>
void scale_rows(char* at, std::int64_t step, std::int64_t stride, std::int64_t rows, std::int64_t n, const void* by) {
  using T = ElementOf<V>;
  const T* const factors = static_cast<const T*>(by);
  if constexpr (std::is_same_v<S, T>) {
    const auto scale = [&](char* from, std::int64_t count, auto factor) SUMEXP_INLINE {
      T* const x = reinterpret_cast<T*>(from);
      each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
        memory.store(x + i, memory.template load<V>(x + i, T(0)) * factor(i, memory));
      });
    };
    if (stride == sizeof(T)) {
      for (std::int64_t r = 0; r < rows; ++r)
        scale(at + r * step, n, [&](std::int64_t, auto) SUMEXP_INLINE { return V(factors[r]); });
      return;
    }
    if (step == sizeof(T)) {
      for (std::int64_t j = 0; j < n; ++j)
        scale(at + j * stride, rows,
              [&](std::int64_t i, auto memory) SUMEXP_INLINE { return memory.template load<V>(factors + i, T(0)); });
      return;
    }
  }
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < n; ++j) {
      char* const x = at + r * step + j * stride;
      write<S>(x, widen(read<S>(x)) * factors[r]);
    }
}

const cpu::LossKernels kLossKernels = {
    {loss_row<F32, f16>, loss_row<F32, bf16>, loss_row<F32, float>, loss_row<F64, double>},
    write_waiting<F32, float>,
    {LossKernel<F32, f16>::saved_bytes, LossKernel<F32, bf16>::saved_bytes, LossKernel<F32, float>::saved_bytes,
     LossKernel<F64, double>::saved_bytes},
    {scale_rows<F32, f16>, scale_rows<F32, bf16>, scale_rows<F32, float>, scale_rows<F64, double>}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(LossKernels, loss_kernels_, SUMEXP_NS::kLossKernels)
