// The cut of each row by the filters of sampling (ops/filters.hpp): a block takes a row of any length.
//
// The last kept element is found by a radix selection on the ordered bits: a histogram of counts and masses over up to 2^11
// ranges of bits gives the range in which the target is reached, counted from the top, and that range is divided again. Once a
// range has few elements they are listed in shared memory, and the row is not read any more. Where top_k is small that is so at
// once: as many threads have seen an element from the k-th of the threads' largest up.
//
// Counts and masses are integers, added by atomics, so that no order enters. A mass has 89 bits, a sum 120, in four words: who
// makes a word pass 2^32 sees so by what atomic_add returns, and adds 1 to the next.
#pragma once

#include "../../ops/filters.hpp"
#include "filters.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {

inline constexpr int kCutWarps = 16;  // of a block at most
inline constexpr int kCutBits = 11, kCutRanges = 1 << kCutBits;
inline constexpr int kCutList = 2048;

// -- the elements of a row -----------------------------------------------------------------------------------------------

template <class S>
class FilteredRow {
 public:
  using T = Compute<S>;

  SUMEXP_DEVICE FilteredRow(const cuda::FilterRows& rows, std::int64_t row, double temperature) : n(rows.views.n) {
    char* at[2];
    place_row(rows.views, row, at);
    x_ = at[0], mask_ = at[1];
    stride_ = rows.views.stride[0], mask_stride_ = rows.views.stride[1];
    if (temperature == 1.0 || rows.order == FilterOrder::llama_cpp) return;
    divisor_ = static_cast<T>(temperature);
    how_ = temperature > double(sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023) ? kVanish : kDivide;
  }

  const std::int64_t n;

  // Where quotients overflow: differences from the largest element are divided.
  SUMEXP_DEVICE void divide_apart(T largest) { how_ = kApart, half_ = largest * T(0.5); }

  SUMEXP_DEVICE T given(std::int64_t j) const {
    if (mask_ && !mask_[j * mask_stride_]) return -Limits<T>::infinity;
    return widen(*reinterpret_cast<const S*>(x_ + j * stride_));
  }
  // After the temperature.
  SUMEXP_DEVICE T heated(T x) const {
    if (how_ == kPlain) return x;
    if (how_ == kDivide) return x / divisor_;
    if (how_ == kVanish) return is_finite(x) ? T(0) : x;
    return T(2) * ((x * T(0.5) - half_) / divisor_);
  }

  // body(x) for every element as it is given, each by one thread of the block; and for some more, of -inf.
  template <class Body>
  SUMEXP_DEVICE void each(Body body) const {
    constexpr int kPack = Tile<S>::kPack, kAhead = 8 / kPack;
    const bool packs = stride_ == std::int64_t(sizeof(S));
    const int skew = packs ? int(reinterpret_cast<std::uintptr_t>(x_) % 16 / sizeof(S)) : 0;
    const std::int64_t count = (n + skew + kPack - 1) / kPack;
#pragma unroll 1
    for (std::int64_t first = threadIdx.x; first < count; first += kAhead * blockDim.x) {
      T v[kAhead][kPack];
#pragma unroll
      for (int q = 0; q < kAhead; ++q) load((first + q * blockDim.x) * kPack - skew, packs, v[q]);
#pragma unroll
      for (int q = 0; q < kAhead; ++q)
#pragma unroll
        for (int e = 0; e < kPack; ++e) body(v[q][e]);
    }
  }

 private:
  enum How { kPlain, kDivide, kVanish, kApart };

  SUMEXP_DEVICE void load(std::int64_t j, bool packs, T (&v)[Tile<S>::kPack]) const {
    constexpr int kPack = Tile<S>::kPack;
    if (packs && !mask_ && j >= 0 && j + kPack <= n) {
      const auto pack = arch::load16(reinterpret_cast<const S*>(x_) + j);
#pragma unroll
      for (int e = 0; e < kPack; ++e) v[e] = widen(pack.v[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kPack; ++e) v[e] = j + e >= 0 && j + e < n ? given(j + e) : -Limits<T>::infinity;
    }
  }

  const char *x_, *mask_;
  std::int64_t stride_, mask_stride_;
  T divisor_ = T(1), half_ = T(0);
  How how_ = kPlain;
};

// -- what a block shares ---------------------------------------------------------------------------------------------------

template <class T>
struct RowSeen {
  T given_largest, largest, least;        // as given; after the temperature, of those above -inf
  std::int64_t count = 0;                 // of those
  std::int64_t nan = 0, overflowing = 0;  // given; finite, but not their quotients

  SUMEXP_DEVICE RowSeen() : given_largest(-Limits<T>::infinity), largest(given_largest), least(Limits<T>::infinity) {}
};
template <class T>
SUMEXP_DEVICE RowSeen<T> both(const RowSeen<T>& a, const RowSeen<T>& b) {
  RowSeen<T> s;
  s.given_largest = arch::larger(a.given_largest, b.given_largest);
  s.largest = arch::larger(a.largest, b.largest);
  s.least = -arch::larger(-a.least, -b.least);
  s.count = a.count + b.count;
  s.nan = a.nan + b.nan;
  s.overflowing = a.overflowing + b.overflowing;
  return s;
}

// Of elements in some ranges: their masses, or once more their number; and their number.
template <class Sum>
struct Pile {
  Sum mass;
  std::int64_t count;
};
template <class Sum>
SUMEXP_DEVICE Pile<Sum> both(const Pile<Sum>& a, const Pile<Sum>& b) {
  return {a.mass + b.mass, a.count + b.count};
}

// From the lane `step` up; a Mass by halves, since words of a number of 128 bits go through memory.
template <class Sum>
SUMEXP_DEVICE Pile<Sum> from_above(const Pile<Sum>& pile, int step) {
  if constexpr (sizeof(Sum) == sizeof(Mass)) {
    const auto high = arch::shfl_down(static_cast<std::uint64_t>(pile.mass >> 64), step);
    const auto low = arch::shfl_down(static_cast<std::uint64_t>(pile.mass), step);
    return {static_cast<Mass>(high) << 64 | low, arch::shfl_down(pile.count, step)};
  } else {
    return arch::shfl_down(pile, step);
  }
}

template <class T>
struct CutBoard {
  Pile<Mass> masses_of[kCutWarps];
  Pile<std::uint64_t> counts_of[kCutWarps];
  RowSeen<T> seen_by[kCutWarps];
  std::int64_t found_by[kCutWarps];
  // The range with the target: what is left of it there, the elements before, those inside, and which it is.
  Mass rest;
  std::int64_t before, inside, range;
  T list[kCutList];
  unsigned masses[4][kCutRanges], counts[kCutRanges];
  unsigned listed;

  SUMEXP_DEVICE Pile<Mass>* piles(Mass) { return masses_of; }
  SUMEXP_DEVICE Pile<std::uint64_t>* piles(std::uint64_t) { return counts_of; }

  SUMEXP_DEVICE void add(int range, Mass mass) {
    unsigned carry = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint64_t more = static_cast<std::uint32_t>(mass >> 32 * w) + std::uint64_t(carry);
      const auto low = static_cast<unsigned>(more);
      carry = static_cast<unsigned>(more >> 32);
      if (low != 0) carry = low + arch::atomic_add(&masses[w][range], low) < low;
    }
  }
  SUMEXP_DEVICE Pile<Mass> pile(int range, Mass) const {
    Mass mass = 0;
#pragma unroll
    for (int w = 3; w >= 0; --w) mass = mass << 32 | masses[w][range];
    return {mass, counts[range]};
  }
  SUMEXP_DEVICE Pile<std::uint64_t> pile(int range, std::uint64_t) const { return {counts[range], counts[range]}; }
};

// -- the selection -----------------------------------------------------------------------------------------------------------

template <class S>
class CutOfRow {
 public:
  using T = Compute<S>;
  using Key = Bits<T>;
  using End = FilterEnd<T>;

  SUMEXP_DEVICE CutOfRow(const FilteredRow<S>& row, CutBoard<T>& board) : row_(row), board_(board) {}

  // What there is to choose from. False: NaN or +inf, or nothing above -inf.
  SUMEXP_DEVICE bool look(End& all) {
    RowSeen<T> seen = sweep();
    if (seen.nan != 0 || !(seen.given_largest < Limits<T>::infinity)) return false;
    if (seen.overflowing != 0) {
      row_.divide_apart(seen.given_largest);
      seen = sweep();
    }
    if (seen.count == 0) return false;
    largest_ = seen.largest;
    all = {seen.least, kEveryTie, seen.count};
    return true;
  }
  SUMEXP_DEVICE T largest() const { return largest_; }

  // What a temperature of 0 keeps: the lowest index among the largest.
  SUMEXP_DEVICE cuda::RowCut largest_only() {
    const RowSeen<T> seen = sweep();
    if (seen.nan != 0 || !is_finite(seen.given_largest)) return cuda::RowCut{-Limits<double>::infinity, -1, 0};
    return {static_cast<double>(seen.given_largest + T(0)), find(seen.given_largest, 1), 1};
  }

  SUMEXP_DEVICE End from(T bound) {
    RowSeen<T> mine;
    row_.each([&](T given) {
      const T x = row_.heated(given);
      if (!(x >= bound)) return;
      mine.least = x < mine.least ? x : mine.least;
      ++mine.count;
    });
    const RowSeen<T> kept = over_block(mine);
    return {kept.least, kEveryTie, kept.count};
  }

  SUMEXP_DEVICE End first(std::int64_t k, const End& end) {
    const auto target = static_cast<std::uint64_t>(k);
    if (k > std::int64_t(blockDim.x / 4) || end.kept <= kCutList) return select(bits_of(end.logit), end.kept, target, 1.0, end);
    start_list();
    if (own_largest_ >= end.logit) put(own_largest_);
    listed_ = finish_list();
    if (listed_ < k) return select(bits_of(end.logit), end.kept, target, 1.0, end);
    const Key low = bits_of(select(bits_of(end.logit), listed_, target, 1.0, end, true).logit);
    list(low, bits_of(largest_));
    return select(low, listed_, target, 1.0, end, listed_ <= kCutList);
  }

  SUMEXP_DEVICE End share(double p, const End& end) {
    const Base<T> base = base_of(largest_);
    anchor_ = base.anchor, reduce_ = base.reduce;
    const T reach = largest_ - T(48);  // no mass below: e^-44.4 has none
    return select(bits_of(reach > end.logit ? reach : end.logit), end.kept, Mass{0}, p, end);
  }

  // The place of the which-th element that equals a value, or of the last: the warps look at a stretch of the row each, and
  // then at one of the stretch that has it.
  SUMEXP_DEVICE std::int64_t find(T value, std::int64_t which) {
    std::int64_t first = 0, end = row_.n;
    while (end - first > arch::lane_count) {
      const std::int64_t stretch = (end - first + blockDim.x - 1) / blockDim.x * arch::lane_count;
      const std::int64_t start = first + arch::warp() * stretch, stop = start + stretch < end ? start + stretch : end;
      std::int64_t found = 0;
#pragma unroll 4
      for (std::int64_t j = start + arch::lane(); j < stop; j += arch::lane_count) found += row_.heated(row_.given(j)) == value;
#pragma unroll
      for (int bit = 1; bit < arch::lane_count; bit *= 2) found += arch::shfl_xor(found, bit);
      if (arch::lane() == 0) board_.found_by[arch::warp()] = found;
      arch::block_sync();
      std::int64_t before = 0, before_that = 0;
      int that = 0;
      for (int w = 0; w < warps(); ++w) {
        const std::int64_t here = board_.found_by[w];
        if (here > 0 && before < which) that = w, before_that = before;
        before += here;
      }
      arch::block_sync();
      first += that * stretch;
      end = first + stretch < end ? first + stretch : end;
      which -= before_that;
    }
    const std::int64_t j = first + arch::lane();
    unsigned votes = arch::ballot(j < end && row_.heated(row_.given(j)) == value);
    for (std::int64_t i = 1; i < which && (votes & (votes - 1)); ++i) votes &= votes - 1;
    return first + bit_length(votes & (0u - votes)) - 1;
  }

 private:
  SUMEXP_DEVICE RowSeen<T> sweep() {
    RowSeen<T> mine;
    row_.each([&](T given) {
      const T x = row_.heated(given);
      mine.given_largest = arch::larger(mine.given_largest, given);
      mine.nan += given != given;
      mine.overflowing += is_finite(given) && !is_finite(x);
      if (!is_finite(x)) return;
      mine.largest = arch::larger(mine.largest, x);
      mine.least = x < mine.least ? x : mine.least;
      ++mine.count;
    });
    own_largest_ = mine.largest;
    return over_block(mine);
  }
  SUMEXP_DEVICE RowSeen<T> over_block(RowSeen<T> v) {
#pragma unroll
    for (int bit = 1; bit < arch::lane_count; bit *= 2) v = both(v, arch::shfl_xor(v, bit));
    if (arch::lane() == 0) board_.seen_by[arch::warp()] = v;
    arch::block_sync();
    v = board_.seen_by[0];
    for (int w = 1; w < warps(); ++w) v = both(v, board_.seen_by[w]);
    arch::block_sync();
    return v;
  }

  // -- the list: of those that do not fit only the number is known ---------------------------------------------------------

  SUMEXP_DEVICE void start_list() {
    if (threadIdx.x == 0) board_.listed = 0;
    arch::block_sync();
  }
  SUMEXP_DEVICE void put(T x) {
    const unsigned at = arch::atomic_add(&board_.listed, 1u);
    if (at < kCutList) board_.list[at] = x;
  }
  SUMEXP_DEVICE std::int64_t finish_list() {
    arch::block_sync();
    const std::int64_t count = board_.listed;
    arch::block_sync();
    return count;
  }
  SUMEXP_DEVICE void list(Key low, Key high) {
    start_list();
    row_.each([&](T given) {
      const T x = row_.heated(given);
      const Key key = bits_of(x);
      if (key >= low && key <= high) put(x);
    });
    listed_ = finish_list();
  }

  // -- radix selection ------------------------------------------------------------------------------------------------------

  SUMEXP_DEVICE Mass mass_of_element(T x) const { return mass_of_term(mass_term(x, anchor_, reduce_)); }

  // The first element with which a target is reached: a number of elements, or p of the mass of those that are left; of
  // `inside` or fewer from `low` up. Of the elements at end.logit only end.ties are left.
  template <class Sum>
  SUMEXP_DEVICE End select(Key low, std::int64_t inside, Sum target, double p, const End& end, bool listed = false) {
    constexpr bool kMasses = sizeof(Sum) == sizeof(Mass);
    const Key end_key = bits_of(end.logit);
    Key high = bits_of(largest_);
    std::int64_t before = 0;
#pragma unroll 1
    for (bool whole = true;; whole = false) {
      const bool ends = end.ties != kEveryTie && low == end_key;  // those elements are counted apart
      const Key least = low + (ends ? 1 : 0);
      if (!listed && inside <= kCutList) list(least, high), listed = true;
      const int bits = bit_length(high - low), shift = bits > kCutBits ? bits - kCutBits : 0;
      const int ranges = int((high - low) >> shift) + 1;
      for (int r = int(threadIdx.x); r < ranges; r += int(blockDim.x)) {
        board_.counts[r] = 0;
        if constexpr (kMasses)
          for (int w = 0; w < 4; ++w) board_.masses[w][r] = 0;
      }
      arch::block_sync();
      const auto count = [&](T x) {
        const Key key = bits_of(x);
        if (key < least || key > high) return;
        const int range = int((key - low) >> shift);
        arch::atomic_add(&board_.counts[range], 1u);
        if constexpr (kMasses) board_.add(range, mass_of_element(x));
      };
      if (listed)
        for (int i = int(threadIdx.x); i < listed_; i += int(blockDim.x)) count(board_.list[i]);
      else row_.each([&](T given) { count(row_.heated(given)); });
      if (ends && threadIdx.x == 0) {
        arch::atomic_add(&board_.counts[0], static_cast<unsigned>(end.ties));
        if constexpr (kMasses) board_.add(0, mass_of_element(end.logit) * static_cast<Mass>(end.ties));
      }
      arch::block_sync();
      choose(ranges, target, whole, p);
      target = static_cast<Sum>(board_.rest);
      before += board_.before;
      inside = board_.inside;
      low += static_cast<Key>(board_.range) << shift;
      if (shift == 0) {
        const T logit = from_bits<T>(low);
        const std::int64_t ties = ties_that_reach(target, kMasses ? mass_of_element(logit) : Mass{1});
        return {logit, ties, before + ties};
      }
      const Key span = (Key{1} << shift) - 1;
      high = high - low < span ? high : low + span;
    }
  }

  // The range in which the target is reached, from the last down.
  template <class Sum>
  SUMEXP_DEVICE void choose(int ranges, Sum target, bool whole, double p) {
    constexpr bool kMasses = sizeof(Sum) == sizeof(Mass);
    const int own = (ranges + int(blockDim.x) - 1) / int(blockDim.x), first = int(threadIdx.x) * own;
    const int last = first + own < ranges ? first + own : ranges;
    Pile<Sum> mine = {0, 0};
    for (int r = first; r < last; ++r) mine = both(mine, board_.pile(r, Sum{}));
    Pile<Sum> up = mine;  // and those of higher lanes
#pragma unroll
    for (int step = 1; step < arch::lane_count; step *= 2) {
      const Pile<Sum> other = from_above(up, step);
      if (arch::lane() + step < arch::lane_count) up = both(up, other);
    }
    Pile<Sum>* const piles = board_.piles(Sum{});
    if (arch::lane() == 0) piles[arch::warp()] = up;
    arch::block_sync();
    Pile<Sum> total = {0, 0}, above = {up.mass - mine.mass, up.count - mine.count};
    for (int w = 0; w < warps(); ++w) {
      const Pile<Sum> pile = piles[w];
      total = both(total, pile);
      if (w > arch::warp()) above = both(above, pile);
    }
    if constexpr (kMasses)
      if (whole) target = ceil_product(p, total.mass);
    if (above.mass < target && target <= above.mass + mine.mass) {
      int r = last - 1;
      Pile<Sum> pile = board_.pile(r, Sum{});
      while (above.mass + pile.mass < target) {
        above = both(above, pile);
        pile = board_.pile(--r, Sum{});
      }
      board_.range = r;
      board_.rest = target - above.mass;
      board_.before = above.count;
      board_.inside = pile.count;
    }
    arch::block_sync();
  }

  FilteredRow<S> row_;
  CutBoard<T>& board_;
  T largest_ = T(0), own_largest_ = T(0);
  T anchor_ = T(0);
  Reduction<T> reduce_ = {T(0), T(0)};
  std::int64_t listed_ = 0;
};

template <class T>
SUMEXP_DEVICE T option_of(const PerRow<T>& values, std::int64_t row, T absent) {
  return values.data ? values.data[row * values.step] : absent;
}

template <class S>
__global__ void __launch_bounds__(kCutWarps* arch::lane_count, 1)
    find_cuts_of_rows(SUMEXP_PARAMETER cuda::FilterRows rows, cuda::RowCut* cuts) {
  using T = Compute<S>;
  auto& board = *arch::dynamic_shared<CutBoard<T>>();
  each_row(rows.views.rows, [&](std::int64_t row) {
    const double temperature = option_of(rows.temperature, row, 1.0);
    const bool greedy = static_cast<T>(temperature) == T(0);
    Filters filters;
    filters.top_k = option_of(rows.top_k, row, std::int64_t{0});
    filters.top_p = option_of(rows.top_p, row, 1.0);
    filters.min_p = option_of(rows.min_p, row, 0.0);
    CutOfRow<S> cut(FilteredRow<S>(rows, row, greedy ? 1.0 : temperature), board);
    FilterEnd<T> end;
    cuda::RowCut result = {-Limits<double>::infinity, -1, 0};
    if (greedy) {
      result = cut.largest_only();
    } else if (cut.look(end)) {
      result.kept = end.kept;
      if (filters.top_k >= 1 || filters.top_p < 1 || filters.min_p > 0) {
        end = end_of_filters(cut, filters, rows.order == FilterOrder::vllm, cut.largest(), end);
        result = {static_cast<double>(end.logit + T(0)), cut.find(end.logit, end.ties), end.kept};
      }
    }
    if (threadIdx.x == 0) cuts[row] = result;
  });
}

template <class S>
cudaError_t FindCuts<S>::run(const cuda::FilterRows& rows, cuda::RowCut* cuts, cudaStream_t stream) {
  arch::Launch how;
  how.grid = dim3(unsigned(rows.views.rows < 0x7fffffff ? rows.views.rows : 0x7fffffff));
  how.block = dim3((rows.views.n > 2 * kCutList ? kCutWarps : kCutWarps / 4) * arch::lane_count);
  how.dynamic_shared = sizeof(CutBoard<Compute<S>>);
  how.stream = stream;
  return arch::launch(find_cuts_of_rows<S>, how, rows, cuts);
}

}  // namespace sumexp::SUMEXP_NS
