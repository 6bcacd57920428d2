// Between a caller's arrays and the kernels, which know only contiguous rows of float or double: packing
// gathers a piece of some rows (any strides, 16-bit formats, mask, temperature), unpacking scatters results.
// Pieces are chunk-sized and stay in the cache; no array is ever copied whole.
#pragma once

#include "../numerics/formats.hpp"
#include "lanes.hpp"
#include "plan.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::Dim;
using cpu::Plan;

inline constexpr int kLineBytes = 64;  // of a cache line

template <class S>
SUMEXP_FN S read(const char* p) {
  S s;
  memcpy(&s, p, sizeof(S));
  return s;
}

template <class S, class T>
SUMEXP_FN void write(char* p, T value) {
  S s;
  narrow(value, s);
  memcpy(p, &s, sizeof(S));
}

// One value a row, of `rows` rows (V::W or fewer) that are `step` bytes apart; the lanes beyond repeat the last.
template <class V, class S>
SUMEXP_FN V load_rows(const char* p, std::int64_t step, int rows) {
  ElementOf<V> lanes[V::W];
  for (int b = 0; b < V::W; ++b) lanes[b] = widen(read<S>(p + (b < rows ? b : rows - 1) * step));
  return V::load(lanes);
}
template <class V, class S>
SUMEXP_FN void store_rows(char* p, std::int64_t step, int rows, V values) {
  ElementOf<V> lanes[V::W];
  V::store(lanes, values);
  for (int b = 0; b < rows; ++b) write<S>(p + b * step, lanes[b]);
}

// Calls body(offset, stride, i, count) for each straight run of elements [first, first + count) of a row,
// i counted from `first`; offset and stride are operand k's.
template <class Body>
SUMEXP_FN void each_run(const Plan& plan, int k, std::int64_t first, std::int64_t count, Body body) {
  if (plan.row_dims <= 1) {
    const std::int64_t stride = plan.row_dims ? plan.row[0].stride[k] : 0;
    body(first * stride, stride, std::int64_t(0), count);
    return;
  }
  const Dim& inner = plan.row[plan.row_dims - 1];
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t element = first + i;
    std::int64_t rest = element / inner.size, offset = element % inner.size * inner.stride[k];
    for (int d = plan.row_dims - 2; d >= 0; --d) {
      offset += rest % plan.row[d].size * plan.row[d].stride[k];
      rest /= plan.row[d].size;
    }
    const std::int64_t left = inner.size - element % inner.size, run = count - i < left ? count - i : left;
    body(offset, inner.stride[k], i, run);
    i += run;
  }
}

// One row's elements [first, first + count) of operand k to contiguous T.
template <class V, class S>
void pack_row(const Plan& plan, int k, const char* row, std::int64_t first, int count, ElementOf<V>* to) {
  each_run(plan, k, first, count, [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) {
    const char* p = row + offset;
    std::int64_t j = 0;
    if (stride == sizeof(S))
      for (; j + V::W <= run; j += V::W) V::store(to + i + j, V::load(reinterpret_cast<const S*>(p) + j));
    for (; j < run; ++j) to[i + j] = widen(read<S>(p + j * stride));
  });
}

template <class V, class S>
void unpack_row(const Plan& plan, int k, char* row, std::int64_t first, int count, const ElementOf<V>* from) {
  each_run(plan, k, first, count, [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) {
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
void pack_columns(const char* first_row, std::int64_t stride, int rows, int count, ElementOf<V>* to,
                  std::int64_t pitch) {
  int i = 0;
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
  for (; i < count; ++i)
    for (int b = 0; b < rows; ++b) to[b * pitch + i] = widen(read<S>(first_row + i * stride + b * sizeof(S)));
}

// A vector of results, around the cache if `stream` says so and it may.
template <class V, class S>
SUMEXP_FN void put_vector(char* p, V x, bool stream) {
  S* const to = reinterpret_cast<S*>(p);
  if (stream && reinterpret_cast<std::uintptr_t>(p) % (V::W * sizeof(S)) == 0) return V::stream(to, x);
  V::store(to, x);
}

template <class V, class S>
void unpack_columns(char* first_row, std::int64_t stride, int rows, int count, const ElementOf<V>* from,
                    std::int64_t pitch, bool stream) {
  int i = 0;
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
  for (; i < count; ++i)
    for (int b = 0; b < rows; ++b) write<S>(first_row + i * stride + b * sizeof(S), from[b * pitch + i]);
}

// Left-out elements become `absent`: logits of -inf, which no result can tell from their absence, and weights of 0.
template <class T>
void apply_where(const Plan& plan, const char* mask_row, std::int64_t first, int count, T* x, T absent) {
  each_run(plan, cpu::kWhere, first, count, [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) {
    for (std::int64_t j = 0; j < run; ++j)
      if (!mask_row[offset + j * stride]) x[i + j] = absent;
  });
}

// x / T, rounded once: softmax(x, temperature=T) has the bytes of softmax(x / T).
template <class V>
void apply_temperature(double temperature, int count, ElementOf<V>* x) {
  using T = ElementOf<V>;
  const V divisor = V(static_cast<T>(temperature));
  each_vector<V>(count, [&](int i, auto memory) {
    memory.store(x + i, memory.template load<V>(x + i, T(0)) / divisor);
  });
}

}  // namespace sumexp::SUMEXP_NS
