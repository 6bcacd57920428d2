// Cross-entropy of a row by a block: what ops/losses.hpp makes of a row, in its order of summation. Rows of logits and an index
// without options stay in registers between loss and gradient, as far as they fit; others are read again, a lane row at a time.
#pragma once

#include <cstddef>

#include "../../numerics/tanh.hpp"
#include "../exp_chunk.cuh"
#include "losses.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {

// The first place of the largest number.
template <class T>
struct Largest {
  T number;
  std::int64_t place;  // -1: none

  SUMEXP_FN static Largest empty() { return {-Limits<T>::infinity, -1}; }
};
// a comes before b
template <class T>
SUMEXP_FN Largest<T> merge(const Largest<T>& a, const Largest<T>& b) {
  const bool later = a.place < 0 || b.number > a.number;
  return {later ? b.number : a.number, later ? b.place : a.place};
}
// In a warp, of numbers in any order.
template <class T>
SUMEXP_DEVICE Largest<T> warp_largest(Largest<T> mine) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) {
    const T number = arch::shfl_xor(mine.number, bit);
    const std::int64_t place = arch::shfl_xor(mine.place, bit);
    const bool other = place >= 0 && (mine.place < 0 || number > mine.number || (number == mine.number && place < mine.place));
    mine = {other ? number : mine.number, other ? place : mine.place};
  }
  return mine;
}

// Sums in the wide type over a chunk, lane row by lane row: element i belongs to lane i mod kGroup, which adds in order. So the
// elements wait in shared memory for the one thread that adds their lane; sum k's are in threads k kGroup and on.
template <class S, int kSums>
struct OrderedSums {
  using T = Compute<S>;
  using L = Tile<S>;
  using G = Geometry<T>;
  static_assert(kSums * G::kGroup <= arch::lane_count);
  // After every group one place stays free: threads that write meet in no bank.
  SUMEXP_FN static constexpr int place(int i) { return i + i / G::kGroup; }
  static constexpr int kStage = G::kLanes + G::kLanes / G::kGroup;  // of one sum

  Wide<T> sum = WideOf<T>::constant(0);

  SUMEXP_DEVICE void add(Wide<T>* stage, const Wide<T> (&parts)[kSums][L::kValues]) {
#pragma unroll
    for (int k = 0; k < kSums; ++k)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) stage[k * kStage + place(L::at(i))] = parts[k][i];
    arch::warp_sync();
    const int k = arch::lane() / G::kGroup, member = arch::lane() % G::kGroup;
    if (k < kSums) {
#pragma unroll 4
      for (int i = member; i < G::kLanes; i += G::kGroup) sum = sum + stage[k * kStage + place(i)];
    }
    arch::warp_sync();
  }
  // Lanes fold by halves.
  SUMEXP_DEVICE Wide<T> folded(int k) const {
    Wide<T> all = sum;
#pragma unroll
    for (int half = G::kGroup / 2; half > 0; half /= 2) all = all + arch::shfl_xor(all, half);
    return arch::shfl(all, k * G::kGroup);
  }
};

template <class T>
SUMEXP_DEVICE T read_number(DType dtype, const char* p) {
  switch (dtype) {
    case DType::f16: return static_cast<T>(widen(*reinterpret_cast<const f16*>(p)));
    case DType::bf16: return static_cast<T>(widen(*reinterpret_cast<const bf16*>(p)));
    case DType::f32: return static_cast<T>(*reinterpret_cast<const float*>(p));
    default: return static_cast<T>(*reinterpret_cast<const double*>(p));
  }
}

// -- the state of a chunk or more ------------------------------------------------------------------------------------

// kMore: the job takes more than logits and an index.
template <class T, bool kMore>
struct LossRowState {
  ExpState<T> sum;
  Largest<T> z;

  SUMEXP_FN static LossRowState empty(bool = false) { return {ExpState<T>::empty(), Largest<T>::empty()}; }
  SUMEXP_FN LossState<T> sums() const {
    LossState<T> all = LossState<T>::empty();
    all.sum = sum;
    return all;
  }
};
template <class T>
SUMEXP_FN LossRowState<T, false> merge(const LossRowState<T, false>& a, const LossRowState<T, false>& b) {
  return {merge(a.sum, b.sum), merge(a.z, b.z)};
}
template <class T>
struct LossRowState<T, true> {
  LossState<T> all;
  Largest<T> z, y;

  SUMEXP_FN static LossRowState empty(bool apart = false) {
    return {LossState<T>::empty(apart), Largest<T>::empty(), Largest<T>::empty()};
  }
  SUMEXP_FN const LossState<T>& sums() const { return all; }
};
template <class T>
SUMEXP_FN LossRowState<T, true> merge(const LossRowState<T, true>& a, const LossRowState<T, true>& b) {
  return {merge(a.all, b.all), merge(a.z, b.z), merge(a.y, b.y)};
}

// -- a row ---------------------------------------------------------------------------------------------------------------

template <class S, int kRows, bool kMore>
class LossRow {
 public:
  using T = Compute<S>;
  using L = Tile<S>;
  using G = Geometry<T>;
  using O = WideOf<T>;
  using Terms = TermsOf<S>;
  using State = LossRowState<T, kMore>;
  // What one warp tells the others of the finished row, behind the board.
  struct Finished {
    LossGradient<T> gradient;
    Normalizer<T> normalizer;
    double factor;
  };
  static constexpr std::size_t kStage = kMore ? 2 * OrderedSums<S, 2>::kStage : 0;  // wide numbers of a warp

  SUMEXP_DEVICE LossRow(const LossJob& job, RowBoard<State>& board, Finished& finished, Wide<T>* stage)
      : job_(job),
        board_(board),
        finished_(finished),
        stage_(stage + arch::warp() * kStage),
        n_(job.rows.n),
        has_dense_(kMore && job.options.has_dense()) {}

  SUMEXP_DEVICE void run(std::int64_t row) {
    place_row(job_.rows, row, at_);
    division_ = Division::quotient, top_ = {};
    const Targets targets = look();
    if (targets.bad || (targets.count == 0 && !probabilities())) {
      const T value = targets.bad ? Limits<T>::nan() : T(0);
      if (threadIdx.x == 0) put(row, {value, value, value, value, value, {}}, -1, false);
      return fill(is_zero(denominator()) ? T(0) : value);
    }
    const State state = reduce_all();
    if (arch::warp() == 0) finish(row, state, targets.count);
    if (!at_[cpu::kGradient]) return;
    arch::block_sync();  // all that is read of the row but by chunks has been: the gradient may take its place
    const Finished found = finished_;
    if (found.gradient.nan) return fill(found.gradient.scale);
    for (std::int64_t c = arch::warp(); c < chunk_count<T>(n_); c += warps()) {
      if constexpr (kMore) map_more(c, found, targets.count);
      else map(c, found);
    }
  }

 private:
  SUMEXP_DEVICE bool probabilities() const { return kMore && job_.options.probabilities; }
  SUMEXP_DEVICE std::int64_t stride(int k) const { return job_.rows.stride[k]; }

  // -- targets ---

  struct Targets {
    std::int64_t count;  // of classes that are not ignored
    bool bad;            // one is out of range
  };
  SUMEXP_DEVICE Index index_at(std::int64_t k) const {
    return read_index(job_.index_type,
                      at_[cpu::kTarget] + (kMore && job_.kind == TargetKind::pairs ? k * stride(cpu::kTarget) : 0));
  }
  SUMEXP_DEVICE bool is_kept(Index t) const { return t.huge || t.value != job_.ignore_index; }
  SUMEXP_DEVICE bool is_bad(Index t) const { return t.huge || t.value < 0 || t.value >= n_; }
  SUMEXP_DEVICE Targets look() const {
    if (probabilities()) return {0, false};
    if constexpr (kMore) {
      if (job_.kind == TargetKind::pairs) return look_at_pairs();
    }
    const Index t = index_at(0);
    return {is_kept(t), is_kept(t) && is_bad(t)};
  }
  SUMEXP_DEVICE Targets look_at_pairs() const {
    Targets found = {0, false};
    for (std::int64_t first = 0; first < job_.pairs; first += arch::lane_count) {
      const std::int64_t k = first + arch::lane();
      Index t = {0, false};
      if (k < job_.pairs) t = index_at(k);
      const bool kept = k < job_.pairs && is_kept(t);
      found.count += arch::warp_add(kept);
      found.bad = arch::any(kept && is_bad(t)) || found.bad;
    }
    return found;
  }
  SUMEXP_DEVICE T class_weight(std::int64_t j) const { return job_.weight ? static_cast<const T*>(job_.weight)[j] : T(1); }
  // Class k of the target; of ignored ones the index is -1.
  SUMEXP_DEVICE LossPart<T> part(std::int64_t k) const {
    const Index t = index_at(k);
    if (!is_kept(t)) return {-1, 0.0, 0.0, T(0)};
    const bool pairs = kMore && job_.kind == TargetKind::pairs;
    const char* const weight = at_[cpu::kPairWeight] + (pairs ? k * stride(cpu::kPairWeight) : 0);
    return {t.value, pairs ? read_number<double>(job_.target_dtype, weight) : 1.0, static_cast<double>(class_weight(t.value)),
            T(0)};
  }
  // body(part) by the whole warp, in order: those that `wanted` wants, which this lane asks of its own.
  template <class Wanted, class Body>
  SUMEXP_DEVICE void each_part(const Wanted& wanted, const Body& body) const {
    if (probabilities()) return;
    if constexpr (kMore) {
      if (job_.kind == TargetKind::pairs) return each_pair(wanted, body);
    }
    const LossPart<T> mine = part(0);
    if (wanted(mine)) body(mine);
  }
  template <class Wanted, class Body>
  SUMEXP_DEVICE void each_pair(const Wanted& wanted, const Body& body) const {
#pragma unroll 1
    for (std::int64_t first = 0; first < job_.pairs; first += arch::lane_count) {
      LossPart<T> mine = {-1, 0.0, 0.0, T(0)};
      if (first + arch::lane() < job_.pairs) mine = part(first + arch::lane());
      const unsigned there = arch::ballot(mine.index >= 0 && wanted(mine));
#pragma unroll 1
      for (int lane = 0; lane < arch::lane_count; ++lane)
        if (there >> lane & 1) body(arch::shfl(mine, lane));
    }
  }

  // -- logits ---

  SUMEXP_DEVICE T scaled(T x) const {
    if constexpr (kMore) {
      if (job_.softcap != 0.0) x = capped(x, static_cast<T>(job_.softcap)).value;
      const T t = static_cast<T>(job_.options.temperature);
      if (t != T(1)) x = over_temperature(x, t, division_, top_.top);
    }
    return x;
  }
  // x, of a row apart
  SUMEXP_DEVICE T undivided(T x) const { return job_.softcap != 0.0 ? capped(x, static_cast<T>(job_.softcap)).value : x; }
  template <int n>
  SUMEXP_DEVICE void scale(T (&v)[n][L::kValues]) const {
    if constexpr (kMore) {
      if (job_.softcap == 0.0 && job_.options.temperature == 1.0) return;
#pragma unroll
      for (int r = 0; r < n; ++r)
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) v[r][i] = scaled(v[r][i]);
    }
  }
  SUMEXP_DEVICE T element(std::int64_t j) const {
    return widen(*reinterpret_cast<const S*>(at_[cpu::kLogits] + j * stride(cpu::kLogits)));
  }
  SUMEXP_DEVICE char* place(int k, std::int64_t c, int r = 0) const {
    return at_[k] + (c * G::kChunk + r * G::kLanes) * stride(k);
  }
  SUMEXP_DEVICE void load(std::int64_t c) {
    load_chunk<S, kRows>(place(cpu::kLogits, c), stride(cpu::kLogits), chunk_size<S>(n_, c), v_, -Limits<T>::infinity);
    scale(v_);
  }
  SUMEXP_DEVICE void load_row(std::int64_t c, int r, T (&z)[1][L::kValues]) const {
    load_chunk<S, 1>(place(cpu::kLogits, c, r), stride(cpu::kLogits), chunk_size<S>(n_, c) - r * G::kLanes, z,
                     -Limits<T>::infinity);
  }

  // -- dense weights: y of the target, b of the loss over dense_scale. 0 behind the row ---

  SUMEXP_DEVICE void dense_row(std::int64_t c, int r, T (&y)[L::kValues], T (&b)[L::kValues]) const {
    const int left = chunk_size<S>(n_, c) - r * G::kLanes;
    const bool mixed = job_.options.mixed();
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      const int e = L::at(i);
      y[i] = b[i] = T(0);
      if (e >= left) continue;
      if (probabilities()) y[i] = read_number<T>(job_.target_dtype, place(cpu::kTarget, c, r) + e * stride(cpu::kTarget));
      const T w = class_weight(c * G::kChunk + r * G::kLanes + e);
      b[i] = !probabilities() ? w : mixed ? job_.options.smoothed(y[i]) * w : y[i];
    }
  }

  // -- first sweep ---

  SUMEXP_DEVICE State reduce_all() {
#pragma unroll 1
    for (;;) {
      const State state = reduce_row(chunk_count<T>(n_), board_, [&](std::int64_t c) { return reduce(c); });
      if (!kMore || !redivide(state.sums().sum)) return state;
    }
  }
  // Whether a row of this sum is to be reduced once more, divided in another way.
  SUMEXP_DEVICE bool redivide(const ExpState<T>& sum) {
    if (division_ == Division::quotient && is_nan(sum.R) && job_.options.temperature < 1.0) {
      division_ = Division::none;
    } else if (division_ == Division::none) {  // a row with a NaN stays one
      division_ = Division::apart;
      top_ = {true, sum.m, job_.options.temperature};
    } else {
      return false;
    }
    return true;
  }
  SUMEXP_DEVICE State reduce(std::int64_t c) {
    State state = State::empty(top_.apart);
    load(c);
    ExpState<T>& sum = sum_of(state);
    sum = exp_chunk<S, true, false>(v_);
    maximum_ = sum.m;
    if (job_.predicted || job_.correct) state.z = {sum.m, c * G::kChunk + first_of_maximum()};
    if constexpr (kMore) {
      if (has_dense_ || job_.entropy) reduce_more(c, state);
    }
    return state;
  }
  SUMEXP_DEVICE static ExpState<T>& sum_of(LossRowState<T, false>& state) { return state.sum; }
  SUMEXP_DEVICE static ExpState<T>& sum_of(LossRowState<T, true>& state) { return state.all.sum; }
  SUMEXP_DEVICE int first_of_maximum() const {
    int first = G::kChunk;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        const int e = element_of<S>(r, i);
        first = v_[r][i] == maximum_ && e < first ? e : first;
      }
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      const int other = arch::shfl_xor(first, bit);
      first = other < first ? other : first;
    }
    return first;
  }

  SUMEXP_DEVICE void reduce_more(std::int64_t c, State& state) const {
    const int count = chunk_size<S>(n_, c);
    const bool finite = is_finite(maximum_), plain = job_.log_prob && job_.options.mixed(), entropy = job_.entropy && finite;
    const T m = top_.apart ? top_.top : finite ? maximum_ : T(0);
    OrderedSums<S, 2> dense, own;
    OrderedSums<S, 1> spread;
    bool lost = false, own_lost = false;
    Largest<T> likeliest = Largest<T>::empty();
#pragma unroll 1
    for (int r = 0; r * G::kLanes < count; ++r) {
      T z[1][L::kValues];
      load_row(c, r, z);
      T x[L::kValues];  // of a row apart: what distances are of
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) x[i] = z[0][i];
      scale(z);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) x[i] = top_.apart ? undivided(x[i]) : z[0][i];
      Wide<T> parts[2][L::kValues];
      if (entropy) {
        T terms[1][L::kValues];
        Wide<T> spreads[1][L::kValues];
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) terms[0][i] = z[0][i];
        exp_terms<S>(terms, maximum_);
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) spreads[0][i] = spread_part(terms[0][i], maximum_, z[0][i]);
        spread.add(stage_, spreads);
      }
      if (!has_dense_) continue;
      T y[L::kValues], b[L::kValues];
      dense_row(c, r, y, b);
      const auto add = [&](OrderedSums<S, 2>& sums, const T(&weight)[L::kValues], bool& lost_one) {
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) {
          const T w = weight[i];
          lost_one = lost_one || (x[i] == -Limits<T>::infinity && (w > T(0) || w < T(0)));
          parts[0][i] = distance_below(m, x[i]) * O::from(w);
          parts[1][i] = O::from(w);
        }
        sums.add(stage_, parts);
      };
      if (plain) add(own, y, own_lost);
      add(dense, b, lost);
      if (probabilities() && job_.correct) {
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) {
          const int e = element_of<S>(r, i);
          const bool better = e < count && (y[i] > likeliest.number || (y[i] == likeliest.number && likeliest.place < 0));
          likeliest = {better ? y[i] : likeliest.number, better ? c * G::kChunk + e : likeliest.place};
        }
      }
    }
    if (entropy) state.all.spread = spread.folded(0) * anchor_factor(base_of(maximum_));
    if (!has_dense_) return;
    state.all.dense = {dense.folded(0), dense.folded(1), arch::any(lost)};
    if (plain) state.all.plain = {own.folded(0), own.folded(1), arch::any(own_lost)};
    if (probabilities() && job_.correct) {
      state.y = warp_largest(likeliest);
      if (state.y.place < 0) state.y.place = c * G::kChunk + count - 1;  // NaN alone
    }
  }

  // -- the finished row, by one warp ---

  SUMEXP_DEVICE double denominator() const { return job_.denominator_at ? *job_.denominator_at : job_.denominator; }
  // Whether a mean over it is to be 0, and its gradient.
  SUMEXP_DEVICE bool is_zero(double denominator) const { return job_.mean && job_.zero_if_empty && denominator == 0.0; }
  SUMEXP_DEVICE double factor(int k) const { return at_[k] ? *reinterpret_cast<const double*>(at_[k]) : 1.0; }

  SUMEXP_DEVICE void finish(std::int64_t row, const State& state, std::int64_t part_count) const {
    const auto all = [](const LossPart<T>&) { return true; };
    std::int64_t right = -1;
    if constexpr (kMore) right = state.y.place;
    if (job_.correct && part_count > 0)
      right = largest_class(
          [&](const auto& body) { each_part(all, [&](const LossPart<T>& of_row) { body(of_row.index, of_row.weight); }); });
    const auto parts = [&](const auto& body) {
      each_part(all, [&](LossPart<T> of_row) {
        const T x = element(of_row.index);
        of_row.z = scaled(x);
        if (top_.apart) of_row.below = top_.below(undivided(x));
        body(of_row);
      });
    };
    const LossState<T> sums = state.sums();
    const double over = denominator(), token = factor(cpu::kToken), of_gradient = token * factor(cpu::kFactor) / over;
    const bool gradient = at_[cpu::kGradient] != nullptr, nan = is_nan(sums.sum.R);
    const LossResult<T> result =
        finish_loss<T>(job_.options, sums, part_count, parts, token, of_gradient, kMore && job_.entropy, gradient, top_);
    if (arch::lane() != 0) return;
    put(row, result, nan ? -1 : state.z.place, !nan && state.z.place >= 0 && state.z.place == right);
    if (!gradient) return;
    Finished found = {result.gradient, {}, result.gradient.late ? of_gradient : of_gradient / job_.options.temperature};
    if (!result.gradient.nan) found.normalizer = normalizer<Terms>(sums.sum);
    if (is_zero(over)) found.gradient.nan = true, found.gradient.scale = T(0);
    finished_ = found;
  }
  SUMEXP_DEVICE static void put_at(void* to, std::int64_t row, T value) {
    if (to) static_cast<T*>(to)[row] = quiet(value);
  }
  SUMEXP_DEVICE void put(std::int64_t row, const LossResult<T>& result, std::int64_t predicted, bool correct) const {
    if (job_.loss) static_cast<S*>(job_.loss)[row] = Narrow<S>::from(quiet(result.loss));
    put_at(job_.row_loss, row, result.loss), put_at(job_.lse, row, result.lse), put_at(job_.log_prob, row, result.log_prob);
    put_at(job_.entropy, row, result.entropy), put_at(job_.z_loss, row, result.z_loss);
    if (job_.predicted) job_.predicted[row] = predicted;
    if (job_.correct) job_.correct[row] = correct;
  }

  // -- second sweep ---

  SUMEXP_DEVICE void fill(T value) {
    if (!at_[cpu::kGradient]) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v_[r][i] = value;
    for (std::int64_t c = arch::warp(); c < chunk_count<T>(n_); c += warps()) store(c);
  }
  SUMEXP_DEVICE void store(std::int64_t c) const {
    store_chunk<S, kRows>(place(cpu::kGradient, c), stride(cpu::kGradient), chunk_size<S>(n_, c), v_);
  }
  // The logits of chunk c, and their maximum, unless registers have them from the first sweep.
  SUMEXP_DEVICE void load_again(std::int64_t c) {
    if (chunk_count<T>(n_) <= warps()) return;
    load(c);
    maximum_ = chunk_max<S>(v_);
  }
  // Probabilities in place of terms, each times `by`, a finite number.
  template <int n>
  SUMEXP_DEVICE static void to_probabilities(T (&v)[n][L::kValues], const ChunkScale<T>& k, T by) {
    const TermScale<T> scale = k.far ? unit_scale<T>() : k.near;
#pragma unroll
    for (int r = 0; r < n; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        const T term = k.far ? far_term<Terms>(v[r][i], k) : v[r][i];
        v[r][i] = by * probability<Terms>(term, scale);
      }
  }

  // The same of any number.
  template <int n>
  SUMEXP_DEVICE static void to_scaled(T (&v)[n][L::kValues], const ChunkScale<T>& k, T by) {
    to_probabilities(v, k, is_finite(by) ? by : T(1));
    if (is_finite(by)) return;
#pragma unroll
    for (int r = 0; r < n; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v[r][i] = quiet(times_unbounded(v[r][i], by));
  }

  SUMEXP_DEVICE void map(std::int64_t c, const Finished& found) {
    load_again(c);
    exp_terms<S>(v_, maximum_);
    to_scaled(v_, chunk_scale<Terms>(found.normalizer, maximum_), found.gradient.scale);
    const std::int64_t target = index_at(0).value - c * G::kChunk;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v_[r][i] = element_of<S>(r, i) == target ? found.gradient.at_target : v_[r][i];
    store(c);
  }

  SUMEXP_DEVICE void map_more(std::int64_t c, const Finished& found, std::int64_t part_count) {
    load_again(c);
    const int count = chunk_size<S>(n_, c);
    const ChunkScale<T> k = chunk_scale<Terms>(found.normalizer, maximum_);
#pragma unroll 1
    for (int r = 0; r * G::kLanes < count; ++r) {
      T v[1][L::kValues];
      load_row(c, r, v);
      T slope[L::kValues];
      if (job_.softcap != 0.0) {
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) slope[i] = capped(v[0][i], static_cast<T>(job_.softcap)).slope;
      }
      scale(v);
      exp_terms<S>(v, maximum_);
      if (has_dense_) {
        T y[L::kValues], b[L::kValues];
        dense_row(c, r, y, b);
        to_probabilities(v, k, T(1));
#pragma unroll
        for (int i = 0; i < L::kValues; ++i)
          v[0][i] = is_finite(found.gradient.scale)
                        ? dense_gradient(v[0][i], found.gradient.scale, b[i], T(0) - found.gradient.dense)
                        : times_unbounded(v[0][i], found.gradient.scale) + b[i] * (T(0) - found.gradient.dense);
      } else {
        to_scaled(v, k, found.gradient.scale);
      }
      const std::int64_t first = c * G::kChunk + r * G::kLanes;
      each_part([&](const LossPart<T>& part) { return part.index >= first && part.index < first + G::kLanes; },
                [&](const LossPart<T>& part) {
                  const int e = int(part.index - first);
                  const T less = static_cast<T>(part.a(job_.options) * found.factor);
#pragma unroll
                  for (int i = 0; i < L::kValues; ++i)
                    if (L::at(i) == e) v[0][i] = part_count == 1 ? found.gradient.at_target : v[0][i] - less;
                });
      if (job_.softcap != 0.0) {
#pragma unroll
        for (int i = 0; i < L::kValues; ++i) v[0][i] = v[0][i] * slope[i];
      }
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        if (found.gradient.late) v[0][i] = v[0][i] / static_cast<T>(job_.options.temperature);
        v[0][i] = quiet(v[0][i]);
      }
      store_chunk<S, 1>(place(cpu::kGradient, c, r), stride(cpu::kGradient), count - r * G::kLanes, v);
    }
  }

  const LossJob& job_;
  RowBoard<State>& board_;
  Finished& finished_;
  Wide<T>* const stage_;
  const std::int64_t n_;
  const bool has_dense_;
  Division division_ = Division::quotient;
  LossTop<T> top_;
  char* at_[cpu::kOperands];
  T v_[kRows][L::kValues], maximum_;
};

// kRows: lane rows of a chunk. 1: rows of no more, a warp each.
template <class S, int kRows, bool kMore>
__global__ void __launch_bounds__(arch::lane_count*(kRows == 1 ? 1 : kRowWarps), 1) loss_rows(SUMEXP_PARAMETER LossJob job) {
  using Row = LossRow<S, kRows, kMore>;
  struct Shared {
    RowBoard<typename Row::State> board;
    typename Row::Finished finished;
    Wide<Compute<S>> stage[1];
  };
  Shared& shared = *arch::dynamic_shared<Shared>();
  Row row(job, shared.board, shared.finished, shared.stage);
  each_row(job.rows.rows, [&](std::int64_t r) { row.run(r); });
}

template <class S, int kRows, bool kMore>
cudaError_t launch_loss_rows(const LossJob& job, cudaStream_t stream) {
  using Row = LossRow<S, kRows, kMore>;
  const std::int64_t chunks = chunk_count<Compute<S>>(job.rows.n);
  arch::Launch how = launch_of_rows<typename Row::State>(job.rows.rows, chunks, stream);
  const bool stages = kMore && (job.options.has_dense() || job.entropy);
  const std::size_t stage = stages ? how.block.x / arch::lane_count * Row::kStage : 0;
  how.dynamic_shared += sizeof(typename Row::Finished) + 2 * alignof(std::max_align_t) + stage * sizeof(Wide<Compute<S>>);
  return arch::launch(loss_rows<S, kRows, kMore>, how, job);
}

template <class S>
cudaError_t LossRows<S>::launch(const LossJob& job, cudaStream_t stream) {
  const bool more = job.takes_more();
  if (job.rows.n <= Geometry<Compute<S>>::kLanes)
    return more ? launch_loss_rows<S, 1, true>(job, stream) : launch_loss_rows<S, 1, false>(job, stream);
  return more ? launch_loss_rows<S, 8, true>(job, stream) : launch_loss_rows<S, 8, false>(job, stream);
}

}  // namespace sumexp::SUMEXP_NS
