// Loops over one contiguous chunk, for any vector type V: each_vector (in memory order) and lane_reduce
// (in the order of numerics/geometry.hpp). A body is called with an index and with how to touch memory
// there: Whole for a full vector, Part for the last, partial one. One body serves both.
#pragma once

#include <type_traits>

#include "../numerics/formats.hpp"
#include "../numerics/geometry.hpp"

namespace sumexp::SUMEXP_NS {

SUMEXP_FN float widen(f16 h) { return to_float(h); }
SUMEXP_FN float widen(bf16 h) { return to_float(h); }
SUMEXP_FN float widen(float x) { return x; }
SUMEXP_FN double widen(double x) { return x; }
SUMEXP_FN void narrow(float x, f16& out) { out = to_f16(x); }
SUMEXP_FN void narrow(float x, bf16& out) { out = to_bf16(x); }
SUMEXP_FN void narrow(float x, float& out) { out = x; }
SUMEXP_FN void narrow(double x, double& out) { out = x; }

// E: the elements in memory, of V's own type or a 16-bit format.
struct Whole {
  template <class V, class E>
  SUMEXP_FN V load(const E* p, ElementOf<V>) const {
    return V::load(p);
  }
  template <class V, class E>
  SUMEXP_FN void store(E* p, V x) const {
    V::store(p, x);
  }
};
struct Part {
  int n;
  template <class V, class E>
  SUMEXP_FN V load(const E* p, ElementOf<V> fill) const {
    if constexpr (std::is_same_v<E, ElementOf<V>>) {
      return V::load_part(p, n, fill);
    } else {
      E all[V::W], filler;
      narrow(fill, filler);
      for (int i = 0; i < V::W; ++i) all[i] = filler;
      memcpy(all, p, static_cast<std::size_t>(n) * sizeof(E));
      return V::load(all);
    }
  }
  template <class V, class E>
  SUMEXP_FN void store(E* p, V x) const {
    if constexpr (std::is_same_v<E, ElementOf<V>>) {
      V::store_part(p, x, n);
    } else {
      E all[V::W];
      V::store(all, x);
      memcpy(p, all, static_cast<std::size_t>(n) * sizeof(E));
    }
  }
};

template <class V, class Body>
SUMEXP_FN void each_vector(std::int64_t count, Body body) {
  std::int64_t i = 0;
  for (; i + V::W <= count; i += V::W) body(i, Whole{});
  if (i < count) body(i, Part{static_cast<int>(count - i)});
}

// Step 2: columns first .. first + width (a power of two) of a chunk's lanes, those there are, fold over neighbours.
// Vector u of column k is at slot k * kVectors + u.
template <int first, int width, class V, int kSums, int kSlots, int kVectors>
SUMEXP_FN void fold_columns(int columns, const V (&slot)[kSlots][kSums], V (&group)[kSums][kVectors]) {
  if constexpr (width == 1) {
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a)
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) group[a][u] = slot[first * kVectors + u][a];
  } else {
    fold_columns<first, width / 2>(columns, slot, group);
    if (columns <= first + width / 2) return;
    V right[kSums][kVectors];
    fold_columns<first + width / 2, width / 2>(columns, slot, right);
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a)
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) group[a][u] = group[a][u] + right[a][u];
  }
}

template <class T>
SUMEXP_FN int column_count(int count) {
  using G = Geometry<T>;
  const int columns = (count + G::kGroup - 1) / G::kGroup;
  return columns < G::kColumns ? columns : G::kColumns;
}

// Steps 1 and 2 of the geometry for `kSums` sums at once: body(acc, i, memory) adds the vector at element
// i of a chunk of `count` elements into acc[0 .. kSums). acc[0] begins at `start`, which is taken off every
// lane again. Leaves the one group of lanes in `group`.
//
// For bodies with much arithmetic, on a chunk that is in the first cache: a lane row's vectors go two by two,
// down all lane rows, so that two chains of additions stay in registers.
template <class V, int kSums, class Body>
SUMEXP_FN void lane_reduce(int count, ElementOf<V> start, V (&group)[kSums][Geometry<ElementOf<V>>::kGroup / V::W],
                           Body body) {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  V slots[G::kLanes / V::W][kSums];
  const int columns = column_count<T>(count);
  if (columns == 0)
    for (int u = 0; u < G::kGroup / V::W; ++u)
      for (int a = 0; a < kSums; ++a) slots[u][a] = V(T(0));
  for (int slot = 0; slot < columns * (G::kGroup / V::W); slot += 2) {
    V acc[2][kSums];
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b)
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) acc[b][a] = V(a == 0 ? start : T(0));
    int i = slot * V::W;
    for (; i + 2 * V::W <= count; i += G::kLanes) {
      body(acc[0], i, Whole{});
      body(acc[1], i + V::W, Whole{});
    }
    if (i + V::W <= count) {
      body(acc[0], i, Whole{});
      if (i + V::W < count) body(acc[1], i + V::W, Part{count - i - V::W});
    } else if (i < count) {
      body(acc[0], i, Part{count - i});
    }
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      acc[b][0] = acc[b][0] - V(start);
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) slots[slot + b][a] = acc[b][a];
    }
  }
  fold_columns<0, G::kColumns>(columns, slots, group);
}

// The same sums for bodies that do little but read: straight through memory, all lanes at once.
template <class V, int kSums, class Body>
SUMEXP_FN void lane_sweep(int count, V (&group)[kSums][Geometry<ElementOf<V>>::kGroup / V::W], Body body) {
  using G = Geometry<ElementOf<V>>;
  constexpr int kSlots = G::kLanes / V::W;
  V slots[kSlots][kSums];
  const int columns = column_count<ElementOf<V>>(count);
  for (int slot = 0; slot < (columns ? columns : 1) * (kSlots / G::kColumns); ++slot)
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a) slots[slot][a] = V(ElementOf<V>(0));
  int i = 0;
  for (; i + G::kLanes <= count; i += G::kLanes)
#pragma GCC unroll 16
    for (int slot = 0; slot < kSlots; ++slot) body(slots[slot], i + slot * V::W, Whole{});
  int slot = 0;
  for (; i + V::W <= count; i += V::W) body(slots[slot++], i, Whole{});
  if (i < count) body(slots[slot], i, Part{count - i});
  fold_columns<0, G::kColumns>(columns, slots, group);
}

// Step 3: the members of a group, widened, fold by halves.
template <int h, class D>
SUMEXP_FN DD<D> slide_down(DD<D> x) {
  return {slide_down<h>(x.hi), slide_down<h>(x.lo)};
}
SUMEXP_FN double first_lane(F64 x) { return lane0(x); }
SUMEXP_FN DD<double> first_lane(DD<F64> x) { return {lane0(x.hi), lane0(x.lo)}; }

template <int h, class E>
SUMEXP_FN auto fold_halves(E x) {
  if constexpr (h == 0) {
    return first_lane(x);
  } else {
    return fold_halves<h / 2>(x + slide_down<h>(x));
  }
}
template <class E, int n>
SUMEXP_FN auto fold_members(E (&member)[n]) {
#pragma GCC unroll 4
  for (int h = n / 2; h > 0; h /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < h; ++i) member[i] = member[i] + member[i + h];
  return fold_halves<F64::W / 2>(member[0]);
}

template <int kVectors>
SUMEXP_FN double fold_group(const F32 (&a)[kVectors], const F32 (&b)[kVectors]) {
  F64 member[2 * kVectors];
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u) {
    const Twin<F64> w = WideOf<F32>::from(a[u], b[u]);
    member[2 * u] = w.a, member[2 * u + 1] = w.b;
  }
  return fold_members(member);
}
template <int kVectors>
SUMEXP_FN DD<double> fold_group(const F64 (&a)[kVectors], const F64 (&b)[kVectors]) {
  DD<F64> member[kVectors];
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u) member[u] = two_sum(a[u], b[u]);
  return fold_members(member);
}
// a single sum
template <class V, int kVectors>
SUMEXP_FN Wide<ElementOf<V>> fold_group(const V (&a)[kVectors]) {
  V zero[kVectors];
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u) zero[u] = V(ElementOf<V>(0));
  return fold_group(a, zero);
}

}  // namespace sumexp::SUMEXP_NS
