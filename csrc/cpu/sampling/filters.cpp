// Every filter keeps a prefix of one order, so that a sequence of them is a prefix that shrinks. Its end is found by narrowing
// an interval of logits, in vectors, and then by a radix selection on the ordered bits of the few that are left; the place of
// the last of equal elements by a scan. Masses are integers: which way is taken shows in no result.
#include "filters.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "../../ops/filters.hpp"
#include "../kernels/filters.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"
#include "check.hpp"

namespace sumexp::cpu {

namespace {

using SUMEXP_NS::Bits;
using SUMEXP_NS::bit_length;
using SUMEXP_NS::bits_of;
using SUMEXP_NS::from_bits;
using SUMEXP_NS::kEveryTie;
using SUMEXP_NS::next_above;
template <class T>
using End = SUMEXP_NS::FilterEnd<T>;

// All elements below this together have a mass of `rest` or less: count 1.5 2^88 e^(x - m) bounds it.
template <class T>
T surely_below(T m, Mass rest, std::int64_t count) {
  if (rest == 0) return -std::numeric_limits<T>::infinity();
  const double share = static_cast<double>(rest) / (1.5 * 0x1p88 * static_cast<double>(count));
  const T bound = static_cast<T>(static_cast<double>(m) + SUMEXP_NS::log_of(share));
  return bound < m ? bound : -std::numeric_limits<T>::infinity();
}

// -- selection --------------------------------------------------------------------------------------------------------------

constexpr int kRadixBits = 11, kBuckets = 1 << kRadixBits;
constexpr std::int64_t kFew = 512;  // elements that go to the radix selection
constexpr int kNarrowings = 4;      // at most
constexpr double kDoubt = 0x1p-11;  // above the relative error of FilterKernel::sums_above

template <class T>
struct Scratch {
  T *x, *terms;  // n and kFilterPadding elements
  Mass* masses;  // by bucket
  std::int64_t* counts;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
template <class T>
std::size_t row_bytes(std::int64_t n) {
  return aligned(static_cast<std::size_t>(n + kFilterPadding) * sizeof(T));
}
template <class T>
Scratch<T> scratch_of(void* scratch, std::int64_t n) {
  char* const p = static_cast<char*>(scratch);
  char* const buckets = p + 2 * row_bytes<T>(n);
  return {reinterpret_cast<T*>(p), reinterpret_cast<T*>(p + row_bytes<T>(n)), reinterpret_cast<Mass*>(buckets),
          reinterpret_cast<std::int64_t*>(buckets + kBuckets * sizeof(Mass))};
}

// The first element, in the order, with which the sum of masses reaches a target.
// terms: null where each mass is 1. 0 < target <= the sum of all masses; `before` elements come before these. Its ties are
// kEveryTie where all are wanted that x has.
template <class T>
End<T> select_by_radix(const T* x, const T* terms, std::int64_t n, Mass target, std::int64_t before,
                       const Scratch<T>& scratch) {
  const auto mass_at = [&](std::int64_t j) { return terms ? SUMEXP_NS::mass_of_term(terms[j]) : Mass{1}; };
  for (;;) {
    Bits<T> least = bits_of(x[0]), most = least;
    for (std::int64_t j = 1; j < n; ++j) {
      const Bits<T> key = bits_of(x[j]);
      least = key < least ? key : least;
      most = key > most ? key : most;
    }
    if (least == most) {
      const Mass each = mass_at(0);
      const std::int64_t ties = SUMEXP_NS::ties_that_reach(target, each);
      return {from_bits<T>(least), ties < n ? ties : kEveryTie, before + ties};
    }
    const int few = bit_length(static_cast<std::uint64_t>(n)), width = few < kRadixBits ? few : kRadixBits;
    const int bits = bit_length(most - least), shift = bits > width ? bits - width : 0;
    const auto bucket_of = [&](std::int64_t j) { return static_cast<int>((bits_of(x[j]) - least) >> shift); };
    int bucket = static_cast<int>((most - least) >> shift);
    for (int b = 0; b <= bucket; ++b) scratch.masses[b] = 0, scratch.counts[b] = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const int b = bucket_of(j);
      scratch.masses[b] += mass_at(j);
      ++scratch.counts[b];
    }
    for (; bucket > 0 && scratch.masses[bucket] < target; --bucket) {
      target -= scratch.masses[bucket];
      before += scratch.counts[bucket];
    }
    std::int64_t inside = 0;
    for (std::int64_t j = 0; j < n; ++j)
      if (bucket_of(j) == bucket) {
        const T value = x[j];
        if (terms) scratch.terms[inside] = terms[j];
        scratch.x[inside++] = value;
      }
    x = scratch.x;
    if (terms) terms = scratch.terms;
    n = inside;
  }
}

// unit: what sums_above has for a mass of 1. range: of x, in which -inf may stand besides.
template <class T>
End<T> select(const FilterKernel<T>& kernel, const T* x, const T* terms, std::int64_t n, FilterRange<T> range, Mass target,
              double unit, const Scratch<T>& scratch) {
  std::int64_t before = 0;
  for (int round = 0; n > kFew && round < kNarrowings && range.least < range.largest; ++round) {
    T bounds[kFilterBounds];
    double sums[kFilterBounds];
    for (int k = 0; k < kFilterBounds; ++k) {
      constexpr T step = T(1) / (kFilterBounds + 1);
      bounds[k] = range.largest * (1 - step * T(k + 1)) + range.least * (step * T(k + 1));
    }
    kernel.sums_above(x, terms, n, bounds, sums);
    const double wanted = static_cast<double>(target) * unit;
    T from = range.least, below = std::numeric_limits<T>::infinity();
    for (int k = 0; k < kFilterBounds; ++k) {
      if (bounds[k] > from && sums[k] * (1 - kDoubt) > wanted) from = bounds[k];
      if (sums[k] * (1 + kDoubt) < wanted) below = bounds[k];
    }
    const FilterSplit split = kernel.split(x, terms, n, from, below, scratch.x, scratch.terms);
    target -= split.above;
    before += split.above_count;
    const bool less = split.inside < n;
    x = scratch.x;
    if (terms) terms = scratch.terms;
    n = split.inside;
    if (!less) break;
    if (n > kFew) range = kernel.range(x, n, std::numeric_limits<T>::lowest());
  }
  return select_by_radix(x, terms, n, target, before, scratch);
}

// -- a sample of the row tells where about it ends -------------------------------------------------------------------------

constexpr std::int64_t kMany = 1 << 14;          // elements that are worth a sample
constexpr std::int64_t kRun = 64, kSampled = 8;  // of so many runs of so many elements one is taken
constexpr int kGuesses = 3;                      // divisions of the interval
constexpr double kDeviations = 4;

template <class T>
std::int64_t take_sample(const T* x, std::int64_t n, T* to) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i + kRun <= n; i += kRun * kSampled, count += kRun) std::copy_n(x + i, kRun, to + count);
  return count;
}

template <class T>
struct Interval {
  T from, below;  // in which the end probably is
};

// likely(sum of a bound, the bound's term) -> 1 where the end is from that bound up, -1 where it is not, 0: who knows. Counts
// are of what is above a bound; terms those of -x, so that their sums are of what is below. x may be changed.
template <class T, class Likely>
Interval<T> guess(const FilterKernel<T>& kernel, T* x, const T* terms, std::int64_t n, T least, T largest, Likely likely) {
  const Interval<T> anywhere = {least, SUMEXP_NS::Limits<T>::infinity};
  Interval<T> in = anywhere;
  double aside = 0;  // elements above all of the interval
  for (int round = 0; round < kGuesses; ++round) {
    T bounds[kFilterBounds], of_x[kFilterBounds], bound_terms[kFilterBounds + kFilterPadding];
    double sums[kFilterBounds];
    const T end = in.below <= largest ? in.below : largest;
    for (int k = 0; k < kFilterBounds; ++k) {
      constexpr T step = T(1) / (kFilterBounds + 1);
      bounds[k] = end * (1 - step * T(k + 1)) + in.from * (step * T(k + 1));
      of_x[k] = terms ? -bounds[k] : bounds[k];
    }
    kernel.sums_above(x, terms, n, of_x, sums);
    if (terms) kernel.terms(bounds, kFilterBounds, largest, bound_terms);
    for (int k = 0; k < kFilterBounds; ++k) {
      const int side = likely((sums[k] + aside) * kSampled, terms ? static_cast<double>(bound_terms[k]) : 1.0);
      if (side > 0 && bounds[k] > in.from) in.from = bounds[k];
      if (side < 0 && bounds[k] < in.below) in.below = bounds[k];
    }
    if (!(in.from < in.below)) return anywhere;
    if (terms || round + 1 == kGuesses) continue;
    const FilterSplit split = kernel.split(x, nullptr, n, in.from, in.below, x, nullptr);
    aside += static_cast<double>(split.above_count);
    n = split.inside;
  }
  return in;
}

const FilterKernel<float>& kernel_for(float) { return SUMEXP_IN_USE(filter_kernels_).f32; }
const FilterKernel<double>& kernel_for(double) { return SUMEXP_IN_USE(filter_kernels_).f64; }

}  // namespace

template <class T>
std::size_t filter_scratch(std::int64_t n) {
  return 2 * row_bytes<T>(n) + kBuckets * (sizeof(Mass) + sizeof(std::int64_t));
}

namespace {

// A row that is swept: what end_of_filters asks.
template <class T>
struct SweptRow {
  const FilterKernel<T>& kernel;
  const Scratch<T> scratch;
  const T* const x;
  const std::int64_t n;
  FilterRange<T> all;   // above -inf
  std::int64_t groups;  // whose largest elements wait in scratch.terms
  const T* source;      // has all that is kept, and perhaps more
  std::int64_t count;   // of the source

  End<T> from(T bound) const {
    const FilterRange<T> kept = kernel.range(x, n, bound);
    return {kept.least, kEveryTie, kept.count};
  }

  End<T> first(std::int64_t k, const End<T>& end) {
    const auto wanted = static_cast<Mass>(k);
    const FilterRange<T> range = {end.logit, all.largest, end.kept};
    Interval<T> in = {end.logit, SUMEXP_NS::Limits<T>::infinity};
    if (n > kFew && k <= groups / 8) {
      // k groups have an element from the k-th of their largest up: so have at least k elements, and few more where k is small.
      const FilterRange<T> tops = kernel.range(scratch.terms, groups, end.logit);
      if (k <= tops.count) in.from = select<T>(kernel, scratch.terms, nullptr, groups, tops, wanted, 1, scratch).logit;
    } else if (end.kept > kMany) {
      const std::int64_t sampled = take_sample(x, n, scratch.x);
      const auto likely = [&](double above, double) {
        const double doubt = kDeviations * std::sqrt(kSampled * (above + static_cast<double>(k)));
        return above - doubt > static_cast<double>(k) ? 1 : above + doubt < static_cast<double>(k) ? -1 : 0;
      };
      in = guess<T>(kernel, scratch.x, nullptr, sampled, end.logit, all.largest, likely);
    } else {
      return select<T>(kernel, x, nullptr, n, range, wanted, 1, scratch);
    }
    constexpr T infinity = SUMEXP_NS::Limits<T>::infinity;
    const std::int64_t left = kernel.split(x, nullptr, n, in.from, infinity, scratch.terms, nullptr).inside;
    if (left < k) return select<T>(kernel, x, nullptr, n, range, wanted, 1, scratch);  // the sample was wrong
    source = scratch.terms, count = left;
    const FilterSplit split = kernel.split(source, nullptr, count, in.from, in.below, scratch.x, nullptr);
    if (split.above_count >= k)  // too
      return select<T>(kernel, source, nullptr, count, {in.below, all.largest, count}, wanted, 1, scratch);
    const FilterRange<T> inside = {in.from, std::min(in.below, all.largest), split.inside};
    End<T> found = select<T>(kernel, scratch.x, nullptr, split.inside, inside, wanted - split.above, 1, scratch);
    found.kept += split.above_count;
    return found;
  }

  // What is left, where that is not all, goes to scratch.x.
  void compact(const End<T>& end) {
    if (end.kept == all.count) return;
    const T from = end.ties == kEveryTie ? end.logit : next_above(end.logit);
    constexpr T infinity = SUMEXP_NS::Limits<T>::infinity;
    count = from <= all.largest ? kernel.split(source, nullptr, count, from, infinity, scratch.x, scratch.terms).inside : 0;
    for (; count < end.kept; ++count) scratch.x[count] = end.logit;
    source = scratch.x;
  }

  End<T> share(double p, const End<T>& end) {
    compact(end);
    if (count > 2 * kMany) {
      End<T> found;
      if (share_of_many(p, end, found)) return found;
      source = x, count = n;
      compact(end);
    }
    const Mass total = kernel.terms(source, count, all.largest, scratch.terms);
    const Mass target = SUMEXP_NS::ceil_product(p, total);
    const FilterRange<T> range = {std::max(end.logit, surely_below(all.largest, total - target, count)), all.largest, end.kept};
    End<T> found = select<T>(kernel, source, scratch.terms, count, range, target, kUnit, scratch);
    if (found.logit == end.logit && found.ties == kEveryTie) found.ties = end.ties;  // those that are left of them
    return found;
  }

 private:
  static constexpr double kUnit = sizeof(T) == 4 ? 0x1p-16 : 0x1p212;  // 2^(carry - 88)

  // Sums in double are within `doubt` of the masses; where the end is the same a doubt below the target and above it, it is the
  // end. False: it is not, or what the sample said was wrong.
  bool share_of_many(double p, const End<T>& end, End<T>& found) {
    const double total = kernel.sum(source, count, all.largest), below_end = (1 - p) * total;
    const double doubt = total * static_cast<double>(count) * 0x1p-50;
    if (!(below_end > 64 * doubt)) return false;
    // Elements below a bound with a term t have a mass of below_end about where the end is. A sample's estimate B of their
    // mass, made of terms up to t, has a variance of 8 t B or less.
    const auto likely = [&](double below, double term) {
      const double off = kDeviations * std::sqrt(kSampled * term * std::max(below, below_end)) + kDoubt * below;
      return below + off < below_end ? 1 : below - off > below_end ? -1 : 0;
    };
    const std::int64_t room = (count / kSampled + kRun + kFilterPadding) / 16 * 16;
    T *const sample = scratch.terms, *const sample_terms = sample + room;
    const std::int64_t sampled = take_sample(source, count, sample);
    kernel.terms(sample, sampled, all.largest, sample_terms);
    for (std::int64_t i = 0; i < sampled; ++i) sample[i] = -sample[i];
    const T least = std::max(end.logit, surely_below(all.largest, static_cast<Mass>((below_end - doubt) / kUnit), count));
    const Interval<T> in = guess<T>(kernel, sample, sample_terms, sampled, least, all.largest, likely);

    constexpr T infinity = SUMEXP_NS::Limits<T>::infinity;
    const std::int64_t left = kernel.split(source, nullptr, count, in.from, infinity, scratch.x, scratch.terms).inside;
    double above;
    const FilterSplit split = kernel.split_apart(scratch.x, left, all.largest, in.from, in.below, scratch.x, &above);
    const std::int64_t half = (n / 2 + kFilterPadding) / 16 * 16;
    if (split.inside + kFilterPadding > half) return false;
    const Mass inside = kernel.terms(scratch.x, split.inside, all.largest, scratch.terms);
    const double target = p * total - above;
    if (!(target > 2 * doubt)) return false;
    const Mass low = static_cast<Mass>((target - doubt) / kUnit), high = static_cast<Mass>((target + doubt) / kUnit) + 1;
    if (low == 0 || high > inside) return false;
    const FilterRange<T> range = kernel.range(scratch.x, split.inside, std::numeric_limits<T>::lowest());
    T *const x2 = scratch.x + half, *const terms2 = scratch.terms + half;
    std::copy_n(scratch.x, split.inside, x2);
    std::copy_n(scratch.terms, split.inside, terms2);
    found = select<T>(kernel, x2, terms2, split.inside, range, low, kUnit, scratch);
    const End<T> last = select<T>(kernel, x2, terms2, split.inside, range, high, kUnit, scratch);
    found.kept += split.above_count;
    if (found.logit != last.logit || found.ties != last.ties) return false;
    if (found.logit == end.logit && found.ties == kEveryTie) found.ties = end.ties;
    return true;
  }
};

}  // namespace

template <class T>
Cut<T> filter_cut(const T* x, std::int64_t n, const Filters& filters, void* memory, bool index, const ChunkMaxima& maxima) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const FilterKernel<T>& kernel = kernel_for(T{});
  SweptRow<T> row = {kernel, scratch_of<T>(memory, n), x, n, {}, 0, x, n};
  row.all = kernel.overview(x, n, row.scratch.terms, &row.groups);
  if (!(row.all.largest < infinity) || row.all.count == 0) return {row.all.largest, -1, 0};
  if (maxima.first) {
    const std::int64_t groups = maxima.chunk / kernel.group;
    double* to = maxima.first;
    for (std::int64_t g = 0; g < row.groups; g += groups, to += maxima.step)
      *to = kernel.range(row.scratch.terms + g, std::min(groups, row.groups - g), std::numeric_limits<T>::lowest()).largest;
  }
  const End<T> every = {row.all.least, kEveryTie, row.all.count};
  const End<T> end = SUMEXP_NS::end_of_filters<T>(row, filters, filters.order == FilterOrder::vllm, row.all.largest, every);
  const bool all_ties = end.ties == kEveryTie && !index;
  return {end.logit + T(0), all_ties ? n - 1 : kernel.find(x, n, end.logit, end.ties), end.kept};
}

template std::size_t filter_scratch<float>(std::int64_t);
template std::size_t filter_scratch<double>(std::int64_t);
template Cut<float> filter_cut(const float*, std::int64_t, const Filters&, void*, bool, const ChunkMaxima&);
template Cut<double> filter_cut(const double*, std::int64_t, const Filters&, void*, bool, const ChunkMaxima&);

}  // namespace sumexp::cpu

namespace sumexp {

namespace {

using cpu::fail;

template <class T>
Status cut_row(const T* x, std::int64_t n, const Filters& filters, FilterCut* cut) {
  const cpu::DefaultFloatingPoint mode;
  cpu::Workspace& workspace = cpu::thread_workspace();
  workspace.reset();
  const cpu::Cut<T> found = cpu::filter_cut(x, n, filters, workspace.take_bytes(cpu::filter_scratch<T>(n)));
  if (!(found.logit < std::numeric_limits<T>::infinity()))
    return fail(Code::invalid_argument, "logits has NaN or +inf, accepted: numbers below +inf");
  if (found.kept == 0)
    return fail(Code::invalid_argument, "logits has nothing above -inf, accepted: rows with something to draw");
  *cut = {found.logit, found.index, found.kept};
  return Status{};
}

}  // namespace

Status filter_cut(DType dtype, const void* logits, std::int64_t n, const Filters& filters, FilterCut* cut) noexcept try {
  if (dtype != DType::f32 && dtype != DType::f64)
    return fail(Code::invalid_argument, "dtype is %d, accepted: float32 and float64", static_cast<int>(dtype));
  if (n < 0) return fail(Code::invalid_argument, "n is %lld, accepted: 0 or more", static_cast<long long>(n));
  if (!cut || (n && !logits)) return fail(Code::invalid_argument, "%s is missing", cut ? "logits" : "cut");
  if (filters.top_p != filters.top_p || filters.min_p != filters.min_p)
    return fail(Code::invalid_argument, "top_p or min_p is NaN, accepted: numbers from 0 to 1");
  if (const Status status = cpu::check_order(filters.order); !status.ok()) return status;
  return dtype == DType::f32 ? cut_row(static_cast<const float*>(logits), n, filters, cut)
                             : cut_row(static_cast<const double*>(logits), n, filters, cut);
} catch (const std::bad_alloc&) {
  return cpu::fail(Code::out_of_memory, "out of memory");
}

}  // namespace sumexp
