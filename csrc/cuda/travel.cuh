// How elements travel between global memory and a warp's registers, one chunk at a time.
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

// kAgain: the input will be read again soon, so it may stay in the cache. kPacked: Access::packed; the other
// ways go through shared memory, a chunk per warp, and share their code.
template <class S, bool kAgain, bool kPacked, int kRows>
class Travel {
 public:
  using T = Compute<S>;
  using L = Tile<S>;
  using G = Geometry<T>;
  using W = Stage<T>;

  // `stage`: the block's shared memory, stage_bytes of it.
  SUMEXP_DEVICE Travel(const Job& job, T* stage) : job_(job), stage_(stage) {}

  static constexpr std::size_t stage_bytes(int warps) {
    return kPacked ? 0 : std::size_t(warps) * W::pitch(kRows * G::kLanes, warps) * sizeof(T);
  }

  // Goes to chunk `chunk` of row `row`. With columns the row is the block's first, and warp w has the one
  // w further on, of `beside` that there are; a warp without a row still helps to fetch the others'.
  SUMEXP_DEVICE void go(std::int64_t row, std::int64_t chunk, int beside) {
    first_ = chunk * G::kChunk;
    beside_ = beside;
    const std::int64_t left = job_.n - first_;
    count_ = left < G::kChunk ? int(left) : G::kChunk;
    if (left < 0 || (in_columns<kPacked>(job_) && arch::warp() >= beside)) count_ = 0;
#pragma unroll
    for (int k = 0; k < cuda::kOperands; ++k) offset_[k] = 0;
    const auto along = [&](const JobDim& dim, std::int64_t i) {
#pragma unroll
      for (int k = 0; k < cuda::kOperands; ++k) offset_[k] += i * dim.stride[k];
    };
#pragma unroll 1
    for (int d = job_.batch_dims - 1; d > 0; --d) {
      along(job_.batch[d], row % job_.batch[d].size);
      row /= job_.batch[d].size;
    }
    if (job_.batch_dims > 0) along(job_.batch[0], row);
  }
  SUMEXP_DEVICE int count() const { return count_; }

  // A number of the row: an input with one value a row, or a result.
  SUMEXP_DEVICE S* row_value(int k) const {
    const std::int64_t over = in_columns<kPacked>(job_) ? arch::warp() * job_.batch[job_.batch_dims - 1].stride[k] : 0;
    return reinterpret_cast<S*>(job_.data[k] + offset_[k] + over);
  }

  // All of the chunk from operand k: v[r][i].
  SUMEXP_DEVICE void load(int k, T (&v)[kRows][L::kValues], T fill) {
    if constexpr (kPacked) {
      load_packs(k, v, fill);
    } else {
      stage_in(k, 0, kRows, fill);
#pragma unroll
      for (int r = 0; r < kRows; ++r) from_stage(r, v[r]);
      stage_sync();
    }
  }
  // kNumbers: no value is NaN, where rows are packed: it need not be asked of each.
  template <bool kNumbers = false>
  SUMEXP_DEVICE void store(const T (&v)[kRows][L::kValues]) {
    if constexpr (kPacked) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) store_packs<kNumbers>(r, v[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) to_stage(r, v[r]);
      stage_out(0, kRows);
    }
  }

  // Writes a row of NaN at once, if it is one and packed: elsewhere the warps of a block meet in store, all of them there.
  SUMEXP_DEVICE bool wrote_nan(bool nan) {
    if (!kPacked || !nan) return false;
    T v[kRows][L::kValues];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) v[r][i] = Limits<T>::nan();
    store(v);
    return true;
  }

  // One lane row of it, for operations that do not keep the chunk.
  SUMEXP_DEVICE void load_row(int k, int r, T (&v)[L::kValues], T fill) {
    if constexpr (kPacked) {
      const S* p = reinterpret_cast<const S*>(job_.data[k] + offset_[k]) + first_ + r * G::kLanes;
#pragma unroll
      for (int q = 0; q < L::kSpans; ++q) {
        const int at = L::at(q * L::kPack), left = count_ - r * G::kLanes - at;
        const arch::Pack<S> pack = load_pack(p + at, left);
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) v[q * L::kPack + e] = e < left ? widen(pack.v[e]) : fill;
      }
    } else {
      stage_in(k, r, 1, fill);
      from_stage(0, v);
      stage_sync();
    }
  }
  SUMEXP_DEVICE void store_row(int r, const T (&v)[L::kValues]) {
    if constexpr (kPacked) {
      store_packs<false>(r, v);
    } else {
      to_stage(0, v);
      stage_out(r, 1);
    }
  }

 private:
  SUMEXP_DEVICE static arch::Pack<S> load_whole(const S* p) {
    if constexpr (kAgain) {
      return arch::load16(p);
    } else {
      return arch::stream_load16(p);
    }
  }
  // `left` elements from p, at most a pack of them
  SUMEXP_DEVICE static arch::Pack<S> load_pack(const S* p, int left) {
    if (left >= L::kPack) return load_whole(p);
    arch::Pack<S> pack;
#pragma unroll
    for (int e = 0; e < L::kPack; ++e) pack.v[e] = e < left ? p[e] : S{};
    return pack;
  }

  // Every load is issued before the first value is used.
  SUMEXP_DEVICE void load_packs(int k, T (&v)[kRows][L::kValues], T fill) {
    constexpr int kPacks = kRows * L::kSpans;
    const S* p = reinterpret_cast<const S*>(job_.data[k] + offset_[k]) + first_ + arch::lane() * L::kPack;
    const int left = count_ - arch::lane() * L::kPack;
    arch::Pack<S> pack[kPacks];
    const auto unpack = [&](auto there) {
#pragma unroll
      for (int q = 0; q < kPacks; ++q)
#pragma unroll
        for (int e = 0; e < L::kPack; ++e)
          v[q / L::kSpans][q % L::kSpans * L::kPack + e] = there(q, e) ? widen(pack[q].v[e]) : fill;
    };
    if (count_ == kRows * G::kLanes) {  // unpacks on its own: no element is asked whether it is there
#pragma unroll
      for (int q = 0; q < kPacks; ++q) pack[q] = load_whole(p + q * L::kSpan);
      unpack([](int, int) { return true; });
    } else {
#pragma unroll
      for (int q = 0; q < kPacks; ++q) pack[q] = load_pack(p + q * L::kSpan, left - q * L::kSpan);
      unpack([=](int q, int e) { return e < left - q * L::kSpan; });
    }
  }

  template <bool kNumbers>
  SUMEXP_DEVICE void store_packs(int r, const T (&v)[L::kValues]) {
    S* p = reinterpret_cast<S*>(job_.data[cuda::kOut] + offset_[cuda::kOut]) + first_ + r * G::kLanes;
#pragma unroll
    for (int q = 0; q < L::kSpans; ++q) {
      const int at = L::at(q * L::kPack), left = count_ - r * G::kLanes - at;
      arch::Pack<S> pack;
#pragma unroll
      for (int e = 0; e < L::kPack; e += 2) {
        const T a = v[q * L::kPack + e], b = v[q * L::kPack + e + 1];
        S two[2];
        if constexpr (kNumbers) Narrow<S>::numbers(a, b, two);
        else two[0] = Narrow<S>::from(a), two[1] = Narrow<S>::from(b);
        pack.v[e] = two[0], pack.v[e + 1] = two[1];
      }
      if (left >= L::kPack) {
        arch::stream_store16(p + at, pack);
      } else {
#pragma unroll
        for (int e = 0; e < L::kPack - 1; ++e)
          if (e < left) p[at + e] = pack.v[e];
      }
    }
  }

  // -- through shared memory: `rows` lane rows of a warp, or of all of a block's warps, from the r-th ---

  SUMEXP_DEVICE void stage_sync() const {
    if (job_.access == Access::columns) {
      arch::block_sync();
    } else {
      arch::warp_sync();
    }
  }
  SUMEXP_DEVICE static int warps() { return int(blockDim.x) / arch::lane_count; }
  SUMEXP_DEVICE T* staged(int warp) const { return stage_ + warp * W::pitch(kRows * G::kLanes, warps()); }

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

  // body(element of the row, its place in the stage, rows further on, is it there) for this thread's share:
  // neighbouring threads take neighbours in memory, along the row or, with columns, across the block's rows.
  template <class Body>
  SUMEXP_DEVICE void each_staged(int r, int rows, Body body) const {
    const std::int64_t from = first_ + r * G::kLanes;
    const bool columns = job_.access == Access::columns;
    const int over = columns ? int(threadIdx.x) % warps() : 0;
    int i = columns ? int(threadIdx.x) / warps() : arch::lane();
    T* place = staged(columns ? over : arch::warp()) + W::place(i);
#pragma unroll 4
    for (; i < rows * G::kLanes; i += arch::lane_count, place += W::place(arch::lane_count))
      body(from + i, *place, over, over < beside_ && from + i < job_.n);
  }

  // Element i of operand k, in the row `over` further on.
  SUMEXP_DEVICE char* element(int k, std::int64_t i, int over) const {
    std::int64_t offset = offset_[k];
    if (over) offset += over * job_.batch[job_.batch_dims - 1].stride[k];
    for (int d = job_.row_dims - 1; d > 0; --d) {
      offset += i % job_.row[d].size * job_.row[d].stride[k];
      i /= job_.row[d].size;
    }
    if (job_.row_dims > 0) offset += i * job_.row[0].stride[k];
    return job_.data[k] + offset;
  }
  SUMEXP_DEVICE T value(int k, std::int64_t i, int over) const {
    return widen(*reinterpret_cast<const S*>(element(k, i, over)));
  }
  SUMEXP_DEVICE bool is_masked(std::int64_t i, int over) const {
    return job_.data[cuda::kWhere] && !*element(cuda::kWhere, i, over);
  }
  // An element of in0 as the kernel is to see it: left out by the mask or by weight 0, over temperature.
  SUMEXP_DEVICE T logit(std::int64_t i, int over) const {
    if (is_masked(i, over)) return -Limits<T>::infinity;
    if (job_.weighted && value(1, i, over) == T(0)) return -Limits<T>::infinity;
    const T x = value(0, i, over);
    return job_.divide ? x / static_cast<T>(job_.temperature) : x;
  }

  SUMEXP_DEVICE void stage_in(int k, int r, int rows, T fill) {
    each_staged(r, rows, [&](std::int64_t i, T& staged, int over, bool there) {
      staged = !there ? fill : k == 0 ? logit(i, over) : k == 1 && is_masked(i, over) ? T(0) : value(k, i, over);
    });
    stage_sync();
  }
  SUMEXP_DEVICE void stage_out(int r, int rows) {
    stage_sync();
    each_staged(r, rows, [&](std::int64_t i, T& staged, int over, bool there) {
      if (there) *reinterpret_cast<S*>(element(cuda::kOut, i, over)) = Narrow<S>::from(staged);
    });
    stage_sync();
  }

  const Job& job_;
  T* stage_;
  int count_ = 0, beside_ = 0;
  std::int64_t first_ = 0, offset_[cuda::kOperands];
};

}  // namespace sumexp::SUMEXP_NS
