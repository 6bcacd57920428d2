// Between a caller's arrays and the kernels, which know only contiguous rows of float or double: packing
// gathers a piece of some rows (any strides, 16-bit formats), unpacking scatters results. Pieces are chunk-sized and stay in
// the cache; no array is ever copied whole.
#pragma once

#include "columns.hpp"
#include "kernel.hpp"
#include "left_out.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::Dim;
using cpu::kLineBytes;
using cpu::Plan;

// One row's elements [first, first + count) of operand k to contiguous T.
template <class V, class S>
void pack_row(const Plan& plan, int k, const char* row, std::int64_t first, int count, void* at) {
  auto* const to = static_cast<ElementOf<V>*>(at);
  cpu::each_run(plan, k, first, count,
                [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) SUMEXP_INLINE {
                  const char* p = row + offset;
                  std::int64_t j = 0;
                  if (stride == sizeof(S))
                    for (; j + V::W <= run; j += V::W) V::store(to + i + j, V::load(reinterpret_cast<const S*>(p) + j));
                  for (; j < run; ++j) to[i + j] = widen(read<S>(p + j * stride));
                });
}

// Of a packed piece of a row; `mask` is that row's.
template <class V>
void leave_out(const Plan& plan, const char* mask, std::int64_t first, int count, double value, void* at) {
  using T = ElementOf<V>;
  cpu::each_run(plan, cpu::kWhere, first, count,
                [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) {
                  leave_out_masked(mask + offset, stride, run, static_cast<T>(value), static_cast<T*>(at) + i);
                });
}

// Of packed columns; `mask` is the first row's, the next one `step` bytes on. A mask's elements are far from each other, and
// next to those of other rows: they are read once for all.
template <class V>
void leave_out_of_columns(const char* mask, std::int64_t stride, std::int64_t step, int rows, int count, double value, void* at,
                          std::int64_t pitch) {
  using T = ElementOf<V>;
  constexpr int kRows = 16, kBlock = 64;
  char of[kRows][kBlock];
  for (int i = 0; i < count; i += kBlock) {
    const int block = count - i < kBlock ? count - i : kBlock;
    for (int b = 0; b < rows; b += kRows) {
      const int some = rows - b < kRows ? rows - b : kRows;
      for (int j = 0; j < block; ++j)
        for (int r = 0; r < some; ++r) of[r][j] = mask[(i + j) * stride + (b + r) * step];
      for (int r = 0; r < some; ++r)
        leave_out_masked(of[r], 1, block, static_cast<T>(value), static_cast<T*>(at) + (b + r) * pitch + i);
    }
  }
}

template <class V, class S>
void unpack_row(const Plan& plan, int k, char* row, std::int64_t first, int count, const void* at) {
  const auto* const from = static_cast<const ElementOf<V>*>(at);
  cpu::each_run(plan, k, first, count,
                [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) SUMEXP_INLINE {
                  char* p = row + offset;
                  std::int64_t j = 0;
                  if (stride == sizeof(S))
                    for (; j + V::W <= run; j += V::W) V::store(reinterpret_cast<S*>(p) + j, V::load(from + i + j));
                  for (; j < run; ++j) write<S>(p + j * stride, from[i + j]);
                });
}

// Rows that lie side by side: element i of row b is at first_row + i*stride + b*sizeof(S). Rows go to to + b*pitch.
// Squares of W x W are transposed in registers, where rows are whole squares. The lines of the next rows are
// prefetched: they are on other pages than their neighbours here, where the hardware does not look.
template <class V, class S>
void pack_columns(const char* first_row, std::int64_t stride, int rows, int count, void* at, std::int64_t pitch) {
  auto* const to = static_cast<ElementOf<V>*>(at);
  int i = 0;
#if SUMEXP_REGISTERS
  if (rows % V::W == 0)
    for (; i + V::W <= count; i += V::W)
      for (int b0 = 0; b0 < rows; b0 += V::W) {
        const char* p = first_row + i * stride + b0 * sizeof(S);
        V square[V::W];
#pragma GCC unroll 16
        for (int j = 0; j < V::W; ++j) {
          square[j] = V::load(reinterpret_cast<const S*>(p + j * stride));
          __builtin_prefetch(p + j * stride + rows * sizeof(S), 0, 2);
        }
        transpose(square);
#pragma GCC unroll 16
        for (int b = 0; b < V::W; ++b) V::store(to + (b0 + b) * pitch + i, square[b]);
      }
#endif
  for (; i < count; ++i)
    for (int b = 0; b < rows; ++b) to[b * pitch + i] = widen(read<S>(first_row + i * stride + b * sizeof(S)));
}

template <class V, class S>
void unpack_columns(char* first_row, std::int64_t stride, int rows, int count, const void* at, std::int64_t pitch,
                    [[maybe_unused]] bool stream) {
  const auto* const from = static_cast<const ElementOf<V>*>(at);
  int i = 0;
#if SUMEXP_REGISTERS
  if (rows % V::W == 0)
    for (; i + V::W <= count; i += V::W) {
      V square[kLineBytes / sizeof(S) / V::W][V::W];
      for (int g = 0; g < rows / V::W; ++g) {
#pragma GCC unroll 16
        for (int b = 0; b < V::W; ++b) square[g][b] = V::load(from + (g * V::W + b) * pitch + i);
        transpose(square[g]);
      }
      for (int j = 0; j < V::W; ++j)  // whole lines, one after the other
        for (int g = 0; g < rows / V::W; ++g)
          put_vector<V, S>(first_row + (i + j) * stride + g * V::W * sizeof(S), square[g][j], stream);
    }
#endif
  for (; i < count; ++i)
    for (int b = 0; b < rows; ++b) write<S>(first_row + i * stride + b * sizeof(S), from[b * pitch + i]);
}

// x / T, rounded once: softmax(x, temperature=T) has the bytes of softmax(x / T). Where T is infinite every finite x gives 0.
// False where a finite x has a quotient that is not: the row is one for divide_apart.
template <class V>
bool divide(double temperature, std::int64_t count, void* at) {
  using T = ElementOf<V>;
  T* const x = static_cast<T*>(at);
  const V divisor = V(static_cast<T>(temperature)), zero = V(T(0));
  if (temperature >= 1.0) {
    const bool vanish = temperature == Limits<double>::infinity;
    each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + i, T(0));
      memory.store(x + i, vanish ? pick(unordered(v * zero), v, zero) : v / divisor);
    });
    return true;
  }
  bool overflows = false;
  each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, T(0)), quotient = v / divisor;
    if (const int infinite = ::sumexp::SUMEXP_NS::count(unordered(quotient * zero)))
      overflows |= infinite != ::sumexp::SUMEXP_NS::count(unordered(v * zero));
    memory.store(x + i, quotient);
  });
  return !overflows;
}
// (x - m) / T, m the row's largest element: what a row is shifted by changes no result. Halved, the difference cannot overflow.
template <class V>
void divide_apart(double temperature, const void* maximum, std::int64_t count, void* at) {
  using T = ElementOf<V>;
  T* const x = static_cast<T*>(at);
  const V divisor = V(static_cast<T>(temperature)), half = V(T(0.5)), two = V(T(2));
  const V m = V(*static_cast<const T*>(maximum)) * half;
  each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    const V v = memory.template load<V>(x + i, T(0)) * half - m;
    memory.store(x + i, two * (v / divisor));
  });
}
// m becomes the largest of it and x. NaN are passed over.
template <class V>
void largest_element(const void* from, std::int64_t count, void* maximum) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(from);
  V best = V(*static_cast<const T*>(maximum));
  each_vector<V>(count, [&](std::int64_t i, auto memory)
                            SUMEXP_INLINE { best = larger(memory.template load<V>(x + i, -Limits<T>::infinity), best); });
  *static_cast<T*>(maximum) = largest(best);
}

#if SUMEXP_REGISTERS
// W elements of a row, `stride` bytes apart; only `left` where these are fewer
template <class V, class S>
SUMEXP_FN V part_of_row(const char* p, std::int64_t stride, int left) {
  using T = ElementOf<V>;
  if (stride == sizeof(S)) {
    if (left >= V::W) return V::load(reinterpret_cast<const S*>(p));
    if constexpr (std::is_same_v<S, T>) return V::load_part(reinterpret_cast<const T*>(p), left, T(0));
  }
  T lanes[V::W] = {};
  for (int i = 0; i < V::W && i < left; ++i) lanes[i] = widen(read<S>(p + i * stride));
  return V::load(lanes);
}
template <class V, class S>
SUMEXP_FN void put_part(char* p, std::int64_t stride, V x, int left, bool stream) {
  using T = ElementOf<V>;
  if (stride == sizeof(S)) {
    if (left >= V::W) return put_vector<V, S>(p, x, stream);
    if constexpr (std::is_same_v<S, T>) return V::store_part(reinterpret_cast<T*>(p), x, left);
  }
  T lanes[V::W];
  V::store(lanes, x);
  for (int i = 0; i < V::W && i < left; ++i) write<S>(p + i * stride, lanes[i]);
}

template <class V, class S>
void load_tile(RowsAt rows, std::int64_t stride, int count, int n, void* to) {
  V* const columns = static_cast<V*>(to);
  for (int j = 0; j < n; j += V::W) {
    V square[V::W];
    const char* p = rows.first + j * stride;
#pragma GCC unroll 16
    for (int b = 0; b < V::W; ++b) {
      square[b] = part_of_row<V, S>(p, stride, n - j);
      __builtin_prefetch(p + cpu::kTiles * V::W * rows.step, 0, 2);
      if (b + 1 < count) p += rows.step;  // lanes past the last row repeat it, and are not written back
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i) columns[j + i] = square[i];
  }
}
template <class V, class S>
void store_tile(RowsAt rows, std::int64_t stride, int count, int n, const void* from, bool stream) {
  const V* const columns = static_cast<const V*>(from);
  for (int j = 0; j < n; j += V::W) {
    V square[V::W];
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i) square[i] = columns[j + i];
    transpose(square);
    char* p = rows.first + j * stride;
    for (int b = 0; b < count; ++b, p += rows.step) put_part<V, S>(p, stride, square[b], n - j, stream);
  }
}

template <class V, class S>
void load_columns(const cpu::Columns& at, int operand, std::int64_t first, int count, void* to, std::int64_t pitch,
                  void* tops) {
  V *const buffer = static_cast<V*>(to), *const top = static_cast<V*>(tops);
  if (!tops)
    return each_element<V, S, 1>(at, operand, first, count,
                                 [=](int j, int t, const V* v) SUMEXP_INLINE { buffer[t * pitch + j] = v[0]; });
  for (int t = 0; t < at.tiles; ++t) top[t] = V(-Limits<ElementOf<V>>::infinity);
  each_element<V, S, 1>(at, operand, first, count, [=](int j, int t, const V* v) SUMEXP_INLINE {
    buffer[t * pitch + j] = v[0];
    top[t] = larger(v[0], top[t]);
  });
}
template <class V, class S>
void store_columns(const cpu::Columns& at, std::int64_t first, int count, const void* from, std::int64_t pitch) {
  const V* const buffer = static_cast<const V*>(from);
  const ColumnResults<V, S> out(at, first);
  for (int j = 0; j < count; ++j)
    for (int t = 0; t < at.tiles; ++t) out.put(j, t, buffer[t * pitch + j]);
}
#endif

template <class V, class S>
constexpr cpu::Moves moves_of() {
  cpu::Moves moves = {V::W,
                      pack_row<V, S>,
                      unpack_row<V, S>,
                      leave_out<V>,
                      divide<V>,
                      divide_apart<V>,
                      largest_element<V>,
                      pack_columns<V, S>,
                      unpack_columns<V, S>,
                      leave_out_of_columns<V>,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};
#if SUMEXP_REGISTERS
  moves.load_tile = load_tile<V, S>, moves.store_tile = store_tile<V, S>;
  moves.load_columns = load_columns<V, S>, moves.store_columns = store_columns<V, S>;
#endif
  return moves;
}

}  // namespace sumexp::SUMEXP_NS
