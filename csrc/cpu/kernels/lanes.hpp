// Loops over one contiguous chunk, for any vector type V: each_vector (in memory order) and lane_reduce
// (in the order of numerics/geometry.hpp). A body is called with an index and with how to touch memory
// there: Whole for a full vector, Part for the last, partial one. One body serves both.
#pragma once

#include <type_traits>

#include "../../numerics/formats.hpp"
#include "../../numerics/geometry.hpp"
#include "../simd/unrolled.hpp"

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

// For unrolled vectors, one after the other in memory: all are whole but the last.
template <class Last>
struct Line {
  Last last;
  template <class A, class E>
  SUMEXP_FN A load(const E* p, ElementOf<A> fill) const {
    using V = typename A::Member;
    A x;
#pragma GCC unroll 4
    for (int j = 0; j < A::kCount - 1; ++j) x.at[j] = Whole{}.load<V>(p + j * V::W, fill);
    x.at[A::kCount - 1] = last.template load<V>(p + A::W - V::W, fill);
    return x;
  }
  template <class A, class E>
  SUMEXP_FN void store(E* p, const A& x) const {
    using V = typename A::Member;
#pragma GCC unroll 4
    for (int j = 0; j < A::kCount - 1; ++j) Whole{}.store(p + j * V::W, x.at[j]);
    last.store(p + A::W - V::W, x.at[A::kCount - 1]);
  }
};

template <class V, class Body>
SUMEXP_FN void each_vector(std::int64_t count, Body body) {
  std::int64_t i = 0;
  for (; i + V::W <= count; i += V::W) body(i, Whole{});
  if (i < count) body(i, Part{static_cast<int>(count - i)});
}

// Step 2: columns first .. first + width (a power of two) of a chunk's lanes, those there are, fold over neighbours.
// column(k, group) gives column k.
template <int first, int width, class V, int kSums, int kVectors, class Column>
SUMEXP_FN void fold_columns(int columns, V (&group)[kSums][kVectors], Column column) {
  if constexpr (width == 1) {
    column(first, group);
  } else {
    fold_columns<first, width / 2>(columns, group, column);
    if (columns <= first + width / 2) return;
    V right[kSums][kVectors];
    fold_columns<first + width / 2, width / 2>(columns, right, column);
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a)
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) group[a][u] = group[a][u] + right[a][u];
  }
}
// Vector u of column k is at slot k * kVectors + u.
template <class V, int kSums, int kSlots, int kVectors>
SUMEXP_FN void fold_slots(int columns, V (&slot)[kSlots][kSums], V (&group)[kSums][kVectors]) {
  if constexpr (V::kRegister) {
    fold_columns<0, kSlots / kVectors>(columns, group, [&](int k, V(&to)[kSums][kVectors]) SUMEXP_INLINE {
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a)
#pragma GCC unroll 4
        for (int u = 0; u < kVectors; ++u) to[a][u] = slot[k * kVectors + u][a];
    });
  } else {  // the same tree, in memory
    for (int step = 1; step < kSlots / kVectors; step *= 2)
      for (int k = 0; k + step < columns; k += 2 * step)
        for (int u = 0; u < kVectors; ++u)
          for (int a = 0; a < kSums; ++a)
            slot[k * kVectors + u][a] = slot[k * kVectors + u][a] + slot[(k + step) * kVectors + u][a];
    for (int u = 0; u < kVectors; ++u)
      for (int a = 0; a < kSums; ++a) group[a][u] = slot[u][a];
  }
}

template <class T>
SUMEXP_FN int column_count(int count) {
  using G = Geometry<T>;
  const int columns = (count + G::kGroup - 1) / G::kGroup;
  return columns < G::kColumns ? columns : G::kColumns;
}

struct Nothing {
  SUMEXP_FN void operator()(int, int) const {}
};

// Steps 1 and 2 of the geometry for `kSums` sums at once: body(acc, i, memory) adds the vector, or unrolled vectors, at
// element i of a chunk of `count` elements into acc[0 .. kSums). acc[0] begins at `start`, which is taken off every
// lane again. Leaves the one group of lanes in `group`.
//
// For bodies with much arithmetic, on a chunk that is in the first cache: a lane row's vectors go V::kUnroll at a time,
// down all lane rows, so that their sums stay in registers; if they are columns, these fold before they are put aside. After
// each such step, between(first, some): the chunk's elements in order, a share of a full chunk at a time.
template <class V, int kSums, class Body, class Between = Nothing>
SUMEXP_FN void lane_reduce(int count, ElementOf<V> start, V (&group)[kSums][Geometry<ElementOf<V>>::kGroup / V::W], Body body,
                           Between between = {}) {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  using Together = Unrolled<V, V::kUnroll>;
  constexpr int kVectors = G::kGroup / V::W, kFolded = V::kUnroll > kVectors ? 2 : 1, kKept = V::kUnroll / kFolded;
  static_assert(V::kUnroll <= 2);
  V slots[G::kLanes / Together::W * kKept][kSums];
  const int columns = column_count<T>(count);
  if (columns == 0)
    for (int u = 0; u < kVectors; ++u)
      for (int a = 0; a < kSums; ++a) slots[u][a] = V(T(0));
  for (int first = 0, slot = 0; first < columns * G::kGroup; first += Together::W, slot += kKept) {
    Together acc[kSums];
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a) acc[a] = Together(a == 0 ? start : T(0));
    int i = first;
    for (; i + Together::W <= count; i += G::kLanes) body(acc, i, Line<Whole>{});
    if (V::kUnroll == 2 && i + V::W < count) {
      body(acc, i, Line<Part>{{count - i - V::W}});
    } else if (i < count) {
      V one[kSums];
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) one[a] = acc[a].at[0];
      if (i + V::W == count) {
        body(one, i, Whole{});
      } else {
        body(one, i, Part{count - i});
      }
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) acc[a].at[0] = one[a];
    }
    if (const int left = count - first * G::kLaneRows; left > 0)
      between(first * G::kLaneRows, left < Together::W * G::kLaneRows ? left : Together::W * G::kLaneRows);
    acc[0] = acc[0] - Together(start);
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a) {
      if constexpr (kFolded == 2) {
        slots[slot][a] = acc[a].at[0] + acc[a].at[1];
      } else {
#pragma GCC unroll 2
        for (int b = 0; b < kKept; ++b) slots[slot + b][a] = acc[a].at[b];
      }
    }
  }
  fold_slots((columns + kFolded - 1) / kFolded, slots, group);
}

// The same sums for bodies that do much: one copy of the body in a loop, the sums in memory.
template <class V, int kSums, class Body>
SUMEXP_FN void lane_loop(int count, V (&group)[kSums][Geometry<ElementOf<V>>::kGroup / V::W], Body body) {
  using G = Geometry<ElementOf<V>>;
  constexpr int kSlots = G::kLanes / V::W, kVectors = G::kGroup / V::W;
  const int columns = column_count<ElementOf<V>>(count);
  V slots[kSlots][kSums];
  for (int slot = 0; slot < (columns ? columns : 1) * kVectors; ++slot)
    for (int a = 0; a < kSums; ++a) slots[slot][a] = V(ElementOf<V>(0));
  int i = 0;
  for (; i + V::W <= count; i += V::W) body(slots[i / V::W % kSlots], i, Whole{});
  if (i < count) body(slots[i / V::W % kSlots], i, Part{count - i});
  fold_slots(columns, slots, group);
}

// The same sums for bodies that do little but read: straight through memory, all lanes at once. Where a lane has but
// one element, nothing waits in memory. kMuch: the body does more, and copies of it only there gain anything, if registers hold
// what it needs.
template <class V, int kSums, bool kMuch = false, class Body>
SUMEXP_FN void lane_sweep(int count, V (&group)[kSums][Geometry<ElementOf<V>>::kGroup / V::W], Body body) {
  using G = Geometry<ElementOf<V>>;
  constexpr int kSlots = G::kLanes / V::W, kVectors = G::kGroup / V::W;
  const V zero = V(ElementOf<V>(0));
  constexpr bool kFewRegisters = V::kUnroll == 1;
  if constexpr (!V::kRegister || (kMuch && kFewRegisters)) return lane_loop<V, kSums>(count, group, body);
  if (count < G::kLanes) {
    const int whole = count / G::kGroup;
    V last[kSums][kVectors];  // the column that is not full
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      V acc[kSums];
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) acc[a] = zero;
      const int i = whole * G::kGroup + u * V::W;
      if (kVectors > 1 && i + V::W <= count) {
        body(acc, i, Whole{});
      } else if (i < count) {
        body(acc, i, Part{count - i});
      }
#pragma GCC unroll 4
      for (int a = 0; a < kSums; ++a) last[a][u] = acc[a];
    }
    fold_columns<0, G::kColumns>(column_count<ElementOf<V>>(count), group, [&](int k, V(&to)[kSums][kVectors]) SUMEXP_INLINE {
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) {
        V acc[kSums];
#pragma GCC unroll 4
        for (int a = 0; a < kSums; ++a) acc[a] = k < whole ? zero : last[a][u];
        if (k < whole) body(acc, k * G::kGroup + u * V::W, Whole{});
#pragma GCC unroll 4
        for (int a = 0; a < kSums; ++a) to[a][u] = acc[a];
      }
    });
    return;
  }
  if constexpr (kMuch) return lane_loop<V, kSums>(count, group, body);
  V slots[kSlots][kSums];
  for (int slot = 0; slot < kSlots; ++slot)
#pragma GCC unroll 4
    for (int a = 0; a < kSums; ++a) slots[slot][a] = zero;
  constexpr int kStep = kFewRegisters ? 4 : kSlots;
  int i = 0;
  for (; i + G::kLanes <= count; i += G::kLanes)
    for (int first = 0; first < kSlots; first += kStep)
#pragma GCC unroll 16
      for (int slot = first; slot < first + kStep; ++slot) body(slots[slot], i + slot * V::W, Whole{});
  int slot = 0;
  for (; i + V::W <= count; i += V::W) body(slots[slot++], i, Whole{});
  if (i < count) body(slots[slot], i, Part{count - i});
  fold_slots(G::kColumns, slots, group);
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
SUMEXP_FN E fold_vectors(E (&member)[n]) {
#pragma GCC unroll 4
  for (int h = n / 2; h > 0; h /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < h; ++i) member[i] = member[i] + member[i + h];
  return member[0];
}
template <class D>
SUMEXP_FN void put_members(Twin<D> w, D* to) {
  to[0] = w.a, to[1] = w.b;
}
template <class D>
SUMEXP_FN void put_members(D w, D* to) {  // a pair of doubles
  to[0] = w;
}

// W vectors of W lanes fold by halves together: lane b of the result is what the lanes of row[b] are joined to. Each
// step halves the vectors, which takes half of the shuffles of a transposition.
template <int h, class D>
SUMEXP_FN void halves(DD<D> a, DD<D> b, DD<D>& low, DD<D>& high) {
  halves<h>(a.hi, b.hi, low.hi, high.hi);
  halves<h>(a.lo, b.lo, low.lo, high.lo);
}
template <int h = 1, int k = 0, class E, int W, class Join>
SUMEXP_FN E fold_rows(const E (&row)[W], Join join) {
  if constexpr (h == W) {
    constexpr int blocks = W == F64::W ? F64::W / 2 : W / 4;  // of 128 bits: the order in which halves leaves rows
    return row[W / blocks * (k % blocks) + k / blocks];
  } else {
    E low, high;
    halves<h>(fold_rows<2 * h, k>(row, join), fold_rows<2 * h, k + W / (2 * h)>(row, join), low, high);
    return join(low, high);
  }
}

// A group of lanes, widened (hi, or hi + lo) and folded to one vector of the wide type.
template <class V>
using WideMembers = std::conditional_t<sizeof(ElementOf<V>) == 4, F64, DD<F64>>;

template <class V, int kVectors, class... Low>
SUMEXP_FN WideMembers<V> group_members(const V (&hi)[kVectors], const Low (&... lo)[kVectors]) {
  constexpr int each = V::W / F64::W;
  WideMembers<V> member[each * kVectors];
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u) put_members(WideOf<V>::from(hi[u], lo[u]...), member + each * u);
  return fold_vectors(member);
}
template <class V, int kVectors, class... Low>
SUMEXP_FN Wide<ElementOf<V>> fold_group(const V (&hi)[kVectors], const Low (&... lo)[kVectors]) {
  return fold_halves<F64::W / 2>(group_members(hi, lo...)) + WideOf<ElementOf<V>>::constant(0);  // no sum is -0
}

// The one or two sums of a row's terms (TermsOf).
template <class V, int kSums, int kVectors>
SUMEXP_FN WideMembers<V> term_members(const V (&sums)[kSums][kVectors]) {
  if constexpr (kSums == 2) return group_members(sums[0], sums[1]);
  else return group_members(sums[0]);
}
template <class V, int kSums, int kVectors>
SUMEXP_FN Wide<ElementOf<V>> fold_terms(const V (&sums)[kSums][kVectors]) {
  if constexpr (kSums == 2) return fold_group(sums[0], sums[1]);
  else return fold_group(sums[0]);
}

}  // namespace sumexp::SUMEXP_NS
