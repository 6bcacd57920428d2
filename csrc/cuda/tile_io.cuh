// Tile I/O: between global memory and a warp's registers, one chunk at a time.
//
// A warp holds a chunk as kRows lane rows of Tile<S>::kValues values a thread, in the compute type. Elements
// past the end arrive as `fill` and are never stored.
#pragma once

#include "formats.cuh"
#include "job.hpp"

namespace sumexp::SUMEXP_NS {

using cuda::Access;
using cuda::Job;
using cuda::JobDim;

// Whether rows lie side by side; of packed ones the compiler knows that they do not.
template <bool kPacked>
SUMEXP_DEVICE bool in_columns(const Job& job) {
  return !kPacked && job.access == Access::columns;
}

// The byte offsets of a row's start, by operand.
SUMEXP_DEVICE void row_offsets(const Job& job, std::int64_t row, std::int64_t (&offset)[cuda::kOperands]) {
#pragma unroll
  for (int k = 0; k < cuda::kOperands; ++k) offset[k] = 0;
  const auto along = [&](const JobDim& dim, std::int64_t i) {
#pragma unroll
    for (int k = 0; k < cuda::kOperands; ++k) offset[k] += i * dim.stride[k];
  };
#pragma unroll 1
  for (int d = job.batch_dims - 1; d > 0; --d) {
    const std::int64_t outer = row / job.batch[d].size;
    along(job.batch[d], row - outer * job.batch[d].size);
    row = outer;
  }
  if (job.batch_dims > 0) along(job.batch[0], row);
}

// Bytes from the first element of a row of operand k to the i-th.
SUMEXP_DEVICE std::int64_t along_row(const Job& job, int k, std::int64_t i) {
  std::int64_t offset = 0;
#pragma unroll 1
  for (int d = job.row_dims - 1; d >= 0; --d) {
    const std::int64_t outer = d > 0 ? i / job.row[d].size : 0;
    offset += (i - outer * job.row[d].size) * job.row[d].stride[k];
    i = outer;
  }
  return offset;
}
// The index at any address.
SUMEXP_DEVICE std::int64_t read_index(const char* at) {
  std::int64_t index;
  memcpy(&index, at, sizeof(index));
  return index;
}
SUMEXP_DEVICE bool is_index(const Job& job, std::int64_t i) { return i >= 0 && i < job.n; }

// What may have to be done to an element when it is loaded: kernels have code for no more. kMasked: a mask leaves it out;
// kDivided: logits are divided by a temperature; kWeighted: logits and weights are what weigh() makes of both.
template <bool kMasked_, bool kDivided_, bool kWeighted_>
struct InputsOf {
  static constexpr bool kMasked = kMasked_, kDivided = kDivided_, kWeighted = kWeighted_;
};

// kPacked: Access::packed; the other ways go through shared memory, a chunk per warp, and share their code. kColumns:
// rows may lie side by side.
template <class S, class Inputs, int kRows, bool kPacked, bool kColumns = !kPacked>
class TileIo {
 public:
  using T = Compute<S>;
  using L = Tile<S>;
  using G = Geometry<T>;
  using W = Stage<T>;
  static constexpr int kStaged = kRows * G::kLanes * (Inputs::kWeighted ? 2 : 1);  // elements of a warp's stage

  // `stage`: the block's shared memory, stage_bytes of it. `again`: inputs will be read again soon, so they may stay in
  // the cache.
  SUMEXP_DEVICE TileIo(const Job& job, T* stage, bool again) : job_(job), stage_(stage), again_(again) {}

  static constexpr std::size_t stage_bytes(int warps) {
    return kPacked ? 0 : std::size_t(warps) * W::pitch(kStaged, warps) * sizeof(T);
  }

  // Goes to chunk `chunk` of row `row`. With columns the row is the block's first, and warp w has the one
  // w further on, of `beside` that there are; a warp without a row still helps to fetch the others'.
  SUMEXP_DEVICE void go(std::int64_t row, std::int64_t chunk, int beside) {
    first_ = chunk * G::kChunk;
    beside_ = beside;
    const std::int64_t left = job_.n - first_;
    here_ = left < 0 ? 0 : left < G::kChunk ? int(left) : G::kChunk;
    count_ = columns() && arch::warp() >= beside ? 0 : here_;
    row_offsets(job_, row, offset_);
  }
  SUMEXP_DEVICE int count() const { return count_; }
  // Of the row whose elements this thread fetches, which is the warp's own or, with columns, the fetched_row()-th of the block.
  SUMEXP_DEVICE void divide(Division how, T top) { division_ = how, top_ = top; }
  SUMEXP_DEVICE int fetched_row() const { return columns() ? int(threadIdx.x) % warps() : arch::warp(); }
  // Lane rows of the chunk; with columns of all the block's rows alike.
  SUMEXP_DEVICE int lane_rows() const { return (here_ + G::kLanes - 1) / G::kLanes; }

  // A number of the row: input k, 0 where there is none or no row, or a result.
  template <int k>
  SUMEXP_DEVICE T row_input() const {
    if constexpr (k >= 0) {
      if (count_ > 0) return widen(*row_address(k));
    }
    return T(0);
  }
  SUMEXP_DEVICE void put(int k, T value) const { *row_address(k) = Narrow<S>::from(value); }
  // The row's second result, if one is wanted: by one thread of those that have the row.
  SUMEXP_DEVICE void put_extra(T value) const {
    if (first_ == 0 && count_ > 0 && arch::lane() == 0 && job_.data[cuda::kExtra]) put(cuda::kExtra, quiet(value));
  }

  // Of ops whose row input k is the index of an element of input 0: whether there is such an element, and which it is (NaN
  // where there is none).
  template <int k>
  SUMEXP_DEVICE std::int64_t index() const {
    return count_ > 0 ? read_index(reinterpret_cast<const char*>(row_address(k))) : -1;
  }
  template <int k>
  SUMEXP_DEVICE bool has_index() const {
    return is_index(job_, index<k>());
  }
  template <int k>
  SUMEXP_DEVICE T element_at_index() const {
    const std::int64_t i = index<k>();
    if (!is_index(job_, i)) return Limits<T>::nan();
    return widen(*reinterpret_cast<const S*>(reinterpret_cast<const char*>(row_address(0)) + along_row(job_, 0, i)));
  }
  // Puts a value in the place of that element, where it is in this chunk.
  template <int k>
  SUMEXP_DEVICE void set_at_index(T (&v)[kRows][L::kValues], T value) const {
    const std::int64_t i = index<k>() - first_;
    if (i < 0 || i >= count_) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int e = 0; e < L::kValues; ++e) {
        const int at = r * G::kLanes + e / L::kPack * L::kSpan + arch::lane() * L::kPack + e % L::kPack;
        v[r][e] = at == int(i) ? value : v[r][e];
      }
  }

  // All of the chunk from operand k: v[r][i].
  SUMEXP_DEVICE void load(int k, T (&v)[kRows][L::kValues], T fill) {
    if constexpr (kPacked) {
      load_packs(k, 0, v, fill);
    } else {
      stage_in(k, 0, kRows, fill);
#pragma unroll
      for (int r = 0; r < kRows; ++r) from_stage(r, v[r]);
    }
  }
  // For weighted operations, whose stage holds two chunks: v waits in the second one while operand k is fetched to the first;
  // then both come one lane row at a time.
  SUMEXP_DEVICE void load_beside(int k, const T (&v)[kRows][L::kValues], T fill) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) to_stage(kRows + r, v[r]);
    stage_in(k, 0, kRows, fill);
  }
  SUMEXP_DEVICE void both_rows(int r, T (&v)[L::kValues], T (&loaded)[L::kValues]) const {
    from_stage(kRows + r, v);
    from_stage(r, loaded);
  }

  // kNumbers: no value is NaN, where rows are packed: it need not be asked of each.
  template <bool kNumbers = false>
  SUMEXP_DEVICE void store(const T (&v)[kRows][L::kValues]) {
    if constexpr (kPacked) {
      store_packs<kNumbers>(0, v);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) to_stage(r, v[r]);
      stage_out(0, kRows);
    }
  }

  // Writes a row of NaN at once, if it is one and packed: elsewhere the warps of a block meet in store, all of them there.
  SUMEXP_DEVICE bool wrote_nan(bool nan) {
    if constexpr (kPacked) {
      if (!nan) return false;
      T v[1][L::kValues];
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v[0][i] = Limits<T>::nan();
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) store_packs<false>(r, v);
      return true;
    } else {
      return false;
    }
  }

  // One lane row of it, for operations that do not keep the chunk.
  SUMEXP_DEVICE void load_row(int k, int r, T (&v)[1][L::kValues], T fill) {
    if constexpr (kPacked) {
      load_packs(k, r, v, fill);
    } else {
      stage_in(k, r, 1, fill);
      from_stage(0, v[0]);
    }
  }
  SUMEXP_DEVICE void store_row(int r, const T (&v)[1][L::kValues]) {
    if constexpr (kPacked) {
      store_packs<false>(r, v);
    } else {
      to_stage(0, v[0]);
      stage_out(r, 1);
    }
  }

 private:
  SUMEXP_DEVICE bool columns() const { return kColumns && in_columns<kPacked>(job_); }
  SUMEXP_DEVICE S* row_address(int k) const {
    const std::int64_t over = columns() ? arch::warp() * job_.batch[job_.batch_dims - 1].stride[k] : 0;
    return reinterpret_cast<S*>(job_.data[k] + offset_[k] + over);
  }

  // -- packs: n lane rows from the r-th. At most one pack of a thread is not whole: it goes element by element, on its own ---

  // The pack that ends within the row, as far as this thread has it: pack `q` has `rest` elements, 0 for none.
  struct Tail {
    int q, rest;
    SUMEXP_DEVICE explicit Tail(int left) : q(left / L::kSpan), rest(left % L::kSpan) {
      if (left <= 0 || rest >= L::kPack) rest = 0;
    }
  };
  using N = Narrow<S>;
  using Word = typename N::Word;
  static constexpr int kPerWord = N::kPerWord, kWords = L::kPack / kPerWord;
  using Pack = arch::Pack<Word>;

  SUMEXP_DEVICE Pack load_whole(const S* p) const {
    const Word* const words = reinterpret_cast<const Word*>(p);
    return again_ ? arch::load16(words) : arch::stream_load16(words);
  }

  // Every load is issued before the first value is used.
  template <int n>
  SUMEXP_DEVICE void load_packs(int k, int r, T (&v)[n][L::kValues], T fill) const {
    constexpr int kPacks = n * L::kSpans;
    const int before = r * G::kLanes + arch::lane() * L::kPack, left = count_ - before;
    const S* p = reinterpret_cast<const S*>(job_.data[k] + offset_[k]) + first_ + before;
    Pack pack[kPacks];
    if (count_ - r * G::kLanes >= n * G::kLanes) {
#pragma unroll
      for (int q = 0; q < kPacks; ++q) pack[q] = load_whole(p + q * L::kSpan);
    } else {
      Pack none;
#pragma unroll
      for (int w = 0; w < kWords; ++w) none.v[w] = N::template word<true>(fill, fill);
#pragma unroll
      for (int q = 0; q < kPacks; ++q) pack[q] = left - q * L::kSpan >= L::kPack ? load_whole(p + q * L::kSpan) : none;
      const Tail tail(left);
      if (tail.rest > 0) {
        Pack last = none;
#pragma unroll
        for (int e = 0; e < L::kPack - 1; ++e)
          if (e < tail.rest) last.v[e / kPerWord] = N::replace(last.v[e / kPerWord], e % kPerWord, p[tail.q * L::kSpan + e]);
#pragma unroll
        for (int q = 0; q < kPacks; ++q)
          if (q == tail.q) pack[q] = last;
      }
    }
#pragma unroll
    for (int q = 0; q < kPacks; ++q)
#pragma unroll
      for (int e = 0; e < L::kPack; ++e)
        v[q / L::kSpans][q % L::kSpans * L::kPack + e] = widen(N::element(pack[q].v[e / kPerWord], e % kPerWord));
  }

  template <bool kNumbers, int n>
  SUMEXP_DEVICE void store_packs(int r, const T (&v)[n][L::kValues]) const {
    constexpr int kPacks = n * L::kSpans;
    const int before = r * G::kLanes + arch::lane() * L::kPack, left = count_ - before;
    S* p = reinterpret_cast<S*>(job_.data[cuda::kOut] + offset_[cuda::kOut]) + first_ + before;
    Pack pack[kPacks];
#pragma unroll
    for (int q = 0; q < kPacks; ++q)
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int at = q % L::kSpans * L::kPack + w * kPerWord;
        const T(&row)[L::kValues] = v[q / L::kSpans];
        pack[q].v[w] = N::template word<kNumbers>(row[at], row[at + kPerWord - 1]);
      }
    const auto put = [&](int q) { arch::stream_store16(reinterpret_cast<Word*>(p + q * L::kSpan), pack[q]); };
    if (count_ - r * G::kLanes >= n * G::kLanes) {
#pragma unroll
      for (int q = 0; q < kPacks; ++q) put(q);
    } else {
#pragma unroll
      for (int q = 0; q < kPacks; ++q)
        if (left - q * L::kSpan >= L::kPack) put(q);
      const Tail tail(left);
      if (tail.rest > 0) {
        Pack last = {};
#pragma unroll
        for (int q = 0; q < kPacks; ++q)
          if (q == tail.q) last = pack[q];
#pragma unroll
        for (int e = 0; e < L::kPack - 1; ++e)
          if (e < tail.rest) p[tail.q * L::kSpan + e] = N::element(last.v[e / kPerWord], e % kPerWord);
      }
    }
  }

  // -- through shared memory: `rows` lane rows of a warp, or of all of a block's warps, from the r-th ---
  //
  // A thread reads and writes its own places of the stage (from_stage, to_stage) without waiting for others. It waits
  // after others may have written there (stage_in) or it for them (stage_out), and before it writes over what others may
  // still read (the next stage_in).

  SUMEXP_DEVICE void stage_sync() const {
    if (columns()) {
      arch::block_sync();
    } else {
      arch::warp_sync();
    }
  }
  SUMEXP_DEVICE static int warps() { return int(blockDim.x) / arch::lane_count; }
  SUMEXP_DEVICE T* staged(int warp) const { return stage_ + warp * W::pitch(kStaged, warps()); }

  // Spans are whole lines of the stage and a pack is within one, so the places of L::at add up.
  SUMEXP_DEVICE T* staged_pack(int r, int i) const {
    return staged(arch::warp()) + W::place(arch::lane() * L::kPack) + W::place(r * G::kLanes + i / L::kPack * L::kSpan);
  }
  SUMEXP_DEVICE void from_stage(int r, T (&v)[L::kValues]) const {
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) v[i] = staged_pack(r, i)[i % L::kPack];
  }
  SUMEXP_DEVICE void to_stage(int r, const T (&v)[L::kValues]) {
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) staged_pack(r, i)[i % L::kPack] = v[i];
  }

  // Where an element is: byte offsets of operand k, of the mask, and of the weight or logit that belongs to it.
  struct At {
    std::int64_t own, mask, other;
    SUMEXP_DEVICE void along(std::int64_t i, const JobDim& dim, int k) {
      own += i * dim.stride[k];
      if constexpr (Inputs::kMasked) mask += i * dim.stride[cuda::kWhere];
      if constexpr (Inputs::kWeighted) other += i * dim.stride[1 - (k & 1)];
    }
  };

  // body(where the element is, its place in the stage, is it there) for this thread's share: neighbouring threads take
  // neighbours in memory, along the row or, with columns, across the block's rows.
  template <class Body>
  SUMEXP_DEVICE void each_staged(int k, int r, int rows, Body body) const {
    const int over = columns() ? int(threadIdx.x) % warps() : 0;
    const int first = columns() ? int(threadIdx.x) / warps() : arch::lane();
    const int left = over < beside_ ? here_ - r * G::kLanes : 0;
    const std::int64_t from = first_ + r * G::kLanes;
    T* place = staged(columns() ? over : arch::warp()) + W::place(first);
    At start = {offset_[k], offset_[cuda::kWhere], offset_[1 - (k & 1)]};
    if (over) start.along(over, job_.batch[job_.batch_dims - 1], k);
    if (job_.row_dims <= 1) {
      start.along(from + first, job_.row[0], k);
#pragma unroll 4
      for (int i = first; i < rows * G::kLanes; i += arch::lane_count, place += W::place(arch::lane_count)) {
        body(start, *place, i < left);
        start.along(arch::lane_count, job_.row[0], k);
      }
    } else {  // axes that do not join
#pragma unroll 1
      for (int i = first; i < rows * G::kLanes; i += arch::lane_count, place += W::place(arch::lane_count)) {
        At at = start;
        std::int64_t rest = from + i;
#pragma unroll 1
        for (int d = job_.row_dims - 1; d >= 0; --d) {
          const std::int64_t outer = d > 0 ? rest / job_.row[d].size : 0;
          at.along(rest - outer * job_.row[d].size, job_.row[d], k);
          rest = outer;
        }
        body(at, *place, i < left);
      }
    }
  }

  SUMEXP_DEVICE T element(int k, std::int64_t at) const { return widen(*reinterpret_cast<const S*>(job_.data[k] + at)); }
  // An element as the kernel is to see it.
  SUMEXP_DEVICE T input(int k, const At& at) const {
    if constexpr (Inputs::kMasked) {
      if (job_.data[cuda::kWhere] && !job_.data[cuda::kWhere][at.mask]) return k == 0 ? -Limits<T>::infinity : T(0);
    }
    if constexpr (Inputs::kWeighted) {
      T x = k == 0 ? element(0, at.own) : element(0, at.other), b = k == 0 ? element(1, at.other) : element(1, at.own);
      weigh(x, b);
      return k == 0 ? x : b;
    }
    const T x = element(k, at.own);
    if constexpr (Inputs::kDivided) {
      if (job_.divide && k == 0) return divided(x);
    }
    return x;
  }
  SUMEXP_DEVICE T divided(T x) const { return over_temperature(x, static_cast<T>(job_.temperature), division_, top_); }

  SUMEXP_DEVICE void stage_in(int k, int r, int rows, T fill) {
    if (used_) stage_sync();
    used_ = true;
    each_staged(k, r, rows, [&](const At& at, T& staged, bool there) { staged = there ? input(k, at) : fill; });
    stage_sync();
  }
  SUMEXP_DEVICE void stage_out(int r, int rows) {
    stage_sync();
    each_staged(cuda::kOut, r, rows, [&](const At& at, T& staged, bool there) {
      if (there) *reinterpret_cast<S*>(job_.data[cuda::kOut] + at.own) = Narrow<S>::from(staged);
    });
  }

  const Job& job_;
  T* stage_;
  const bool again_;
  bool used_ = false;
  int count_ = 0, here_ = 0, beside_ = 0;  // elements of this warp's chunk, of any row's, rows of the block
  std::int64_t first_ = 0, offset_[cuda::kOperands];
  Division division_ = Division::quotient;
  T top_ = T(0);  // of Division::apart: the row's maximum
};

}  // namespace sumexp::SUMEXP_NS
