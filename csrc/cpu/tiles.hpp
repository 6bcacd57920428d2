// The driver of short rows that fill no vectors: transposes V::W rows at a time into a tile, runs a tile kernel, transposes
// back. Rows of whole vectors, and a few rows, are left to panels.
#pragma once

#include "rows.hpp"
#include "transposed.hpp"

namespace sumexp::SUMEXP_NS {

// The W rows of each of some tiles: where they are, and how they are transposed in and out. Shared by all ops.
template <class V, class S>
class TileRows {
  using T = ElementOf<V>;
  static constexpr int W = V::W;

 public:
  explicit TileRows(const Plan& plan) : plan_(plan), n_(static_cast<int>(plan.n)) {
    for (int k = 0; k < cpu::kOperands; ++k) {
      stride_[k] = plan.row_dims ? plan.row[0].stride[k] : 0;
      step_[k] = plan.batch_dims ? plan.batch[plan.batch_dims - 1].stride[k] : 0;
    }
  }
  // Tile t has the `rows` rows from row r on.
  void place(int t, std::int64_t r, int rows) {
    const Offsets first = plan_.row_offsets(r);
    for (int k = 0; k < cpu::kOperands; ++k) row0_[t][k] = static_cast<char*>(plan_.data[k]) + first.at[k];
    rows_[t] = rows;
  }

  // Element j of the rows of operand k, tile t, to columns[j].
  void load(int t, int k, V* columns) const {
    for (int j = 0; j < n_; j += W) {
      V square[W];
      const char* p = row0_[t][k] + j * stride_[k];
#pragma GCC unroll 16
      for (int b = 0; b < W; ++b) {
        square[b] = part_of_row(p, stride_[k], n_ - j);
        __builtin_prefetch(p + kTiles * W * step_[k], 0, 2);
        if (b + 1 < rows_[t]) p += step_[k];  // lanes past the last row repeat it, and are not written back
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) columns[j + i] = square[i];
    }
  }
  void store(int t, const V* columns) const {
    const std::int64_t stride = stride_[cpu::kOut], step = step_[cpu::kOut];
    for (int j = 0; j < n_; j += W) {
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) square[i] = columns[j + i];
      transpose(square);
      char* p = row0_[t][cpu::kOut] + j * stride;
      for (int b = 0; b < rows_[t]; ++b, p += step) put_part(p, stride, square[b], n_ - j);
    }
  }

  // One value a row.
  V load_row_input(int t, int k) const {
    return load_rows<V, S>(row0_[t][k], step_[k], rows_[t]);
  }
  void store_row_output(int t, V values) const {
    store_rows<V, S>(row0_[t][cpu::kOut], step_[cpu::kOut], rows_[t], values);
  }

 private:
  // W elements of a row, `stride` bytes apart; only `left` where these are fewer
  static SUMEXP_FN V part_of_row(const char* p, std::int64_t stride, int left) {
    if (stride == sizeof(S)) {
      if (left >= W) return V::load(reinterpret_cast<const S*>(p));
      if constexpr (std::is_same_v<S, T>) return V::load_part(reinterpret_cast<const T*>(p), left, T(0));
    }
    T lanes[W] = {};
    for (int i = 0; i < W && i < left; ++i) lanes[i] = widen(read<S>(p + i * stride));
    return V::load(lanes);
  }
  SUMEXP_FN void put_part(char* p, std::int64_t stride, V x, int left) const {
    if (stride == sizeof(S)) {
      if (left >= W) return put_vector<V, S>(p, x, plan_.stream);
      if constexpr (std::is_same_v<S, T>) return V::store_part(reinterpret_cast<T*>(p), x, left);
    }
    T lanes[W];
    V::store(lanes, x);
    for (int i = 0; i < W && i < left; ++i) write<S>(p + i * stride, lanes[i]);
  }

  const Plan& plan_;
  int n_, rows_[kTiles];
  std::int64_t stride_[cpu::kOperands], step_[cpu::kOperands];
  char* row0_[kTiles][cpu::kOperands];
};

template <class V, class S, class Tile, class Kernel>
class TileDriver {
  using T = ElementOf<V>;
  static constexpr int W = V::W, kInputs = Tile::kInputs;
  static constexpr int kLongestRow = 2 * W;  // longer rows keep a vector busy by themselves (Panel)

 public:
  static bool serves(const Plan& plan, std::int64_t rows) {
    if (plan.n < 1 || plan.n > kLongestRow || plan.row_dims > 1 || plan.data[cpu::kWhere] || plan.weighted) return false;
    if (!V::kRegister || !plan.direct) return rows > 1;
    // A tile costs as much as its elements, a panel as its rows, and sums little beside a transposition, so that half a vector
    // will do. Parts of 16-bit vectors cannot be loaded.
    constexpr bool parts = std::is_same_v<S, T>, sums = !std::is_void_v<typename Tile::Op>;
    return plan.n % W != 0 && !(parts && (2 * rows <= plan.n || (sums && 2 * plan.n > W)));
  }

  TileDriver(const Plan& plan, Workspace& workspace)
      : plan_(plan), workspace_(workspace), n_(static_cast<int>(plan.n)), pitch_((n_ + W - 1) / W * W), tiles_(plan) {
    params_.factor = V(temperature_factor<T>(plan));
    divide_ = cpu::op_info(plan.op).temperature == -1 && plan.temperature != 1.0;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end;) {
      int tiles = 0;
      std::int64_t next = r;
      for (; tiles < kTiles && next < end; ++tiles) {
        const int rows = block_rows<V, S>(plan_, next, end, W);
        tiles_.place(tiles, next, rows);
        next += rows;
      }
      if (!run_tiles(tiles)) run_rows<V, S, Kernel, Tile>(plan_, r, next, workspace_);
      r = next;
    }
  }

 private:
  bool run_tiles(int tiles) {
    workspace_.reset();
    V* buffer[kInputs];
    for (V*& columns : buffer) columns = take<V>(workspace_, kTiles * kLongestRow);
    const int row_input = cpu::op_info(plan_.op).row_input;
    Transposed<V, kInputs> rows[kTiles];
    for (int t = 0; t < tiles; ++t) {
      rows[t].n = n_;
      for (int k = 0; k < kInputs; ++k) tiles_.load(t, k, rows[t].in[k] = buffer[k] + t * pitch_);
      if (divide_) rows[t].divide(V(static_cast<T>(plan_.temperature)));
      if (std::is_void_v<typename Tile::Op>) rows[t].measure();
      if (row_input >= 0) params_.row_input[t] = tiles_.load_row_input(t, row_input);
    }
    if (!run_transposed<V, Tile>(rows, tiles, params_)) return false;
    for (int t = 0; t < tiles; ++t) {
      if constexpr (Tile::kRowOutput) {
        tiles_.store_row_output(t, rows[t].in[0][0]);
      } else {
        tiles_.store(t, rows[t].in[0]);
      }
    }
    return true;
  }

  const Plan& plan_;
  Workspace& workspace_;
  int n_, pitch_;
  bool divide_;
  TileRows<V, S> tiles_;
  TileParams<V> params_;
};

template <class V, class S, class Kernel, class Tile>
void run_short_or_long(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  using Driver = TileDriver<V, S, Tile, Kernel>;
  if (Driver::serves(plan, end - begin)) return Driver(plan, workspace).run(begin, end);
  run_rows<V, S, Kernel, Tile>(plan, begin, end, workspace);
}

}  // namespace sumexp::SUMEXP_NS
