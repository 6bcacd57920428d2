// Sums over long rows that lie side by side (the axis is not the last): V::W of them are summed where they are, vector
// by vector down the array, with every lane of the geometry in memory. Nothing is packed or transposed. For rows
// whose packed copies would not stay in the cache; those that do are read once only, which matters more.
#pragma once

#include "rows.hpp"
#include "transposed.hpp"

namespace sumexp::SUMEXP_NS {

template <class V, class S, class Op>
class ColumnSums {
  using T = ElementOf<V>;
  using G = Geometry<T>;
  using Sums = SumsState<V, Op::kSums>;
  static constexpr int kInputs = Op::kInputs;

 public:
  static bool serves(const Plan& plan) {
    return plan.columns && plan.n * V::W * kInputs * static_cast<std::int64_t>(sizeof(T)) > kResidentBytes;
  }

  // Rows [begin, end); an incomplete vector of them goes the ordinary way.
  template <class Kernel>
  static void run_rows_of(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
    for (std::int64_t r = begin; r < end;) {
      const int rows = block_rows<V, S>(plan, r, end, V::W);
      if (rows == V::W) {
        ColumnSums(plan).run(r);
      } else {
        run_rows<V, S, Kernel>(plan, r, r + rows, workspace);
      }
      r += rows;
    }
  }

 private:
  explicit ColumnSums(const Plan& plan) : plan_(plan), factor_(temperature_factor<T>(plan)) {}

  // The columns of rows r .. r + V::W.
  void run(std::int64_t r) {
    const Offsets first = plan_.row_offsets(r);
    for (int k = 0; k < kInputs; ++k) in_[k] = static_cast<const char*>(plan_.data[k]) + first.at[k];
    RowScalars<V> row;
    reduce<0>(row);
    if constexpr (Op::kPasses > 1) reduce<1>(row);
    char* out = static_cast<char*>(plan_.data[cpu::kOut]) + first.at[cpu::kOut];
    const V factor = V(factor_);
    for (std::int64_t i = 0; i < plan_.n; ++i, out += plan_.row[0].stride[cpu::kOut]) {
      V v[kInputs];
      load(i, v);
      put_vector<V, S>(out, quiet(Op::map(v, row) * factor), plan_.stream);
    }
  }

  SUMEXP_FN void load(std::int64_t i, V* v) const {
#pragma GCC unroll 3
    for (int k = 0; k < kInputs; ++k) {
      const char* p = in_[k] + i * plan_.row[0].stride[k];
      v[k] = V::load(reinterpret_cast<const S*>(p));
      __builtin_prefetch(p + V::W * sizeof(S), 0, 2);  // the next columns
    }
  }

  template <int pass>
  void reduce(RowScalars<V>& row) const {
    MergeTree<Sums> tree;
    std::int64_t c = 0;
    for (; c + G::kChunk < plan_.n; c += G::kChunk) tree.push(chunk<pass>(c, G::kChunk, row));
    const Sums total = tree.finish(chunk<pass>(c, static_cast<int>(plan_.n - c), row));
    for (int a = 0; a < Op::kSums; ++a) place_sum<Op, pass>(a, total.sum[a], row);
  }

  template <int pass>
  Sums chunk(std::int64_t first, int count, const RowScalars<V>& row) const {
    V lane[G::kLanes][Op::kSums];
    const int lanes = count < G::kLanes ? count : G::kLanes;
    for (int l = 0; l < lanes; ++l)
      for (int a = 0; a < Op::kSums; ++a) lane[l][a] = V(T(0));
    for (int i = 0; i < count; i += lanes)
      for (int l = 0; l < lanes && i + l < count; ++l) {
        V v[kInputs];
        load(first + i + l, v);
        Op::template add<pass>(lane[l], v, row);
      }
    Wide<V> member[Op::kSums][G::kGroup];
    tile_fold<V, Op::kSums>(
        lanes,
        [&](V* acc, int l) {
          for (int a = 0; a < Op::kSums; ++a) acc[a] = lane[l][a];
        },
        [&](int i, const V* acc) {
          for (int a = 0; a < Op::kSums; ++a) member[a][i] = WideOf<V>::from(acc[a]);
        });
    Sums sums;
    for (int a = 0; a < Op::kSums; ++a) sums.sum[a] = tile_fold_members(lanes, member[a]);
    return sums;
  }

  const Plan& plan_;
  T factor_;
  const char* in_[kInputs];
};

}  // namespace sumexp::SUMEXP_NS
