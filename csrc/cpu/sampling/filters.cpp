// Every filter keeps a prefix of one order, so that a sequence of them is a prefix that shrinks. Its end is found by narrowing
// an interval of logits, in vectors, and then by a radix selection on the ordered bits of the few that are left; the place of
// the last of equal elements by a scan. Masses are integers: which way is taken shows in no result.
#include "filters.hpp"

#include <algorithm>
#include <limits>
#include <new>

#include "../../numerics/mass.hpp"
#include "../kernels/filters.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"

namespace sumexp::cpu {

namespace {

using SUMEXP_NS::bit_cast;

// -- ordered bits: integers in the order of the numbers; -0 has those of +0 -----------------------------------------------

template <class T>
struct OrderedBits;
template <>
struct OrderedBits<float> {
  using Bits = std::uint32_t;
};
template <>
struct OrderedBits<double> {
  using Bits = std::uint64_t;
};
template <class T>
using Bits = typename OrderedBits<T>::Bits;
template <class T>
constexpr Bits<T> kSign = Bits<T>{1} << (8 * sizeof(T) - 1);

template <class T>
Bits<T> bits_of(T x) {
  const auto i = bit_cast<Bits<T>>(x + T(0));
  return i & kSign<T> ? ~i : i | kSign<T>;
}
template <class T>
T from_bits(Bits<T> i) {
  return bit_cast<T>(i & kSign<T> ? i & ~kSign<T> : ~i);
}
template <class T>
T next_above(T x) {
  return from_bits<T>(bits_of(x) + 1);
}

// -- thresholds -------------------------------------------------------------------------------------------------------------

// The smallest T that is at least m + log(min_p), but no larger than m.
template <class T>
T lowest_kept(T m, double min_p) {
  const auto sum = SUMEXP_NS::two_sum(static_cast<double>(m), SUMEXP_NS::log_of(min_p));
  T bound = static_cast<T>(sum.hi);
  if (bound < sum.hi || (bound == sum.hi && sum.lo > 0)) bound = next_above(bound);
  return bound < m ? bound : m;
}

// The smallest integer that is at least p times q, and at least 1; p in (0, 1), q below 2^120.
Mass ceil_product(double p, Mass q) {
  if (!(p > 0)) return 1;
  const auto bits = bit_cast<std::uint64_t>(p);
  const int field = static_cast<int>(bits >> 52);
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const Mass a = field ? fraction | std::uint64_t{1} << 52 : fraction;  // p = a 2^-down
  const int down = 1075 - (field ? field : 1);                          // 53 or more
  const Mass low = a * static_cast<std::uint64_t>(q), high = a * (q >> 64) + (low >> 64);
  const auto last = static_cast<std::uint64_t>(low);  // a q = high 2^64 + last
  if (down >= 192) return 1;
  Mass result;
  bool rest;
  if (down >= 64) {
    result = high >> (down - 64);
    rest = last != 0 || (result << (down - 64)) != high;
  } else {
    result = (high << (64 - down)) | (last >> down);
    rest = (last & ((std::uint64_t{1} << down) - 1)) != 0;
  }
  result += rest;
  return result > 0 ? result : 1;
}

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

// The first element, in the order, with which the sum of masses reaches a target: of those equal to `logit`, number `ties`.
template <class T>
struct End {
  T logit;
  std::int64_t ties, kept;
};

int bit_length(std::uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// terms: null where each mass is 1. 0 < target <= the sum of all masses; `before` elements come before these.
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
      const std::int64_t ties = each ? static_cast<std::int64_t>((target + each - 1) / each) : n;
      return {from_bits<T>(least), ties, before + ties};
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

const FilterKernel<float>& kernel_for(float) { return SUMEXP_IN_USE(filter_kernels_).f32; }
const FilterKernel<double>& kernel_for(double) { return SUMEXP_IN_USE(filter_kernels_).f64; }

}  // namespace

template <class T>
std::size_t filter_scratch(std::int64_t n) {
  return 2 * row_bytes<T>(n) + kBuckets * (sizeof(Mass) + sizeof(std::int64_t));
}

template <class T>
Cut<T> filter_cut(const T* x, std::int64_t n, const Filters& filters, void* memory) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const FilterKernel<T>& kernel = kernel_for(T{});
  const Scratch<T> scratch = scratch_of<T>(memory, n);
  std::int64_t groups = 0;
  const FilterRange<T> all = kernel.overview(x, n, scratch.terms, &groups);
  if (all.count == 0 || !(all.largest < infinity)) return {-infinity, -1, 0};
  const std::int64_t every = std::numeric_limits<std::int64_t>::max();
  End<T> end = {all.least, every, all.count};  // ties: `every` for all there are
  const auto apply_min_p = [&] {
    if (!(filters.min_p > 0)) return;
    const T bound = lowest_kept(all.largest, filters.min_p);
    if (bound <= end.logit) return;
    const FilterRange<T> kept = kernel.range(x, n, bound);
    end = {kept.least, every, kept.count};
  };
  if (filters.order == FilterOrder::vllm) apply_min_p();
  const T* source = x;  // has all that is kept, and perhaps more
  std::int64_t count = n;
  if (filters.top_k >= 1 && filters.top_k < end.kept) {
    const auto wanted = static_cast<Mass>(filters.top_k);
    FilterRange<T> range = {end.logit, all.largest, end.kept};
    // k groups have an element from the k-th of their largest up: so have at least k elements, and few more where k is small.
    if (filters.top_k <= groups / 8 && n > kFew) {
      const FilterRange<T> tops = kernel.range(scratch.terms, groups, end.logit);
      if (filters.top_k <= tops.count)
        range.least = select<T>(kernel, scratch.terms, nullptr, groups, tops, wanted, 1, scratch).logit;
      count = kernel.split(x, nullptr, n, range.least, infinity, scratch.x, scratch.terms).inside;
      source = std::copy_n(scratch.x, count, scratch.terms) - count;
      end = select<T>(kernel, scratch.x, nullptr, count, range, wanted, 1, scratch);
    } else {
      end = select<T>(kernel, x, nullptr, n, range, wanted, 1, scratch);
    }
  }
  if (filters.top_p < 1 && end.kept > 1) {
    if (end.kept < all.count) {
      const T from = end.ties == every ? end.logit : next_above(end.logit);
      count = from <= all.largest ? kernel.split(source, nullptr, count, from, infinity, scratch.x, scratch.terms).inside : 0;
      for (; count < end.kept; ++count) scratch.x[count] = end.logit;
      source = scratch.x;
    }
    const Mass total = kernel.terms(source, count, all.largest, scratch.terms);
    const double unit = sizeof(T) == 4 ? 0x1p-16 : 0x1p212;  // 2^(carry - 88)
    const Mass target = ceil_product(filters.top_p, total);
    const FilterRange<T> range = {std::max(end.logit, surely_below(all.largest, total - target, count)), all.largest, end.kept};
    end = select<T>(kernel, source, scratch.terms, count, range, target, unit, scratch);
  }
  if (filters.order != FilterOrder::vllm) apply_min_p();
  return {end.logit + T(0), kernel.find(x, n, end.logit, end.ties), end.kept};
}

template std::size_t filter_scratch<float>(std::int64_t);
template std::size_t filter_scratch<double>(std::int64_t);
template Cut<float> filter_cut(const float*, std::int64_t, const Filters&, void*);
template Cut<double> filter_cut(const double*, std::int64_t, const Filters&, void*);

}  // namespace sumexp::cpu

namespace sumexp {

namespace {

using cpu::fail;

template <class T>
Status cut_row(const T* x, std::int64_t n, const Filters& filters, FilterCut* cut) {
  if (!cpu::kernel_for(T{}).below_infinity(x, n))
    return fail(Code::invalid_argument, "logits: got NaN or +inf; accepted are numbers below +inf");
  const cpu::DefaultFloatingPoint mode;
  cpu::Workspace& workspace = cpu::thread_workspace();
  workspace.reset();
  const cpu::Cut<T> found = cpu::filter_cut(x, n, filters, workspace.take_bytes(cpu::filter_scratch<T>(n)));
  if (found.kept == 0)
    return fail(Code::invalid_argument, "logits: nothing above -inf; accepted are rows with something to draw");
  *cut = {found.logit, found.index, found.kept};
  return Status{};
}

}  // namespace

Status filter_cut(DType dtype, const void* logits, std::int64_t n, const Filters& filters, FilterCut* cut) noexcept try {
  if (dtype != DType::f32 && dtype != DType::f64)
    return fail(Code::invalid_argument, "dtype: got %d; accepted are float32 and float64", static_cast<int>(dtype));
  if (n < 0 || (n > 0 && !logits) || !cut) return fail(Code::invalid_argument, "logits, cut: null, or n below 0");
  if (filters.top_p != filters.top_p || filters.min_p != filters.min_p)
    return fail(Code::invalid_argument, "top_p, min_p: got NaN; accepted are numbers from 0 to 1");
  return dtype == DType::f32 ? cut_row(static_cast<const float*>(logits), n, filters, cut)
                             : cut_row(static_cast<const double*>(logits), n, filters, cut);
} catch (const std::bad_alloc&) {
  return cpu::fail(Code::out_of_memory, "out of memory");
}

}  // namespace sumexp
