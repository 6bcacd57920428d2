#include SUMEXP_SIMD
//
#include "losses.hpp"

#include "loss_row.hpp"
#if SUMEXP_REGISTERS
#include "loss_tiles.hpp"
#include "panel.hpp"
#endif

namespace sumexp::SUMEXP_NS {
namespace {

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
struct LossKernel : LossRowOf<V> {
  using Of = LossRowOf<V>;
  using typename Of::Gradient, typename Of::State, typename Of::T;
  using Of::job, Of::scratch, Of::row, Of::n, Of::options, Of::probabilities, Of::has_dense, Of::maxima, Of::kChunk;
  using Of::overflows, Of::top, Of::set_apart, Of::count_of, Of::logits, Of::logit, Of::target, Of::dense;
  using Of::z_place, Of::y_place, Of::find_class, Of::add_sums, Of::part, Of::put, Of::put_nan, Of::finish;
  static constexpr bool kOverlaps = V::kRegister && sizeof(T) == 4 && !Terms::kShort;

  const Storage<V>& storage;

  LossKernel(const Storage<V>& storage, const cpu::LossJob& job, cpu::LossScratch& scratch, const cpu::LossRow* row)
      : Of(job, scratch, row), storage(storage) {}

  // -- first sweep -------------------------------------------------------------------------------------------

  // Of chunk c: the sum of its exponentials, and with it what else the loss has (State).
  ExpState<T> sum_chunk(std::int64_t c, const T* z, int count, T* terms, OverlapOf<V, true>* overlap) {
    const ExpState<T> sum = terms ? exp_chunk<Terms, V, true, true>(z, count, terms, {job.ahead, overlap})
                                  : exp_chunk<Terms, V, true, false>(z, count, static_cast<T*>(nullptr), {job.ahead});
    maxima[c] = sum.m;
    find_class(c, z, count);
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
    if (row->entropy && !terms) terms = static_cast<T*>(scratch.terms);
    state.sum = sum_chunk(c, z, count, terms, overlap);
    add_sums(first, count, z, terms, state);
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
  // This row, of a panel, by what LossSingles has of it. Whether that serves it.
  bool finish_single(int b, const PanelSums& sums, const LossSingles<V>& singles, bool lost, const T* terms) {
    if (is_nan(sums.R[b]) || (lost && options.dense_scale() != 0.0) || !singles.serves(b, *row)) return false;
    put(row->loss, singles.loss_of(b, *row));
    if (row->gradient) put(0, static_cast<int>(n), terms, sums.scale(b), singles.gradient(b, *row), nullptr);
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
    LossSingles<V> singles(kernel.options);
    typename PanelRows<V, T, 1, int>::Groups distances, weights;
    bool lost[W] = {};
    int first = 0;  // that is not left out
    while (first < count && left_out(first)) ++first;
    bool single = first < count && singles.suffice(kernel.options, rows[0]);
    for (int b = first; single && b < count; ++b) single = rows[b].part_count <= 1;
    if (single) {
      const bool ones = !kernel.probabilities && !job.weight;
      for (int b = first; b < count; ++b) {
        if (left_out(b)) continue;
        take(b);
        LossPart<T> part = {0, 0.0, 0.0, sums.m[b]};
        if (!kernel.probabilities) part = kernel.part(0), part.z = kernel.logit(part.index);
        singles.put(b, part, rows[b]);
        if (!kernel.has_dense) continue;
        const T *const z = kernel.logits(0, panel.count), *const y =
                                                              kernel.probabilities ? kernel.target(0, panel.count) : nullptr;
        const DenseLanes<V> lanes = ones ? dense_lanes<V, true>(z, nullptr, panel.count, sums.m[b])
                                         : dense_lanes<V, false>(z, kernel.dense(0, panel.count, y), panel.count, sums.m[b]);
        distances[b] = members_of<V>(lanes.distance), weights[b] = members_of<V>(lanes.weight), lost[b] = lanes.lost;
      }
      for (int b = 0; b < W; ++b) {
        if (b >= first && b < count && !left_out(b)) continue;
        singles.repeat(first, b);
        if (kernel.has_dense) distances[b] = distances[first], weights[b] = weights[first];
      }
      if (!kernel.has_dense) singles.finish(sum, L);
      else singles.finish(sum, L, distances.fold(), ones ? WideOf<V>::constant(panel.count) : weights.fold());
    }
    for (int b = first; b < count; ++b) {
      if (left_out(b)) continue;
      take(b);
      if (!single || !kernel.finish_single(b, sums, singles, lost[b], terms_of(b))) kernel.finish_any(b, sums, terms_of(b));
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
        if (c + 1 < chunks) Of::push(tree, root);
      }
      Of::finish(tree, root);
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

constexpr float largest_subnormal(f16) { return 0x1.ff8p-15f; }
constexpr float largest_subnormal(bf16) { return 0x1.fcp-127f; }
constexpr float largest_subnormal(float) { return 0x1.fffffcp-127f; }
constexpr double largest_subnormal(double) { return 0x1.ffffffffffffep-1023; }
template <class V, class E>
void flush_subnormal(char* at, std::int64_t count, std::int64_t stride) {
  using T = ElementOf<V>;
  constexpr T largest = largest_subnormal(E{});
  if (stride == sizeof(E)) {
    E* const numbers = reinterpret_cast<E*>(at);
    return each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V x = memory.template load<V>(numbers + i, T(0));
      memory.store(numbers + i, clear(at_or_above(V(largest), larger(x, V(T(0)) - x)), x));
    });
  }
  for (std::int64_t i = 0; i < count; ++i, at += stride)
    if (const T x = widen(read<E>(at)); x <= largest && x >= -largest) write<E>(at, T(0));
}

#if SUMEXP_REGISTERS
constexpr int kFloats = F32::W, kDoubles = F64::W;
#define SUMEXP_LOSS_TILES \
  { loss_tile<F32, ShortTerms>, loss_tile<F32, ShortTerms>, loss_tile<F32, FullTerms>, loss_tile<F64, FullTerms> }
#else
constexpr int kFloats = 1, kDoubles = 1;
#define SUMEXP_LOSS_TILES \
  {}
#endif

#define SUMEXP_EACH_STORAGE(F)                                                                              \
  {                                                                                                         \
    F<F32, ShortTerms, f16>, F<F32, ShortTerms, bf16>, F<F32, FullTerms, float>, F<F64, FullTerms, double>, \
        F<F32, ShortTerms, float>                                                                           \
  }
constexpr auto kSavedFloats = LossKernel<F32, FullTerms>::saved_bytes, kSavedShort = LossKernel<F32, ShortTerms>::saved_bytes;

const cpu::LossKernels kLossKernels = {
    {kFloats, kFloats, kFloats, kDoubles, kFloats},
    SUMEXP_EACH_STORAGE(loss_row),
    SUMEXP_EACH_STORAGE(loss_panel),
    SUMEXP_LOSS_TILES,
    write_waiting,
    {kSavedShort, kSavedShort, kSavedFloats, LossKernel<F64, FullTerms>::saved_bytes},
    {flush_subnormal<F32, f16>, flush_subnormal<F32, bf16>, flush_subnormal<F32, float>, flush_subnormal<F64, double>}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(LossKernels, loss_kernels_, SUMEXP_NS::kLossKernels)
