// The driver of short rows: transposes V::W rows at a time into a tile, runs a tile kernel, transposes back.
// Rows that lie side by side (axis not last) need no transposition: a load is already a column.
#pragma once

#include "rows.hpp"
#include "tile_kernels.hpp"

namespace sumexp::SUMEXP_NS {

// The W rows of one tile: where they are, and how they are transposed in and out. Shared by all ops.
template <class V, class S>
class TileRows {
  using T = ElementOf<V>;
  static constexpr int W = V::W;

 protected:
  explicit TileRows(const Plan& plan) : plan_(plan), n_(static_cast<int>(plan.n)) {
    for (int k = 0; k < cpu::kOperands; ++k) stride_[k] = plan.row_dims ? plan.row[0].stride[k] : 0;
  }

  // Lanes past the last row repeat it, and are not written back.
  char* row(int k, int b) const {
    const std::int64_t step = plan_.batch_dims ? plan_.batch[plan_.batch_dims - 1].stride[k] : 0;
    return static_cast<char*>(plan_.data[k]) + offsets_.at[k] + (b < rows_ ? b : rows_ - 1) * step;
  }

  static void put(char* p, T value) {
    S s;
    narrow(value, s);
    memcpy(p, &s, sizeof(S));
  }
  V one_each(int k) const {
    T lanes[W];
    for (int b = 0; b < W; ++b) lanes[b] = widen(read<S>(row(k, b)));
    return V::load(lanes);
  }

  // W elements of row b from element j, -- fewer at the row's end
  V part_of_row(int k, int b, int j) const {
    const char* p = row(k, b) + j * stride_[k];
    const int count = n_ - j < W ? n_ - j : W;
    if (stride_[k] == sizeof(S)) {
      if (count == W) return V::load(reinterpret_cast<const S*>(p));
      if constexpr (std::is_same_v<S, T>) return V::load_part(reinterpret_cast<const T*>(p), count, T(0));
    }
    T lanes[W] = {};
    for (int i = 0; i < count; ++i) lanes[i] = widen(read<S>(p + i * stride_[k]));
    return V::load(lanes);
  }
  void gather(int k, V* columns) const {
    for (int j = 0; j < n_; j += W) {
      V square[W];
#pragma GCC unroll 16
      for (int b = 0; b < W; ++b) square[b] = part_of_row(k, b, j);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) columns[j + i] = square[i];
    }
  }
  void scatter(V* columns) const {
    const std::int64_t stride = stride_[cpu::kOut];
    for (int j = 0; j < n_; j += W) {
      const int count = n_ - j < W ? n_ - j : W;
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) square[i] = columns[j + i];
      transpose(square);
      for (int b = 0; b < rows_; ++b) {
        char* p = row(cpu::kOut, b) + j * stride;
        if (stride == sizeof(S) && count == W) {
          if constexpr (std::is_same_v<S, T>) {
            T* to = reinterpret_cast<T*>(p);
            if (plan_.stream && reinterpret_cast<std::uintptr_t>(p) % sizeof(V) == 0) {
              V::stream(to, square[b]);
            } else {
              V::store(to, square[b]);
            }
          } else {
            V::store(reinterpret_cast<S*>(p), square[b]);
          }
          continue;
        }
        if constexpr (std::is_same_v<S, T>) {
          if (stride == sizeof(S)) {
            V::store_part(reinterpret_cast<T*>(p), square[b], count);
            continue;
          }
        }
        T lanes[W];
        V::store(lanes, square[b]);
        for (int i = 0; i < count; ++i) put(p + i * stride, lanes[i]);
      }
    }
  }

  const Plan& plan_;
  int n_, rows_ = 0;
  Offsets offsets_ = {};
  std::int64_t stride_[cpu::kOperands];
};

template <class V, class S, class Tile, class Kernel>
class TileDriver : TileRows<V, S> {
  using Rows = TileRows<V, S>;
  using Rows::gather, Rows::n_, Rows::offsets_, Rows::one_each, Rows::plan_, Rows::put, Rows::row, Rows::rows_, Rows::scatter,
      Rows::stride_;
  using T = ElementOf<V>;
  static constexpr int W = V::W, kInputs = Tile::kInputs;

 public:
  // Longer rows keep a vector busy by themselves.
  static constexpr int kLongest = 4 * Geometry<T>::kGroup;

  static bool serves(const Plan& plan) {
    return plan.n >= 1 && plan.n <= kLongest && plan.row_dims <= 1 && !plan.data[cpu::kWhere] && !plan.weighted;
  }

  TileDriver(const Plan& plan, Workspace& workspace) : Rows(plan), workspace_(workspace) {
    const double t = plan.temperature;
    const int power = cpu::op_info(plan.op).temperature;
    params_.factor = V(static_cast<T>(power > 0 ? 1.0 / (power == 2 ? t * t : t) : 1.0));
    divide_ = power == -1 && t != 1.0;
  }

  void run(std::int64_t begin, std::int64_t end) {
    const int last = plan_.batch_dims - 1;
    for (std::int64_t r = begin; r < end;) {
      const std::int64_t inner = last >= 0 ? plan_.batch[last].size : 1, left = inner - r % inner;
      std::int64_t rows = end - r < left ? end - r : left;
      if (rows > W) rows = W;
      if (!tile(r, static_cast<int>(rows))) run_rows<V, S, Kernel>(plan_, r, r + rows, workspace_);
      r += rows;
    }
  }

 private:
  bool tile(std::int64_t r, int rows) {
    alignas(64) V buffer[kInputs][kLongest + W];
    offsets_ = plan_.row_offsets(r);
    rows_ = rows;
    V* in[kInputs];
    for (int k = 0; k < kInputs; ++k) {
      in[k] = buffer[k];
      if (plan_.columns && rows == W) {
        for (int j = 0; j < n_; ++j) in[k][j] = V::load(reinterpret_cast<const S*>(row(k, 0) + j * stride_[k]));
      } else {
        gather(k, in[k]);
      }
    }
    if (divide_) {
      const V t = V(static_cast<T>(plan_.temperature));
      for (int j = 0; j < n_; ++j) in[0][j] = in[0][j] / t;
    }
    if (const int k = cpu::op_info(plan_.op).row_input; k >= 0) params_.row_input = one_each(k);
    V* out = in[0];
    if (!Tile::run(in, n_, out, params_)) return false;
    if (Tile::kRowOutput) {
      T lanes[W];
      V::store(lanes, out[0]);
      for (int b = 0; b < rows_; ++b) put(row(cpu::kOut, b), lanes[b]);
    } else if (plan_.columns && rows == W) {
      for (int j = 0; j < n_; ++j) V::store(reinterpret_cast<S*>(row(cpu::kOut, 0) + j * stride_[cpu::kOut]), out[j]);
    } else {
      scatter(out);
    }
    return true;
  }

  Workspace& workspace_;
  bool divide_;
  TileParams<V> params_;
};

template <class V, class S, class Kernel, class Tile>
void run_short_or_long(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  using Driver = TileDriver<V, S, Tile, Kernel>;
  if (Driver::serves(plan) && end - begin > 1) {
    Driver(plan, workspace).run(begin, end);
  } else {
    run_rows<V, S, Kernel>(plan, begin, end, workspace);
  }
}

}  // namespace sumexp::SUMEXP_NS
