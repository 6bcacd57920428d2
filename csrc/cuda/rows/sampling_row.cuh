// What is drawn from: the elements of a row, and the states of its chunks, by a warp.
#pragma once

#include "../../ops/sampling.hpp"
#include "../exp_chunk.cuh"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {

template <class T>
struct SampledRow {
  enum class Scale { none, divide, vanish, apart };

  const char *x, *mask;
  std::int64_t n, stride, mask_stride;
  DType dtype;
  Scale scale;
  bool late, cut;
  T divisor, half_largest;  // the latter of Scale::apart: half of the row's largest element
  double cut_logit;
  std::int64_t cut_index;
  const std::uint32_t* taken;  // marks of what is not drawn again, or null

  SUMEXP_DEVICE T given(std::int64_t j) const {
    if (mask && !mask[j * mask_stride]) return -Limits<T>::infinity;
    const char* const p = x + j * stride;
    if constexpr (sizeof(T) == 4) {
      if (dtype == DType::f16) return widen(*reinterpret_cast<const f16*>(p));
      if (dtype == DType::bf16) return widen(*reinterpret_cast<const bf16*>(p));
    }
    return *reinterpret_cast<const T*>(p);
  }
  // overflows: set where a finite x has a quotient that is not
  SUMEXP_DEVICE T scaled(T v, bool& overflows) const {
    if (scale == Scale::none) return v;
    if (scale == Scale::vanish) return is_finite(v) ? T(0) : v;
    if (scale == Scale::apart) return T(2) * ((v * T(0.5) - half_largest) / divisor);
    const T quotient = v / divisor;
    overflows = overflows || (!is_finite(quotient) && is_finite(v));
    return quotient;
  }
  SUMEXP_DEVICE T left(T v, std::int64_t j) const {
    const T bound = static_cast<T>(cut_logit);
    return v > bound || (v == bound && j <= cut_index) || v != v ? v : -Limits<T>::infinity;
  }
  SUMEXP_DEVICE bool is_taken(std::int64_t j) const { return (taken[j / 32] >> (j % 32)) & 1; }
  // What is drawn from.
  SUMEXP_DEVICE T element(std::int64_t j, bool& overflows) const {
    T v = given(j);
    if (!late) v = scaled(v, overflows);
    if (cut) v = left(v, j);
    if (late) v = scaled(v, overflows);
    return taken && is_taken(j) ? -Limits<T>::infinity : v;
  }
  // The row as it is given, with its mask.
  SUMEXP_DEVICE SampledRow raw() const {
    SampledRow row = *this;
    row.scale = Scale::none, row.cut = false, row.taken = nullptr;
    return row;
  }
};

// Elements of 16 bits in the places of floats: four neighbours a thread.
template <class S>
SUMEXP_DEVICE void load_halves(const char* p, std::int64_t stride, int count, float (&v)[8][Tile<float>::kValues]) {
  const bool packs = stride == 2 && reinterpret_cast<std::uintptr_t>(p) % 8 == 0;
#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int first = 0; first < Tile<float>::kValues; first += 4) {
      const int at = element_of<float>(r, first);
      if (packs && at + 4 <= count) {
        const std::uint64_t pack = *reinterpret_cast<const std::uint64_t*>(p + 2 * at);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[r][first + e] = widen(S{static_cast<std::uint16_t>(pack >> (16 * e))});
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          v[r][first + e] =
              at + e < count ? widen(*reinterpret_cast<const S*>(p + (at + e) * stride)) : -Limits<float>::infinity;
      }
    }
}

struct ChunkFacts {
  bool overflows;
  int kept;  // elements above -inf of this thread
};

// The state of chunk c, by a warp. Terms are FullTerms, of 16-bit rows too.
template <class T>
__device__ __attribute__((noinline)) ExpState<T> reduce_sampled(const SampledRow<T>& row, std::int64_t c, ChunkFacts& facts) {
  constexpr int kValues = Tile<T>::kValues;
  const std::int64_t first = c * Geometry<T>::kChunk;
  const int count = chunk_size<T>(row.n, c);
  const char* const p = row.x + first * row.stride;
  T v[8][kValues];
  if constexpr (sizeof(T) == 4) {
    if (row.dtype == DType::f16) load_halves<f16>(p, row.stride, count, v);
    else if (row.dtype == DType::bf16) load_halves<bf16>(p, row.stride, count, v);
    else load_chunk<T, 8>(p, row.stride, count, v, -Limits<T>::infinity);
  } else {
    load_chunk<T, 8>(p, row.stride, count, v, -Limits<T>::infinity);
  }
  const auto each = [&](auto change) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
      for (int i = 0; i < kValues; ++i) v[r][i] = change(v[r][i], element_of<T>(r, i));
  };
  if (row.mask) {
    const char* const mask = row.mask + first * row.mask_stride;
    each([&](T x, int i) { return i < count && !mask[i * row.mask_stride] ? -Limits<T>::infinity : x; });
  }
#pragma unroll 1
  for (int step = 0; step < 2; ++step) {
    if (step == int(row.late) && row.scale != SampledRow<T>::Scale::none)
      each([&](T x, int) { return row.scaled(x, facts.overflows); });
    if (step == 0 && row.cut) each([&](T x, int i) { return row.left(x, first + i); });
  }
  if (row.taken) each([&](T x, int i) { return i < count && row.is_taken(first + i) ? -Limits<T>::infinity : x; });
#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int i = 0; i < kValues; ++i) facts.kept += v[r][i] > -Limits<T>::infinity;
  return exp_chunk<T, true, false>(v);
}

}  // namespace sumexp::SUMEXP_NS
