// Results of a chunk to memory, one value a row from and to memory, and a row's numbers in all lanes.
#pragma once

#include "lanes.hpp"

namespace sumexp::SUMEXP_NS {

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
  S lanes[V::W];
  V::store(lanes, values);
  if (step == sizeof(S)) {
    memcpy(p, lanes, static_cast<std::size_t>(rows) * sizeof(S));
  } else {
    for (int b = 0; b < rows; ++b) memcpy(p + b * step, lanes + b, sizeof(S));
  }
}

// Where a chunk of results goes: past the cache (stream) when the plan says so. Loads are unaligned,
// so only the head of the destination needs care.
template <class V, class E, class Body>
SUMEXP_FN void store_chunk(E* out, int count, bool stream, Body body) {
  if (!V::kRegister || !stream) {
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE { memory.store(out + i, body(i, memory)); });
    return;
  }
  constexpr std::uintptr_t bytes = V::W * sizeof(E);
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(out) % bytes;
  int i = past ? static_cast<int>((bytes - past) / sizeof(E)) : 0;
  if (i > count || past % sizeof(E)) i = count;  // too short, or never aligned: plain stores
  int j = 0;
  for (; j + V::W <= i; j += V::W) V::store(out + j, body(j, Whole{}));
  if (j < i) Part{i - j}.store(out + j, body(j, Part{i - j}));
  for (; i + V::W <= count; i += V::W) V::stream(out + i, body(i, Whole{}));
  if (i < count) Part{count - i}.store(out + i, body(i, Part{count - i}));
}

template <class V, class E>
SUMEXP_FN void fill_chunk(E* out, int count, ElementOf<V> value) {
  store_chunk<V>(out, count, false, [&](int, auto) SUMEXP_INLINE { return V(value); });
}

// A vector of results, around the cache if `stream` says so and it may.
template <class V, class S>
SUMEXP_FN void put_vector(char* p, V x, bool stream) {
  S* const to = reinterpret_cast<S*>(p);
  if (stream && reinterpret_cast<std::uintptr_t>(p) % (V::W * sizeof(S)) == 0) return V::stream(to, x);
  V::store(to, x);
}

// -- a row's numbers: structs of nothing but V (or nothing) ---------------------------------------------------

template <class V, class Row>
inline constexpr int kNumbers = std::is_empty_v<Row> ? 0 : int(sizeof(Row) / sizeof(V));

// Lane b of each vector of `row`, in all lanes.
template <class V, class Row>
SUMEXP_FN Row lane_of(const Row& row, int b) {
  using T = ElementOf<V>;
  typedef T __attribute__((may_alias)) Lane;
  Row own;
  if constexpr (!std::is_empty_v<Row>) {
    static_assert(sizeof(Row) % sizeof(V) == 0, "a Row is nothing but vectors");
    const Lane* lanes = reinterpret_cast<const Lane*>(&row) + b;
#pragma GCC unroll 11
    for (int k = 0; k < kNumbers<V, Row>; ++k) reinterpret_cast<V*>(&own)[k] = V(T(lanes[k * V::W]));
  }
  return own;
}
// A row's numbers, each in all lanes.
template <class V, class To, class From>
SUMEXP_FN To broadcast(const From& row) {
  using T = ElementOf<V>;
  To to;
  if constexpr (!std::is_empty_v<To>) {
    static_assert(sizeof(To) / sizeof(V) == sizeof(From) / sizeof(T), "a Row is nothing but numbers");
#pragma GCC unroll 11
    for (int k = 0; k < kNumbers<V, To>; ++k) {
      T number;
      memcpy(&number, reinterpret_cast<const char*>(&row) + k * sizeof(T), sizeof(T));
      reinterpret_cast<V*>(&to)[k] = V(number);
    }
  }
  return to;
}
// Lane b of each vector from from(b), a struct of the same numbers.
template <class V, class To, class From>
SUMEXP_FN To gather_lanes(From from) {
  using T = ElementOf<V>;
  To to;
  if constexpr (!std::is_empty_v<To>) {
    T lanes[kNumbers<V, To>][V::W];
    for (int b = 0; b < V::W; ++b) {
      const auto row = from(b);
      static_assert(sizeof(To) / sizeof(V) == sizeof(row) / sizeof(T), "a Row is nothing but numbers");
      for (int k = 0; k < kNumbers<V, To>; ++k)
        memcpy(&lanes[k][b], reinterpret_cast<const char*>(&row) + k * sizeof(T), sizeof(T));
    }
    for (int k = 0; k < kNumbers<V, To>; ++k) reinterpret_cast<V*>(&to)[k] = V::load(lanes[k]);
  }
  return to;
}

}  // namespace sumexp::SUMEXP_NS
