// The row driver: carries any kernel of kernels.hpp over the rows of a plan.
//
// A block is up to a cache line of rows that lie side by side (plan.columns), some rows of one chunk each, taken through
// every stage together (as panels, where V::W of them make one), or one long row. Direct rows are read where they are;
// others are packed, whole blocks at once when they fit in the cache (resident), else chunk by chunk, once for each pass.
// Softmax's terms wait for the row's sum in the result itself, in the packed copy, or, when the result goes around the
// cache or has 16 bits, in scratch (as long as this stays in the cache); where there is no such place they are computed
// again: the same instructions on the same input, hence the same bits.
#pragma once

#include <type_traits>

#include "kernels.hpp"
#include "pack.hpp"
#include "panel.hpp"
#include "workspace.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::Offsets;
using cpu::Workspace;

template <class T>
SUMEXP_FN int count_in_chunk(std::int64_t n, std::int64_t c) {
  const std::int64_t most = Geometry<T>::kChunk, left = n - c * most;
  return static_cast<int>(left < most ? left : most);
}

template <class T>
SUMEXP_FN T* take(Workspace& workspace, std::int64_t count) {
  return static_cast<T*>(workspace.take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
}

// Rows of the block that begins at row r: at most `width`, of one stretch of the innermost batch dimension. Side by side,
// they end where a vector of the result (of one value a row: the input) is aligned, so that the next blocks begin there.
template <class V, class S>
SUMEXP_FN int block_rows(const Plan& plan, std::int64_t r, std::int64_t end, int width) {
  const std::int64_t inner = plan.batch_dims ? plan.batch[plan.batch_dims - 1].size : 1;
  const std::int64_t left = inner - r % inner;
  std::int64_t rows = end - r < left ? end - r : left;
  if (plan.columns) {
    const std::int64_t ahead = plan.rows_to_boundary(r, V::W * sizeof(S));
    if (ahead > 0 && ahead < width) width = static_cast<int>(ahead);
  }
  return static_cast<int>(rows < width ? rows : width);
}

// The factor that the temperature gives a derivative.
template <class T>
SUMEXP_FN T temperature_factor(const Plan& plan) {
  const int power = cpu::op_info(plan.op).temperature;
  const double t = plan.temperature;
  return static_cast<T>(power > 0 ? 1.0 / (power == 2 ? t * t : t) : 1.0);
}

// What a block of rows may take to stay in the cache: half of a 1 MB L2.
inline constexpr std::int64_t kResidentBytes = 512 << 10;

// Tile: the operation of tile_kernels.hpp that takes whole panels of rows, or void.
template <class V, class S, class Kernel, class Tile = void>
class RowDriver {
  using T = ElementOf<V>;
  using State = typename Kernel::State;
  using Row = typename Kernel::Row;
  static constexpr int kChunk = Geometry<T>::kChunk;
  static constexpr int kInputs = Kernel::kInputs;
  static constexpr int kTogether = 4;
  // Where a vector is a register, it pays to convert 16-bit rows while they are loaded, and to take rows in panels.
  static constexpr bool kDirect16 = V::kRegister && !Kernel::kPackedOnly;
  static constexpr bool kPanels = V::kRegister && !std::is_void_v<Tile>;
  static constexpr int kFewest = 2;  // rows of a panel
  // Columns taken together: a line of them, but no less than a vector and no more than kTiles panels.
  static constexpr int kInLine = kLineBytes / sizeof(S), kMost = kTiles * V::W;
  static constexpr int kLine = kInLine < V::W ? V::W : kInLine < kMost ? kInLine : kMost;
  static constexpr int kWidest = kLine > kTogether ? kLine : kTogether;
  static constexpr std::int64_t kAheadBytes = 64 << 10;  // rows up to here are prefetched whole

 public:
  // shared_maxima: where the maxima of a row's chunks go, for drivers that have a row in common
  RowDriver(const Plan& plan, Workspace& workspace, T* shared_maxima = nullptr) : plan_(plan) {
    params_.factor = temperature_factor<T>(plan);
    row_input_ = cpu::op_info(plan.op).row_input;
    direct_ = plan.direct && (std::is_same_v<S, T> || kDirect16);
    chunks_ = chunk_count<T>(plan.n);
    width_ = plan.columns || (kPanels && chunks_ == 1) ? V::W : chunks_ == 1 ? kTogether : 1;
    const std::int64_t bytes = plan.n * kInputs * static_cast<std::int64_t>(sizeof(T));
    if (plan.columns && bytes * kLine <= kResidentBytes) width_ = kLine;
    resident_ = !direct_ && bytes * width_ <= kResidentBytes;
    const std::int64_t most = plan.kept_bytes > kResidentBytes ? plan.kept_bytes : kResidentBytes;
    const bool scratch_row = direct_ && Kernel::kTerms && (plan.stream || !std::is_same_v<S, T>) && !shared_maxima &&
                             plan.n * static_cast<std::int64_t>(sizeof(T)) <= most;
    const bool in_result = direct_ && std::is_same_v<S, T> && !plan.stream;
    keep_terms_ = Kernel::kTerms && !Kernel::kRowOutput && (resident_ || scratch_row || in_result);
    in_out_ = keep_terms_ && direct_ && !scratch_row;
    // Rows in the cache are an odd number of lines apart, so that they do not meet in the same sets.
    constexpr std::int64_t line = Geometry<T>::kGroup;
    pitch_ = (chunks_ == 1 ? plan.n : (resident_ || scratch_row ? chunks_ : 1) * kChunk) / line * line + line;
    if (pitch_ / line % 2 == 0) pitch_ += line;
    panels_ = kPanels && direct_ && plan.n <= kShortRow ? kTiles : 1;
    for (int k = 0; k < cpu::kOperands; ++k) step_[k] = plan.batch_dims ? plan.batch[plan.batch_dims - 1].stride[k] : 0;
    ahead_ = ahead();
    workspace.reset();
    for (int k = 0; k < kInputs; ++k) packed_[k] = direct_ ? nullptr : take<T>(workspace, width_ * pitch_);
    scratch_ = take<T>(workspace, scratch_row ? panels_ * width_ * pitch_ : Kernel::kRowOutput ? kChunk : 1);
    maxima_ = shared_maxima ? shared_maxima : take<T>(workspace, Kernel::kTerms ? width_ * chunks_ : 1);
    trees_ = take<MergeTree<State>>(workspace, width_);
  }

  // Rows [begin, end), one after the other.
  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end;) {
      const int rows = block_rows<V, S>(plan_, r, end, panels_ * width_);
      if (rows == width_ || !panel_block(r, rows))
        for (int b = 0; b < rows; b += width_) block(r + b, rows - b < width_ ? rows - b : width_);
      r += rows;
    }
  }

  // A block of rows in parts, for several drivers at once: reduce chunks [c0, c1) of the rows, then map them. A driver
  // that does not take special rows says so (false); this one takes all.
  static int split_width(const Plan& plan) { return plan.columns ? V::W : 1; }
  static constexpr int kWidestSplit = V::W, kMultiple = 1;
  template <int pass>
  bool reduce_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const Row* row, State* result) {
    begin_block(r, rows);
    reduce_chunks<pass>(c0, c1, row, result);
    return true;
  }
  void map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const Row* row) {
    begin_block(r, rows);
    map_chunks(c0, c1, row);
  }
  void emit_rows(std::int64_t r, int rows, const Row* row) {
    begin_block(r, rows);
    for (int b = 0; b < rows; ++b) emit(b, row[b]);
  }

 private:
  void begin_block(std::int64_t r, int rows) {
    rows_ = rows;
    offsets_ = plan_.row_offsets(r);
    packed_through_ = -1;
  }
  // The rows of a block differ in the innermost batch dimension alone.
  char* address(int k, int b) const {
    return static_cast<char*>(plan_.data[k]) + offsets_.at[k] + b * step_[k];
  }
  // Elements from a direct row's element to the one that is read a block of rows, or a chunk, later.
  std::int64_t ahead() const {
    if (!direct_) return 0;
    if (plan_.n * static_cast<std::int64_t>(sizeof(S)) > kAheadBytes) return kChunk;
    return panels_ * width_ * step_[0] / static_cast<std::int64_t>(sizeof(S));
  }
  int count_of(std::int64_t c) const {
    return count_in_chunk<T>(plan_.n, c);
  }
  std::int64_t place(std::int64_t c) const { return resident_ ? c * kChunk : 0; }

  void pack(std::int64_t c) {
    if (direct_ || packed_through_ == c || (resident_ && c < packed_through_)) return;
    packed_through_ = c;
    const int count = count_of(c);
    const std::int64_t first = c * kChunk;
    for (int k = 0; k < kInputs; ++k) {
      T* to = packed_[k] + place(c);
      if (plan_.columns) {
        const std::int64_t stride = plan_.row[0].stride[k];
        pack_columns<V, S>(address(k, 0) + first * stride, stride, rows_, count, to, pitch_);
      } else {
        for (int b = 0; b < rows_; ++b) pack_row<V, S>(plan_, k, address(k, b), first, count, to + b * pitch_);
      }
    }
    for (int b = 0; b < rows_; ++b) {
      T* x = packed_[0] + b * pitch_ + place(c);
      const bool masked = plan_.data[cpu::kWhere];
      if (masked) apply_where(plan_, address(cpu::kWhere, b), first, count, x, -Limits<T>::infinity);
      if constexpr (std::is_same_v<Kernel, WeightedLogSumExpKernel<V, TermsOf<S>>>) {
        T* weight = packed_[1] + b * pitch_ + place(c);
        if (masked) apply_where(plan_, address(cpu::kWhere, b), first, count, weight, T(0));
        for (int i = 0; i < count; ++i)
          if (weight[i] == T(0)) x[i] = -Limits<T>::infinity;
      }
      if (cpu::op_info(plan_.op).temperature == -1 && plan_.temperature != 1.0)
        apply_temperature<V>(plan_.temperature, count, x);
    }
  }

  // Where chunk c of row b's operand k is read, or its result written: E = S in the caller's array, T in the packed
  // copy.
  template <class E>
  E* place_of(int k, std::int64_t c, int b) const {
    if (std::is_same_v<E, S> && direct_) return reinterpret_cast<E*>(address(k, b)) + c * kChunk;
    return reinterpret_cast<E*>(packed_[k == cpu::kOut ? 0 : k] + b * pitch_ + place(c));
  }
  std::int64_t pitch_bytes() const { return pitch_ * static_cast<std::int64_t>(sizeof(T)); }
  template <class E>
  RowsAt rows_at(int k, int b) const {
    return {reinterpret_cast<char*>(place_of<E>(k, 0, b)), direct_ ? step_[k] : pitch_bytes()};
  }
  // f(a null E*), E the type of the elements that the kernels are to read and write.
  template <class F>
  SUMEXP_FN auto with_elements(F f) const {
    if constexpr (!std::is_same_v<S, T> && kDirect16)
      if (direct_) return f(static_cast<S*>(nullptr));
    return f(static_cast<T*>(nullptr));
  }
  template <class E>
  SUMEXP_FN void inputs(std::int64_t c, int b, const E** in) const {
    for (int k = 0; k < kInputs; ++k) in[k] = place_of<E>(k, c, b);
  }
  // Where the terms of a chunk are written while, or after, the row is reduced.
  T* terms(std::int64_t c, int b) const {
    if (Kernel::kRowOutput) return scratch_;
    if (in_out_) return reinterpret_cast<T*>(address(cpu::kOut, b)) + c * kChunk;
    if (direct_) return scratch_ + b * pitch_ + c * kChunk;
    return packed_[0] + b * pitch_ + place(c);
  }

  T peak(std::int64_t c, int b) {
    if (b == 0) pack(c);
    return with_elements([&](auto* element) {
      const std::remove_pointer_t<decltype(element)>* in[kInputs];
      inputs(c, b, in);
      return Kernel::peak(in, count_of(c));
    });
  }
  template <int pass>
  State reduce_chunk(std::int64_t c, int b, T peak, const Row& row) const {
    if (Kernel::kTerms) maxima_[b * chunks_ + c] = peak;
    T* kept = Kernel::kTerms && (keep_terms_ || Kernel::kRowOutput) ? terms(c, b) : nullptr;
    return with_elements([&](auto* element) {
      const std::remove_pointer_t<decltype(element)>* in[kInputs];
      inputs(c, b, in);
      return Kernel::template reduce<pass>(in, count_of(c), peak, kept, row, ahead_);
    });
  }

  void map_chunk(std::int64_t c, int b, const Row& row) {
    if constexpr (!Kernel::kRowOutput) {
      if (b == 0) pack(c);
      const T maximum = Kernel::kTerms ? maxima_[b * chunks_ + c] : T(0);
      with_elements([&](auto* element) {
        using E = std::remove_pointer_t<decltype(element)>;
        const E* in[kInputs];
        inputs(c, b, in);
        Kernel::map(in, keep_terms_ ? terms(c, b) : nullptr, place_of<E>(cpu::kOut, c, b), count_of(c),
                    direct_ && plan_.stream, maximum, row, params_, ahead_);
      });
      unpack(c, b);
    }
  }
  // Results of chunk c of row b to where the caller wants them; columns go all together, after the last row.
  void unpack(std::int64_t c, int b) {
    if (direct_) return;
    if (!plan_.columns) {
      const T* from = packed_[0] + b * pitch_ + place(c);
      unpack_row<V, S>(plan_, cpu::kOut, address(cpu::kOut, b), c * kChunk, count_of(c), from);
    } else if (b == rows_ - 1) {
      const std::int64_t stride = plan_.row[0].stride[cpu::kOut];
      unpack_columns<V, S>(address(cpu::kOut, 0) + c * kChunk * stride, stride, rows_, count_of(c),
                           packed_[0] + place(c), pitch_, plan_.stream);
    }
  }

  void read_row_input(int b) {
    if (row_input_ >= 0) params_.row_input = widen(read<S>(address(row_input_, b)));
  }
  void emit(int b, const Row& row) {
    if constexpr (Kernel::kRowOutput) {
      T sign = T(0);
      write<S>(address(cpu::kOut, b), Kernel::emit(row, plan_.data[cpu::kSign] ? &sign : nullptr));
      if (plan_.data[cpu::kSign]) write<S>(address(cpu::kSign, b), sign);
    }
  }

  template <int pass>
  void reduce_chunks(std::int64_t c0, std::int64_t c1, const Row* row, State* result) {
    for (int b = 0; b < rows_; ++b) {
      result[b] = State::empty();
      trees_[b].clear();
    }
    for (std::int64_t c = c0; c < c1; ++c) {
      T peaks[kWidest];
      for (int b = 0; b < rows_; ++b) peaks[b] = peak(c, b);
      for (int b = 0; b < rows_; ++b) {
        result[b] = reduce_chunk<pass>(c, b, peaks[b], row[b]);
        if (c < c1 - 1) trees_[b].push(result[b]);
      }
    }
    for (int b = 0; b < rows_; ++b) result[b] = trees_[b].finish(result[b]);
  }
  void map_chunks(std::int64_t c0, std::int64_t c1, const Row* row) {
    for (std::int64_t c = c0; c < c1; ++c)
      for (int b = 0; b < rows_; ++b) {
        read_row_input(b);
        map_chunk(c, b, row[b]);
      }
  }
  template <int pass>
  void reduce_block(Row* row) {
    State state[kWidest];
    reduce_chunks<pass>(0, chunks_, row, state);
    for (int b = 0; b < rows_; ++b) Kernel::finish(pass, state[b], row[b], params_);
  }

  // A block of one or more panels; false where it is none, or one of its rows is special.
  bool panel_block(std::int64_t r, int rows) {
    if constexpr (kPanels) {
      if (rows < kFewest || chunks_ > 1 || plan_.n == 0 || plan_.data[cpu::kSign]) return false;
      begin_block(r, rows);
      pack(0);
      const bool done = with_elements([&](auto* element) {
        using E = std::remove_pointer_t<decltype(element)>;
        constexpr int kGroup = Geometry<T>::kGroup;  // known to the compiler, a row of one group has no loop left
        if (plan_.n == kGroup) return panels<E>(std::integral_constant<int, kGroup>());
        return panels<E>(static_cast<int>(plan_.n));
      });
      if (done && !direct_ && !Kernel::kRowOutput)
        for (int b = 0; b < rows; ++b) unpack(0, b);
      return done;
    }
    return false;
  }
  template <class E, class Count>
  bool panels(Count count) const {
    Panel<V, E, kInputs, Count> panel[kTiles];
    TileParams<V> params;
    params.factor = V(static_cast<T>(params_.factor));
    const int tiles = (rows_ + V::W - 1) / V::W;
    for (int t = 0; t < tiles; ++t) {
      const int first = t * V::W, left = rows_ - first;
      panel[t].count = count;
      panel[t].rows = left < V::W ? left : V::W;
      panel[t].ahead = ahead_;
      for (int k = 0; k < kInputs; ++k) panel[t].in[k] = rows_at<E>(k, first);
      panel[t].terms = {nullptr, 0};
      if (Kernel::kTerms && in_out_) panel[t].terms = {address(cpu::kOut, first), step_[cpu::kOut]};
      if (Kernel::kTerms && !in_out_) panel[t].terms = {reinterpret_cast<char*>(terms(0, first)), pitch_bytes()};
      if (row_input_ < 0) continue;
      params.row_input[t] = load_rows<V, S>(address(row_input_, first), step_[row_input_], panel[t].rows);
    }
    const RowsAt out = Kernel::kRowOutput ? RowsAt{address(cpu::kOut, 0), step_[cpu::kOut]} : rows_at<E>(cpu::kOut, 0);
    return run_panels<V, S, Tile>(panel, tiles, params, out, direct_ && plan_.stream);
  }

  void block(std::int64_t r, int rows) {
    if (panel_block(r, rows)) return;
    begin_block(r, rows);
    Row row[kWidest];
    for (int b = 0; b < rows; ++b) row[b] = Row{};
    reduce_block<0>(row);
    if constexpr (Kernel::kPasses > 1) reduce_block<1>(row);
    if constexpr (Kernel::kRowOutput) {
      for (int b = 0; b < rows; ++b) emit(b, row[b]);
    } else {
      map_chunks(0, chunks_, row);
    }
  }

  const Plan& plan_;
  Params params_;
  int width_, panels_, row_input_, rows_ = 1;
  std::int64_t chunks_, pitch_, ahead_, packed_through_ = -1;
  bool direct_, resident_, keep_terms_, in_out_;
  Offsets offsets_ = {};
  std::int64_t step_[cpu::kOperands];
  T* packed_[kInputs];
  T *scratch_, *maxima_;
  MergeTree<State>* trees_;
};

// The entry points of one op, dtype and instruction set.
template <class V, class S, class Kernel, class Tile = void>
void run_rows(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  RowDriver<V, S, Kernel, Tile>(plan, workspace).run(begin, end);
}

}  // namespace sumexp::SUMEXP_NS
