// The driver of short rows: transposes V::W rows at a time into a tile, runs a tile kernel, transposes back.
// Rows that lie side by side (axis not last) need no transposition: a load is already a column. Rows of whole vectors
// are left to panels, if there are enough of them.
#pragma once

#include <limits>

#include "columns.hpp"

namespace sumexp::SUMEXP_NS {

// How many tiles are loaded together: columns up to kMostTiles, for long runs through memory.
inline constexpr int kMostTiles = 8;

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

  // Element j of the rows of operand k, tile t, to columns[t * pitch + j]. Tiles of columns lie side by side: they go
  // along each element together, because the next element is on another page, and in the same sets of the cache where
  // the stride is a power of two. So what comes kElementsAhead later is prefetched, and no more.
  void load(int tiles, int k, V* columns, int pitch) const {
    for (int t = 0; t < tiles; ++t)
      if (!in_place(t)) load_square(t, k, columns + t * pitch);
    if (!plan_.columns) return;
    const std::int64_t stride = stride_[k], next_tiles = tiles * W * sizeof(S);
    for (int j = 0; j < n_; ++j) {
      const int wrapped = j + kElementsAhead < n_ ? 0 : j + kElementsAhead < 2 * n_ ? n_ : kElementsAhead;
      const std::int64_t ahead = (kElementsAhead - wrapped) * stride + (wrapped ? next_tiles : 0);
      for (int t = 0; t < tiles; ++t) {
        if (!in_place(t)) continue;
        const char* p = row0_[t][k] + j * stride;
        columns[t * pitch + j] = V::load(reinterpret_cast<const S*>(p));
        __builtin_prefetch(p + ahead, 0, 2);
      }
    }
  }
  void store(int tiles, V* columns, int pitch) const {
    for (int t = 0; t < tiles; ++t)
      if (!in_place(t)) store_square(t, columns + t * pitch);
    if (!plan_.columns) return;
    for (int j = 0; j < n_; ++j)
      for (int t = 0; t < tiles; ++t)
        if (in_place(t))
          put_vector<V, S>(row0_[t][cpu::kOut] + j * stride_[cpu::kOut], columns[t * pitch + j], plan_.stream);
  }

  // One value a row.
  V load_row_input(int t, int k) const {
    T lanes[W];
    for (int b = 0; b < W; ++b) lanes[b] = widen(read<S>(row0_[t][k] + (b < rows_[t] ? b : rows_[t] - 1) * step_[k]));
    return V::load(lanes);
  }
  void store_row_output(int t, V values) const {
    T lanes[W];
    V::store(lanes, values);
    for (int b = 0; b < rows_[t]; ++b) write<S>(row0_[t][cpu::kOut] + b * step_[cpu::kOut], lanes[b]);
  }

 private:
  static constexpr int kElementsAhead = 4;
  bool in_place(int t) const { return plan_.columns && rows_[t] == W; }
  void load_square(int t, int k, V* columns) const {
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
  void store_square(int t, V* columns) const {
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
  int n_, rows_[kMostTiles];
  std::int64_t stride_[cpu::kOperands], step_[cpu::kOperands];
  char* row0_[kMostTiles][cpu::kOperands];
};

template <class V, class S, class Tile, class Kernel>
class TileDriver {
  using T = ElementOf<V>;
  static constexpr int W = V::W, kInputs = Tile::kInputs;
  // Longer rows keep a vector busy by themselves (Panel); longer columns fill the buffer.
  static constexpr int kLongestRow = 2 * W, kLongestColumn = 64, kVectors = 256;

 public:
  static bool serves(const Plan& plan) {
    return plan.n >= 1 && plan.n <= (plan.columns ? kLongestColumn : kLongestRow) && plan.row_dims <= 1 &&
           !plan.data[cpu::kWhere] && !plan.weighted;
  }

  TileDriver(const Plan& plan, Workspace& workspace)
      : plan_(plan), workspace_(workspace), n_(static_cast<int>(plan.n)), pitch_(plan.columns ? n_ : (n_ + W - 1) / W * W), tiles_(plan) {
    params_.factor = V(temperature_factor<T>(plan));
    divide_ = cpu::op_info(plan.op).temperature == -1 && plan.temperature != 1.0;
    // Sums cost so little beside a transposition that half a vector will do (not of 16 bits: it has no part loads).
    const bool cheap = Tile::kSumsOfColumns && std::is_same_v<S, T> && 2 * n_ > W;
    panels_ = V::kRegister && plan.direct && (n_ % W == 0 || cheap);
  }

  void run(std::int64_t begin, std::int64_t end) {
    const int most = plan_.columns ? kMostTiles : kTiles, fit = kVectors / pitch_, together = fit < most ? fit : most;
    for (std::int64_t r = begin; r < end;) {
      if (const std::int64_t whole = panels_ ? rows_of_panels(r, end) : 0) {
        run_rows<V, S, Kernel, Tile>(plan_, r, r + whole, workspace_);
        r += whole;
        continue;
      }
      int tiles = 0;
      std::int64_t next = r;
      for (; tiles < together && next < end; ++tiles) {
        const int rows = block_rows<V, S>(plan_, next, end, W);
        tiles_.place(tiles, next, rows);
        next += rows;
      }
      if (!run_tiles(tiles)) run_rows<V, S, Kernel, Tile>(plan_, r, next, workspace_);
      r = next;
    }
  }

 private:
  std::int64_t rows_of_panels(std::int64_t r, std::int64_t end) const {
    const int rows = block_rows<V, S>(plan_, r, end, std::numeric_limits<int>::max());
    return rows < kTiles * W ? 0 : rows / W * W;
  }
  bool run_tiles(int tiles) {
    V* buffer[kInputs];
    workspace_.reset();
    for (int k = 0; k < kInputs; ++k) tiles_.load(tiles, k, buffer[k] = take<V>(workspace_, kVectors + W), pitch_);
    const int row_input = cpu::op_info(plan_.op).row_input;
    for (int first = 0; first < tiles; first += kTiles) {
      Transposed<V, kInputs> rows[kTiles];
      const int count = tiles - first < kTiles ? tiles - first : kTiles;
      for (int t = 0; t < count; ++t) {
        rows[t].n = n_;
        for (int k = 0; k < kInputs; ++k) rows[t].in[k] = buffer[k] + (first + t) * pitch_;
        if (divide_) {
          const V temperature = V(static_cast<T>(plan_.temperature));
          for (int j = 0; j < n_; ++j) rows[t].in[0][j] = rows[t].in[0][j] / temperature;
        }
        if (row_input >= 0) params_.row_input[t] = tiles_.load_row_input(first + t, row_input);
      }
      if (!run_transposed<V, Tile>(rows, count, params_)) return false;
    }
    if constexpr (Tile::kRowOutput) {
      for (int t = 0; t < tiles; ++t) tiles_.store_row_output(t, buffer[0][t * pitch_]);
    } else {
      tiles_.store(tiles, buffer[0], pitch_);
    }
    return true;
  }

  const Plan& plan_;
  Workspace& workspace_;
  int n_, pitch_;
  bool divide_, panels_;
  TileRows<V, S> tiles_;
  TileParams<V> params_;
};

template <class V, class S, class Kernel, class Tile>
void run_short_or_long(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  using Driver = TileDriver<V, S, Tile, Kernel>;
  if (Driver::serves(plan) && end - begin > 1) {
    return Driver(plan, workspace).run(begin, end);
  }
  if constexpr (V::kRegister && Tile::kSumsOfColumns) {
    using Columns = ColumnSums<V, S, typename Tile::Op>;
    if (Columns::serves(plan)) return Columns::template run_rows_of<Kernel>(plan, begin, end, workspace);
  }
  run_rows<V, S, Kernel, Tile>(plan, begin, end, workspace);
}

// Few, long rows. Sums of columns stay whole: no thread gains from a share of a line.
template <class V, class S, class Kernel, class Tile>
void run_split_or_columns(const Plan& plan, int threads) {
  if constexpr (V::kRegister && Tile::kSumsOfColumns) {
    using Columns = ColumnSums<V, S, typename Tile::Op>;
    if (Columns::serves(plan)) {
      const std::int64_t head = block_rows<V, S>(plan, 0, plan.rows, V::W);
      auto part = [&](std::int64_t i, Workspace& workspace) {
        const std::int64_t begin = i ? head + (i - 1) * V::W : 0, end = head + i * V::W;
        Columns::template run_rows_of<Kernel>(plan, begin, end < plan.rows ? end : plan.rows, workspace);
      };
      return run_parts(1 + (plan.rows - head + V::W - 1) / V::W, threads, part);
    }
  }
  run_split<V, S, Kernel>(plan, threads);
}

}  // namespace sumexp::SUMEXP_NS
