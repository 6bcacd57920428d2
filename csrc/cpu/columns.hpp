// The driver of rows that lie side by side (the axis is not the last): V::W of them are a tile, element j of all its rows
// one vector (Transposed), so that nothing is transposed. Neighbouring tiles go together, element by element, because the
// next element is on another page.
//
// Rows of one chunk are copied to a buffer tile by tile, finished as vectors like the short rows of tiles.hpp, and copied
// back. Longer ones go chunk by chunk, whose states merge row by row as in rows.hpp. Where whole rows fit in the buffer
// (resident) memory is read once; else once for each pass, and softmax's terms are computed again. Long sums (the
// derivatives) are taken where the elements are.
#pragma once

#include "split.hpp"
#include "tiles.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr std::int64_t kBufferBytes = 2 << 20;  // that the tiles of a block may take in the buffer

template <class V, class S, class Kernel, class Tile>
class ColumnDriver {
  using T = ElementOf<V>;
  using State = typename Kernel::State;
  using Row = typename Kernel::Row;
  using ChunkRow = typename Tile::ChunkRow;
  static constexpr bool kSums = !std::is_void_v<typename Tile::Op>;
  static constexpr int W = V::W, kInputs = Tile::kInputs, kChunk = Geometry<T>::kChunk;
  static constexpr int kMostTiles = static_cast<int>(cpu::kColumnRun) / (W * static_cast<int>(sizeof(S)));
  static constexpr int kTilesInLine = kLineBytes / (W * sizeof(S)) > 1 ? kLineBytes / (W * sizeof(S)) : 1;
  static constexpr int kWidest = kMostTiles * W;
  static constexpr std::int64_t kVectorBytes = W * sizeof(T);
  // Vectors that a tile takes in the buffer when whole rows do not fit: a chunk, or its lanes.
  static constexpr int part() {
    if constexpr (kSums) return Geometry<T>::kLanes * Tile::Op::kSums;
    else return kChunk;
  }
  static constexpr int kDirectSums = 1024;  // from here on sums are taken where the elements are
  static constexpr int kElementsAhead = 32;

 public:
  // plan.columns, with whole tiles among them.
  static bool serves(const Plan& plan) {
    return plan.columns && plan.n >= 1 && plan.batch[plan.batch_dims - 1].size >= W && !plan.data[cpu::kWhere] &&
           !plan.data[cpu::kSign];
  }

  // shared_maxima: where the maxima of a row's chunks go, for drivers that have a row in common
  ColumnDriver(const Plan& plan, Workspace& workspace, T* shared_maxima = nullptr)
      : plan_(plan), workspace_(workspace), shared_maxima_(shared_maxima), n_(plan.n), chunks_(chunk_count<T>(plan.n)) {
    ahead_ = n_ < kElementsAhead ? n_ : kElementsAhead;
    const cpu::OpInfo& info = cpu::op_info(plan.op);
    params_.factor = temperature_factor<T>(plan);
    divide_ = info.temperature == -1 && plan.temperature != 1.0;
    row_input_ = info.row_input;
    const bool fits = n_ * kVectorBytes * kInputs * kTilesInLine <= kBufferBytes;
    short_ = chunks_ == 1 && !(kSums && n_ >= kDirectSums);
    resident_ = short_ || (!kSums && !Kernel::kRowOutput && !shared_maxima && fits);
    pitch_ = pitch_of(resident_ ? n_ : part());
    width_ = tiles_of(pitch_) * W;
  }

  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end;) {
      int rows = block_rows<V, S>(plan_, r, end, width_);
      if (rows > W) rows = rows / W * W;
      if (rows < W || !block(r, rows)) run_short_or_long<V, S, Kernel, Tile>(plan_, r, r + rows, workspace_);
      r += rows;
    }
  }

  // A block of whole tiles in parts, for several drivers at once (see RowDriver).
  static int split_width(const Plan&) { return tiles_of(pitch_of(part())) * W; }
  static constexpr int kWidestSplit = kWidest, kMultiple = W;
  template <int pass>
  bool reduce_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const Row* row, State* result) {
    begin_block(r, rows);
    return reduce_chunks<pass>(c0, c1, row, result);
  }
  void map_part(std::int64_t r, int rows, std::int64_t c0, std::int64_t c1, const Row* row) {
    begin_block(r, rows);
    map_chunks(c0, c1, row);
  }
  void emit_rows(std::int64_t r, int rows, const Row* row) {
    begin_block(r, rows);
    emit(row);
  }

 private:
  // Tiles an odd number of lines apart do not meet in the same sets of the cache.
  static std::int64_t pitch_of(std::int64_t vectors) {
    constexpr int in_line = kLineBytes / kVectorBytes;
    return ((vectors + in_line - 1) / in_line | 1) * in_line;
  }
  // How many tiles of such a pitch fit in the buffer, in whole lines.
  static int tiles_of(std::int64_t pitch) {
    const std::int64_t fit = kBufferBytes / (pitch * kVectorBytes * kInputs) / kTilesInLine * kTilesInLine;
    return static_cast<int>(fit < kTilesInLine ? kTilesInLine : fit < kMostTiles ? fit : kMostTiles);
  }
  void begin_block(std::int64_t r, int rows) {
    tiles_ = rows / W;
    const Offsets first = plan_.row_offsets(r);
    for (int k = 0; k < cpu::kOperands; ++k) {
      data_[k] = static_cast<char*>(plan_.data[k]) + first.at[k];
      stride_[k] = plan_.row[0].stride[k];
      step_[k] = plan_.batch[plan_.batch_dims - 1].stride[k];
    }
    workspace_.reset();
    const int buffers = kSums && !short_ ? 1 : kInputs;  // one for the lanes of sums
    for (int k = 0; k < buffers; ++k) buffer_[k] = take<V>(workspace_, tiles_ * pitch_);
    if (short_) return;
    maxima_ = shared_maxima_ ? shared_maxima_ : take<T>(workspace_, Kernel::kTerms ? chunks_ * rows : 1);
    trees_ = take<MergeTree<State>>(workspace_, rows);
  }
  int count_of(std::int64_t c) const {
    return count_in_chunk<T>(n_, c);
  }
  // Element 0 of chunk c in the buffer of tile t.
  V* place(int k, int t, std::int64_t c) const { return buffer_[k] + t * pitch_ + (resident_ ? c * kChunk : 0); }
  // body(j, t, inputs) for the elements of chunk c, j counted from its first, of inputs [k0, k1) of every tile t. What comes
  // ahead_ elements later is prefetched, of this block, then of the next; but where the elements are next to each other the
  // hardware does it better.
  template <int k0, int k1, class Body>
  SUMEXP_FN void each_element(std::int64_t c, Body body) const {
    const int count = count_of(c), tiles = tiles_;
    const std::int64_t left = n_ - c * kChunk - ahead_, run = tiles * W * static_cast<std::int64_t>(sizeof(S));
    const char* from[k1];
    std::int64_t stride[k1], ahead[k1], ahead_of_next[k1];
    bool apart = false;
    for (int k = k0; k < k1; ++k) {
      stride[k] = stride_[k];
      from[k] = data_[k] + c * kChunk * stride[k];
      ahead[k] = ahead_ * stride[k], ahead_of_next[k] = (ahead_ - n_) * stride[k] + run;
      apart |= stride[k] > 2 * run || stride[k] < 0;
    }
    for (int j = 0; j < count; ++j) {
      if (apart)
        for (int k = k0; k < k1; ++k)
          for (int t = 0; t < tiles; t += kTilesInLine)
            __builtin_prefetch(from[k] + (j < left ? ahead[k] : ahead_of_next[k]) + t * W * sizeof(S), 0, 2);
      for (int t = 0; t < tiles; ++t) {
        V v[kInputs];
        for (int k = k0; k < k1; ++k) v[k] = V::load(reinterpret_cast<const S*>(from[k]) + t * W);
        body(j, t, v + k0);
      }
      for (int k = k0; k < k1; ++k) from[k] += stride[k];
    }
  }
  // Chunk c of every tile to the buffer.
  void load(std::int64_t c, Transposed<V, kInputs>* rows) {
    for (int t = 0; t < tiles_; ++t) {
      rows[t].n = count_of(c);
      rows[t].top = V(-Limits<T>::infinity);
      for (int k = 0; k < kInputs; ++k) rows[t].in[k] = place(k, t, c);
    }
    load_input<0>(c, rows);
    if (!divide_) return;
    const V temperature = V(static_cast<T>(plan_.temperature));
    for (int t = 0; t < tiles_; ++t) {
      rows[t].divide(temperature);
      rows[t].top = rows[t].top / temperature;
    }
  }
  template <int k>
  void load_input(std::int64_t c, Transposed<V, kInputs>* rows) {
    V* const to = place(k, 0, c);
    const std::int64_t pitch = pitch_;
    each_element<k, k + 1>(c, [=](int j, int t, const V* v) {
      to[t * pitch + j] = v[0];
      if (!kSums) rows[t].top = larger(v[0], rows[t].top);
    });
    if constexpr (k + 1 < kInputs) load_input<k + 1>(c, rows);
  }
  void store(std::int64_t c) const {
    const V* const from = place(0, 0, c);
    for (int j = 0; j < count_of(c); ++j) {
      char* const p = data_[cpu::kOut] + (c * kChunk + j) * stride_[cpu::kOut];
      for (int t = 0; t < tiles_; ++t)
        put_vector<V, S>(p + t * W * sizeof(S), from[t * pitch_ + j], plan_.stream);
    }
  }
  V load_row_input(int t) const {
    if (row_input_ < 0) return V(T(0));
    return load_rows<V, S>(data_[row_input_] + t * W * step_[row_input_], step_[row_input_], W);
  }

  bool block(std::int64_t r, int rows) {
    begin_block(r, rows);
    if (short_) return short_rows();
    Row row[kWidest];
    State state[kWidest];
    for (int b = 0; b < rows; ++b) row[b] = Row{};
    if (!reduce_chunks<0>(0, chunks_, row, state)) return false;
    for (int b = 0; b < rows; ++b) Kernel::finish(0, state[b], row[b], params_);
    if constexpr (Kernel::kPasses > 1) {
      reduce_chunks<1>(0, chunks_, row, state);
      for (int b = 0; b < rows; ++b) Kernel::finish(1, state[b], row[b], params_);
    }
    if constexpr (Kernel::kRowOutput) {
      emit(row);
    } else {
      map_chunks(0, chunks_, row);
    }
    return true;
  }
  bool short_rows() {
    Transposed<V, kInputs> rows[kMostTiles];
    load(0, rows);
    TileParams<V> params;
    params.factor = V(static_cast<T>(params_.factor));
    const int together = n_ <= kShortRow ? kTiles : 1;
    for (int first = 0; first < tiles_; first += together) {
      const int count = tiles_ - first < together ? tiles_ - first : together;
      for (int t = 0; t < count; ++t) params.row_input[t] = load_row_input(first + t);
      if (!run_transposed<V, Tile>(rows + first, count, params)) return false;
    }
    if constexpr (Kernel::kRowOutput) {
      for (int t = 0; t < tiles_; ++t) put_row_output(t, *place(0, t, 0));
    } else {
      store(0);
    }
    return true;
  }
  void put_row_output(int t, V values) const {
    store_rows<V, S>(data_[cpu::kOut] + t * W * step_[cpu::kOut], step_[cpu::kOut], W, values);
  }

  template <int pass>
  bool reduce_chunks(std::int64_t c0, std::int64_t c1, const Row* row, State* result) {
    for (int b = 0; b < tiles_ * W; ++b) trees_[b].clear();
    for (std::int64_t c = c0; c < c1; ++c) {
      if constexpr (kSums) {
        sum_chunk<pass>(c, row, result);
      } else if (!exp_chunk_states(c, result)) {
        return false;
      }
      if (c < c1 - 1)
        for (int b = 0; b < tiles_ * W; ++b) trees_[b].push(result[b]);
    }
    for (int b = 0; b < tiles_ * W; ++b) result[b] = trees_[b].finish(result[b]);
    return true;
  }
  bool exp_chunk_states(std::int64_t c, State* result) {
    Transposed<V, kInputs> rows[kMostTiles];
    load(c, rows);
    for (int t = 0; t < tiles_; ++t) {
      V m;
      if (!(resident_ ? Tile::template chunk_states<true>(rows[t], m, result + t * W)
                      : Tile::template chunk_states<false>(rows[t], m, result + t * W)))
        return false;
      if (Kernel::kTerms) V::store(maxima_ + (c * tiles_ + t) * W, m);
    }
    return true;
  }
  // Sums need no maximum first: straight down memory, with all lanes of all tiles in the cache.
  template <int pass>
  void sum_chunk(std::int64_t c, const Row* row, State* result) const {
    using G = Geometry<T>;
    using Op = typename Tile::Op;
    constexpr int kSums = Op::kSums;
    ChunkRow known[kMostTiles];
    for (int t = 0; pass > 0 && t < tiles_; ++t) known[t] = Tile::chunk_row(row + t * W, V(T(0)), V(T(0)));
    const int lanes = count_of(c) < G::kLanes ? count_of(c) : G::kLanes, tiles = tiles_;
    V(*const lane)[kSums] = reinterpret_cast<V(*)[kSums]>(buffer_[0]);  // lane l of tile t at l * tiles + t
    for (int l = 0; l < lanes * tiles; ++l)
      for (int a = 0; a < kSums; ++a) lane[l][a] = V(T(0));
    each_element<0, kInputs>(c, [=, &known](int j, int t, const V* v) {
      Op::template add<pass>(lane[j % G::kLanes * tiles + t], v, known[t].sums);
    });
    for (int t = 0; t < tiles; ++t) {
      Wide<V> member[kSums][G::kGroup];
      fold_kept_lanes(lanes, lane + t, tiles, [&](int i, const V* acc) {
        for (int a = 0; a < kSums; ++a) member[a][i] = WideOf<V>::from(acc[a]);
      });
      for (int a = 0; a < kSums; ++a) {
        Wide<T> sum[W];
        put_lanes(tile_fold_members(lanes, member[a]) + WideOf<V>::constant(0), sum);  // no sum is -0
        for (int b = 0; b < W; ++b) result[t * W + b].sum[a] = sum[b];
      }
    }
  }
  void map_chunks(std::int64_t c0, std::int64_t c1, const Row* row) {
    if constexpr (!Kernel::kRowOutput) {
      V g[kMostTiles];
      for (int t = 0; t < tiles_; ++t) g[t] = load_row_input(t);
      for (std::int64_t c = c0; c < c1; ++c) map_chunk(c, row, g);
    }
  }
  void map_chunk(std::int64_t c, const Row* row, const V* g) const {
    ChunkRow known[kMostTiles];
    Reduction<V> reduce[kMostTiles];
    for (int t = 0; t < tiles_; ++t) {
      const V m = Kernel::kTerms ? V::load(maxima_ + (c * tiles_ + t) * W) : V(T(0));
      known[t] = Tile::chunk_row(row + t * W, m, g[t]);
      reduce[t] = reduction_to(exponent_of(m));
    }
    if (resident_) {
      for (int t = 0; t < tiles_; ++t) {
        V* const x = place(0, t, c);
        for (int j = 0; j < count_of(c); ++j) x[j] = Tile::map(x + j, known[t]);
      }
      return store(c);
    }
    const V temperature = V(static_cast<T>(divide_ ? plan_.temperature : 1.0));
    const std::int64_t stride = stride_[cpu::kOut];
    char* const out = data_[cpu::kOut] + c * kChunk * stride;
    const bool stream = plan_.stream, divide = divide_;
    each_element<0, kInputs>(c, [=, &known, &reduce](int j, int t, V* v) {
      if (divide) v[0] = v[0] / temperature;
      (void)reduce;  // used only by kernels of terms
      if constexpr (Tile::kTerms) v[0] = TermsOf<S>::term(TermsOf<S>::parts(v[0], reduce[t]));
      put_vector<V, S>(out + j * stride + t * W * sizeof(S), Tile::map(v, known[t]), stream);
    });
  }
  void emit(const Row* row) const {
    if constexpr (Kernel::kRowOutput)
      for (int t = 0; t < tiles_; ++t)
        put_row_output(t, lanes_of<V>([&](int b) { return Kernel::emit(row[t * W + b], nullptr); }));
  }

  const Plan& plan_;
  Workspace& workspace_;
  T* shared_maxima_;
  Params params_;
  bool divide_, short_, resident_;
  int row_input_, width_, tiles_ = 1;
  std::int64_t n_, ahead_, chunks_, pitch_;
  char* data_[cpu::kOperands];
  std::int64_t stride_[cpu::kOperands], step_[cpu::kOperands];
  V* buffer_[kInputs];
  T* maxima_ = nullptr;
  MergeTree<State>* trees_ = nullptr;
};

template <class V, class S, class Kernel, class Tile>
void run_any(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  using Columns = ColumnDriver<V, S, Kernel, Tile>;
  if (Columns::serves(plan)) return Columns(plan, workspace).run(begin, end);
  run_short_or_long<V, S, Kernel, Tile>(plan, begin, end, workspace);
}

// Few, long rows.
template <class V, class S, class Kernel, class Tile>
void run_any_split(const Plan& plan, int threads) {
  using Columns = ColumnDriver<V, S, Kernel, Tile>;
  if (Columns::serves(plan)) return SplitDriver<V, S, Kernel, Columns>(plan, threads).run(0, plan.rows);
  run_split<V, S, Kernel>(plan, threads);
}

}  // namespace sumexp::SUMEXP_NS
