// The layout of rows of up to one chunk: every row stays where it is and is reduced to one group of lanes; V::W of these
// fold together (fold_rows), and all that is done once a row (division, logarithm) is done for V::W rows at once. Where
// there are fewer rows, lanes without one repeat the first.
#pragma once

#include "kernel.hpp"
#include "tile.hpp"

namespace sumexp::SUMEXP_NS {

// E: the elements of the rows, of V's own type or a 16-bit format. Count: int, or a constant.
template <class V, class E, int kInputs, class Count>
struct PanelRows {
  using T = ElementOf<V>;
  static constexpr int W = V::W, kVectors = Geometry<T>::kGroup / W;
  // A NaN shows only when terms may have taken the place of x; results of its row are filled in.
  static constexpr bool kToleratesNaN = true;

  const cpu::Panel* at;
  Count count;

  class Cursor {
   public:
    SUMEXP_FN explicit Cursor(const PanelRows& rows) : panel_(*rows.at), terms_(panel_.terms.first) {
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k) in_[k] = panel_.in[k].first;
    }
    SUMEXP_FN void next() {
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k) in_[k] += panel_.in[k].step;
      terms_ += panel_.terms.step;
    }
    SUMEXP_FN const E* in(int k) const { return reinterpret_cast<const E*>(in_[k]); }
    SUMEXP_FN T* terms() const { return reinterpret_cast<T*>(terms_); }

   private:
    const cpu::Panel& panel_;
    const char* in_[kInputs];
    char* terms_;
  };
  // f(b, cursor at row b), one row after the other.
  template <class F>
  SUMEXP_FN void each_row(F f) const {
    Cursor row(*this);
    for (int b = 0; b < at->rows; ++b, row.next()) f(b, row);
  }
  template <class X>
  SUMEXP_FN void repeat_first(X& lane) const {
    for (int b = at->rows; b < W; ++b) lane[b] = lane[0];
  }

  struct Lanes {
    T at[W];
    SUMEXP_FN explicit Lanes(V v) { V::store(at, v); }
  };
  // The members of one group a row.
  class Groups {
   public:
    SUMEXP_FN WideMembers<V>& operator[](int b) SUMEXP_INLINE { return row_[b / F64::W][b % F64::W]; }
    SUMEXP_FN Wide<V> fold() const {
      const auto add = [](auto low, auto high) SUMEXP_INLINE { return low + high; };
      if constexpr (W == F64::W) {
        return fold_rows(row_[0], add);
      } else {
        return {fold_rows(row_[0], add), fold_rows(row_[1], add)};
      }
    }

   private:
    WideMembers<V> row_[W / F64::W][F64::W];
  };

  SUMEXP_FN V largest() const {
    V best[W];
    each_row([&](int b, const Cursor& row) SUMEXP_INLINE { best[b] = lane_max<V>(row.in(0), count); });
    repeat_first(best);
    return fold_rows(best, [](V low, V high) SUMEXP_INLINE { return larger(low, high); });
  }
  SUMEXP_FN V largest_below(V limit) const {
    const Lanes bound(limit);
    V best[W];
    each_row([&](int b, const Cursor& row) SUMEXP_INLINE { best[b] = lane_max_below<V>(row.in(0), count, bound.at[b]); });
    repeat_first(best);
    return fold_rows(best, [](V low, V high) SUMEXP_INLINE { return larger(low, high); });
  }
  template <class Terms, bool kApart, bool kStore, bool kAll>
  SUMEXP_FN Wide<V> sum_terms(V N, V limit, V& counted, V wanted) const {
    const Reduction<V> reduce = reduction_to(N);
    const Lanes shift(reduce.shift), floor(reduce.floor), bound(limit), want(wanted);
    Groups groups;
    T left_out[W];
    each_row([&](int b, const Cursor& row) SUMEXP_INLINE {
      int out = 0;
      if (kAll || want.at[b] != T(0)) {
        V sums[Terms::kSums][kVectors];
        const Reduction<V> to = {V(shift.at[b]), V(floor.at[b])};
        sum_term_lanes<Terms, V, kApart, kStore>(row.in(0), count, to, V(bound.at[b]), out, row.terms(), ToNextRow{at->ahead},
                                                 sums);
        groups[b] = term_members(sums);
      } else {
        groups[b] = WideMembers<V>{};
      }
      left_out[b] = static_cast<T>(out);
    });
    repeat_first(groups), repeat_first(left_out);
    counted = V::load(left_out);
    return groups.fold();
  }
  template <class Op, int pass>
  SUMEXP_FN void sums(RowScalars<V>& row) const {
    Groups groups[Op::kSums];
    each_row([&](int b, const Cursor& cursor) SUMEXP_INLINE {
      const Inputs x(cursor);
      V sums[Op::kSums][kVectors];
      if constexpr (pass == 0) {
        sum_lanes<V, Op, 0>(x.at, count, row, sums);  // looks at no scalar yet
      } else {
        sum_lanes<V, Op, pass>(x.at, count, scalars_of(row, b), sums);
      }
      for (int a = 0; a < Op::kSums; ++a) groups[a][b] = group_members(sums[a]);
    });
    for (int a = 0; a < Op::kSums; ++a) repeat_first(groups[a]), place_sum<Op, pass>(a, groups[a].fold(), row);
  }

  // Lanes among which is the largest element of input k in all rows.
  SUMEXP_FN V largest_lanes(int k) const {
    V top = V(-Limits<T>::infinity);
    each_row([&](int, const Cursor& row) SUMEXP_INLINE {
      each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
        top = larger(memory.template load<V>(row.in(k) + i, -Limits<T>::infinity), top);
      });
    });
    return top;
  }
  // The second sum (kWinnersApart), the first 0, of rows in which no element wins; else false. The shortest rows are looked at
  // before, as their sums take longer than a look, others while they are summed.
  static constexpr int kLookFirst = 64;
  template <class Op>
  SUMEXP_FN bool usual_sum(RowScalars<V>& row) const {
    V top = V(-Limits<T>::infinity);
    if (count > kLookFirst) usual_sum_of<Op>(row, [&](V y) SUMEXP_INLINE { top = larger(y, top); });
    else top = largest_lanes(Op::kLog);
    if (any(wins(top))) return false;
    if (count <= kLookFirst) usual_sum_of<Op>(row, [](V) SUMEXP_INLINE {});
    return true;
  }
  // Both, and the y of each row's winner; false where a row has several. Winners are picked from memory, where they lie: no
  // vector needs to be folded for them.
  template <class Op>
  SUMEXP_FN bool winner_sums(RowScalars<V>& row, V& y) const {
    Groups groups;
    E own[W], of[W];
    bool single = true;
    each_row([&](int b, const Cursor& cursor) SUMEXP_INLINE {
      const Inputs x(cursor);
      V sum[kVectors];
      std::uint64_t lanes = 0;
      int at = 0, vectors = 0;
      lane_sweep<V, 1>(count, reinterpret_cast<V(&)[1][kVectors]>(sum), [&](V* acc, int i, auto memory) SUMEXP_INLINE {
        V v[kInputs];
        load_inputs<V, Op>(x.at, i, memory, v);
        const auto winner = wins(v[Op::kLog]);
        acc[0] = add_left<Op>(acc[0], winner, v);
        const std::uint64_t mine = bits(winner);
        lanes |= mine, at = mine ? i : at, vectors += mine != 0;
      });
      groups[b] = group_members(sum);
      const int place = at + __builtin_ctzll(lanes | (lanes == 0)) / V::kMaskBits;
      memcpy(own + b, x.at[0] + place, sizeof(E)), memcpy(of + b, x.at[Op::kLog] + place, sizeof(E));
      single &= vectors <= 1 && __builtin_popcountll(lanes) <= V::kMaskBits;
    });
    if (!single) return false;
    repeat_first(groups), repeat_first(own), repeat_first(of);
    y = V::load(of);
    place_sum<Op, 0>(0, WideOf<V>::from(pick(wins(y), V::load(own), V(T(0)))), row);
    place_sum<Op, 0>(1, groups.fold(), row);
    return true;
  }

 private:
  template <class Op, class See>
  SUMEXP_FN void usual_sum_of(RowScalars<V>& row, See see) const {
    Groups groups;
    each_row([&](int b, const Cursor& cursor) SUMEXP_INLINE {
      V sum[kVectors];
      usual_lanes<V, Op>(Inputs(cursor).at, count, sum, see);
      groups[b] = group_members(sum);
    });
    repeat_first(groups);
    place_sum<Op, 0>(0, WideOf<V>::constant(0), row);
    place_sum<Op, 0>(1, groups.fold(), row);
  }
  struct Inputs {
    const E* at[kInputs];
    SUMEXP_FN explicit Inputs(const Cursor& row) {
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k) at[k] = row.in(k);
    }
  };
  static SUMEXP_FN RowScalars<V> scalars_of(const RowScalars<V>& row, int b) {
    RowScalars<V> to;
    for (int k = 0; k < RowScalars<V>::kMax; ++k) to.h[k] = V(Lanes(row.h[k]).at[b]), to.l[k] = V(Lanes(row.l[k]).at[b]);
    return to;
  }
};

// The results of every row of a panel; map(v, row) of an element from its inputs, or, kTerms, its term. nan: a number for each
// row, which has NaN for all its results if that is one; null: none is. Row: nothing but vectors, a row's numbers in its lanes.
// (No vector is given by value to what is not inlined: GCC 12 then leaves out vzeroupper at its end, and its caller's.)
template <class V, class E, int kInputs, bool kTerms, int kLog = -1, class Count, class Row, class Map>
__attribute__((noinline)) SUMEXP_KERNEL void map_panel(PanelRows<V, E, kInputs, Count> panel, const Row& row,
                                                       const ElementOf<V>* nan, Map map) {
  using T = ElementOf<V>;
  using Rows = PanelRows<V, E, kInputs, Count>;
  typename Rows::Cursor cursor(panel);
  RowsAt out = panel.at->out;
  const bool stream = panel.at->stream;
  for (int b = 0; b < panel.at->rows; ++b, cursor.next(), out.first += out.step) {
    E* const to = reinterpret_cast<E*>(out.first);
    if (nan && is_nan(nan[b])) {
      fill_chunk<V>(to, panel.count, Limits<T>::nan());
      continue;
    }
    const Row own = lane_of<V>(row, b);
    const E* in[kInputs];
#pragma GCC unroll 3
    for (int k = 0; k < kInputs; ++k) in[k] = cursor.in(k);
    const T* const terms = cursor.terms();
    const std::int64_t ahead = panel.at->ahead;
    store_chunk<V>(to, panel.count, stream, [&](int i, auto memory) SUMEXP_INLINE {
      V v[kInputs];
#pragma GCC unroll 3
      for (int k = 0; k < kInputs; ++k) {
        if constexpr (kTerms) {
          v[k] = memory.template load<V>(terms + i, T(0));
        } else {
          v[k] = memory.template load<V>(in[k] + i, k == kLog ? -Limits<T>::infinity : T(0));
          if (kInputs > 1) __builtin_prefetch(in[k] + i + ahead, 0, 2);
        }
      }
      return map(v, own);
    });
  }
}

// The states of the rows of some panels (tile_states), with the maximum kept out (kApart) or in it; kStore: terms are stored.
// Compiled once an instruction set, in exp_panels.cpp.
template <class Terms, class V, bool kApart, bool kStore, class E>
bool panel_states(const cpu::Panel* panels, int count, TileState<V>* states);

}  // namespace sumexp::SUMEXP_NS
