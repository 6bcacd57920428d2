// The row driver: carries any kernel of kernels.hpp over the rows of a plan.
//
// A block is V::W rows that lie side by side (plan.columns), a few rows of one chunk each, taken through every
// stage together so that the latencies of one hide behind the others, or one long row. Direct rows are read where they
// are; others are packed, whole blocks at once when they fit in the cache (resident), else chunk by chunk,
// once for each pass. Softmax's terms wait for the row's sum in the result itself, in the packed copy, or,
// when the result goes around the cache, in scratch; where there is no such place they are computed again:
// the same instructions on the same input, hence the same bits.
#pragma once

#include <type_traits>

#include "kernels.hpp"
#include "pack.hpp"
#include "workspace.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::Offsets;
using cpu::Workspace;

template <class T>
SUMEXP_FN T* take(Workspace& workspace, std::int64_t count) {
  return static_cast<T*>(workspace.take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
}

template <class V, class S, class Kernel>
class RowDriver {
  using T = ElementOf<V>;
  using State = typename Kernel::State;
  using Row = typename Kernel::Row;
  static constexpr int kChunk = Geometry<T>::kChunk;
  static constexpr int kInputs = Kernel::kInputs;
  static constexpr int kTogether = 4;
  static constexpr int kWidest = V::W > kTogether ? V::W : kTogether;
  static constexpr std::int64_t kResidentBytes = 512 << 10;  // half of a 1 MB L2

 public:
  RowDriver(const Plan& plan, Workspace& workspace) : plan_(plan) {
    params_.temperature = plan.temperature;
    chunks_ = chunk_count<T>(plan.n);
    width_ = plan.columns ? V::W : chunks_ == 1 ? kTogether : 1;
    resident_ = !plan.direct && plan.n * width_ * kInputs * static_cast<std::int64_t>(sizeof(T)) <= kResidentBytes;
    const bool scratch_row = plan.direct && Kernel::kTerms && plan.stream &&
                             plan.n * static_cast<std::int64_t>(sizeof(T)) <= kResidentBytes;
    keep_terms_ = Kernel::kTerms && !Kernel::kRowOutput && (resident_ || scratch_row || (plan.direct && !plan.stream));
    in_out_ = keep_terms_ && plan.direct && !plan.stream;
    pitch_ = (resident_ || scratch_row ? chunks_ : 1) * kChunk + 64 / sizeof(T);
    workspace.reset();
    for (int k = 0; k < kInputs; ++k) packed_[k] = plan.direct ? nullptr : take<T>(workspace, width_ * pitch_);
    scratch_ = take<T>(workspace, scratch_row ? width_ * pitch_ : kChunk);
    maxima_ = take<T>(workspace, keep_terms_ ? width_ * chunks_ : 1);
    trees_ = take<MergeTree<State>>(workspace, width_);
  }

  // Rows [begin, end), one after the other.
  void run(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end;) {
      const std::int64_t inner = plan_.batch_dims ? plan_.batch[plan_.batch_dims - 1].size : 1;
      const std::int64_t left = inner - r % inner;
      std::int64_t rows = end - r < left ? end - r : left;
      if (rows > width_) rows = width_;
      block(r, static_cast<int>(rows), plan_.columns);
      r += rows;
    }
  }

  // One row in parts, for several drivers at once: reduce chunks [c0, c1) of a row, then map them.
  template <int pass>
  State reduce_part(std::int64_t r, std::int64_t c0, std::int64_t c1, const Row& row) {
    begin_block(r, 1, false);
    trees_[0].clear();
    for (std::int64_t c = c0; c < c1 - 1; ++c) trees_[0].push(reduce_chunk<pass>(c, 0, peak(c, 0), row, false));
    return trees_[0].finish(reduce_chunk<pass>(c1 - 1, 0, peak(c1 - 1, 0), row, false));
  }
  void map_part(std::int64_t r, std::int64_t c0, std::int64_t c1, const Row& row) {
    begin_block(r, 1, false);
    read_row_input(0);
    for (std::int64_t c = c0; c < c1; ++c) map_chunk(c, 0, row, false);
  }
  void emit_row(std::int64_t r, const Row& row) {
    begin_block(r, 1, false);
    emit(0, row);
  }

 private:
  void begin_block(std::int64_t r, int rows, bool transposed) {
    rows_ = rows;
    transposed_ = transposed;
    offsets_ = plan_.row_offsets(r);
    packed_through_ = -1;
  }
  // The rows of a block differ in the innermost batch dimension alone.
  char* address(int k, int b) const {
    const std::int64_t step = b ? plan_.batch[plan_.batch_dims - 1].stride[k] : 0;
    return static_cast<char*>(plan_.data[k]) + offsets_.at[k] + b * step;
  }
  int count_of(std::int64_t c) const {
    const std::int64_t left = plan_.n - c * kChunk;
    return static_cast<int>(left < kChunk ? left : kChunk);
  }
  std::int64_t place(std::int64_t c) const { return resident_ ? c * kChunk : 0; }

  void pack(std::int64_t c) {
    if (plan_.direct || packed_through_ == c || (resident_ && c < packed_through_)) return;
    packed_through_ = c;
    const int count = count_of(c);
    const std::int64_t first = c * kChunk;
    for (int k = 0; k < kInputs; ++k) {
      T* to = packed_[k] + place(c);
      if (transposed_) {
        const std::int64_t stride = plan_.row[0].stride[k];
        pack_columns<V, S>(address(k, 0) + first * stride, stride, rows_, count, to, pitch_);
      } else {
        for (int b = 0; b < rows_; ++b) pack_row<V, S>(plan_, k, address(k, b), first, count, to + b * pitch_);
      }
    }
    for (int b = 0; b < rows_; ++b) {
      T* x = packed_[0] + b * pitch_ + place(c);
      if (plan_.data[cpu::kWhere]) apply_where(plan_, address(cpu::kWhere, b), first, count, x);
      if constexpr (std::is_same_v<Kernel, WeightedLogSumExpKernel<V>>) {
        const T* weight = packed_[1] + b * pitch_ + place(c);
        for (int i = 0; i < count; ++i)
          if (weight[i] == T(0)) x[i] = -Limits<T>::infinity;
      }
      if (cpu::op_info(plan_.op).temperature == -1 && plan_.temperature != 1.0)
        apply_temperature<V>(plan_.temperature, count, x);
    }
  }

  void inputs(std::int64_t c, int b, const T** in) const {
    for (int k = 0; k < kInputs; ++k)
      in[k] = plan_.direct ? reinterpret_cast<const T*>(address(k, b)) + c * kChunk : packed_[k] + b * pitch_ + place(c);
  }
  // Where the terms of a chunk are written while, or after, the row is reduced.
  T* terms(std::int64_t c, int b) const {
    if (Kernel::kRowOutput) return scratch_;
    if (in_out_) return reinterpret_cast<T*>(address(cpu::kOut, b)) + c * kChunk;
    if (plan_.direct) return scratch_ + (keep_terms_ ? b * pitch_ + c * kChunk : 0);
    return packed_[0] + b * pitch_ + place(c);
  }

  T peak(std::int64_t c, int b) {
    if (b == 0) pack(c);
    const T* in[kInputs];
    inputs(c, b, in);
    return Kernel::peak(in, count_of(c));
  }
  template <int pass>
  State reduce_chunk(std::int64_t c, int b, T peak, const Row& row, bool keep) const {
    const T* in[kInputs];
    inputs(c, b, in);
    const bool wants_terms = Kernel::kTerms && (keep || Kernel::kRowOutput);
    return Kernel::template reduce<pass>(in, count_of(c), peak, wants_terms ? terms(c, b) : nullptr, row);
  }

  void map_chunk(std::int64_t c, int b, const Row& row, bool kept) {
    if constexpr (!Kernel::kRowOutput) {
      const int count = count_of(c);
      if (b == 0) pack(c);
      const T* in[kInputs];
      inputs(c, b, in);
      T* waiting = Kernel::kTerms ? terms(c, b) : nullptr;
      T maximum = T(0);
      if (Kernel::kTerms) maximum = kept ? maxima_[b * chunks_ + c] : Kernel::peak(in, count);
      if (Kernel::kTerms && !kept) Kernel::template reduce<0>(in, count, maximum, waiting, row);
      T* out = plan_.direct ? reinterpret_cast<T*>(address(cpu::kOut, b)) + c * kChunk : packed_[0] + b * pitch_ + place(c);
      Kernel::map(in, waiting, out, count, plan_.direct && plan_.stream, maximum, row, params_);
      if (plan_.direct) return;
      if (!transposed_) {
        unpack_row<V, S>(plan_, cpu::kOut, address(cpu::kOut, b), c * kChunk, count, out);
      } else if (b == rows_ - 1) {
        const std::int64_t stride = plan_.row[0].stride[cpu::kOut];
        unpack_columns<V, S>(address(cpu::kOut, 0) + c * kChunk * stride, stride, rows_, count, packed_[0] + place(c),
                             pitch_);
      }
    }
  }

  void read_row_input(int b) {
    const int k = cpu::op_info(plan_.op).row_input;
    if (k >= 0) params_.row_input = widen(read<S>(address(k, b)));
  }
  void emit(int b, const Row& row) {
    if constexpr (Kernel::kRowOutput) {
      T sign = T(0);
      S stored;
      narrow(Kernel::emit(row, plan_.data[cpu::kSign] ? &sign : nullptr), stored);
      memcpy(address(cpu::kOut, b), &stored, sizeof(S));
      if (!plan_.data[cpu::kSign]) return;
      narrow(sign, stored);
      memcpy(address(cpu::kSign, b), &stored, sizeof(S));
    }
  }

  template <int pass>
  void reduce_block(Row* row) {
    State state[kWidest];
    for (int b = 0; b < rows_; ++b) {
      state[b] = State::empty();
      trees_[b].clear();
    }
    for (std::int64_t c = 0; c < chunks_; ++c) {
      T peaks[kWidest];
      for (int b = 0; b < rows_; ++b) peaks[b] = peak(c, b);
      for (int b = 0; b < rows_; ++b) {
        state[b] = reduce_chunk<pass>(c, b, peaks[b], row[b], keep_terms_);
        if (keep_terms_) maxima_[b * chunks_ + c] = peaks[b];
        if (c < chunks_ - 1) trees_[b].push(state[b]);
      }
    }
    for (int b = 0; b < rows_; ++b) Kernel::finish(pass, trees_[b].finish(state[b]), row[b], params_);
  }

  void block(std::int64_t r, int rows, bool transposed) {
    begin_block(r, rows, transposed);
    Row row[kWidest];
    for (int b = 0; b < rows; ++b) row[b] = Row{};
    reduce_block<0>(row);
    if constexpr (Kernel::kPasses > 1) reduce_block<1>(row);
    if constexpr (Kernel::kRowOutput) {
      for (int b = 0; b < rows; ++b) emit(b, row[b]);
      return;
    }
    for (std::int64_t c = 0; c < chunks_; ++c)
      for (int b = 0; b < rows; ++b) {
        read_row_input(b);
        map_chunk(c, b, row[b], keep_terms_);
      }
  }

  const Plan& plan_;
  Params params_;
  int width_, rows_ = 1;
  std::int64_t chunks_, pitch_, packed_through_ = -1;
  bool resident_, keep_terms_, in_out_, transposed_ = false;
  Offsets offsets_ = {};
  T* packed_[kInputs];
  T *scratch_, *maxima_;
  MergeTree<State>* trees_;
};

// The entry points of one op, dtype and instruction set.
template <class V, class S, class Kernel>
void run_rows(const Plan& plan, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  RowDriver<V, S, Kernel>(plan, workspace).run(begin, end);
}

// Few, long rows: every row is split over the threads, in aligned blocks of 2^kBlockLevel chunks.
inline constexpr int kBlockLevel = 5;

template <class Body>
SUMEXP_FN void run_parts(std::int64_t tasks, int threads, Body& body) {
  cpu::run_parts(
      tasks, threads, [](void* context, std::int64_t i, Workspace& workspace) { (*static_cast<Body*>(context))(i, workspace); },
      &body);
}

template <class V, class S, class Kernel>
class SplitDriver {
  using T = ElementOf<V>;
  using State = typename Kernel::State;
  using Row = typename Kernel::Row;
  using Driver = RowDriver<V, S, Kernel>;

 public:
  SplitDriver(const Plan& plan, int threads) : plan_(plan), threads_(threads) {
    chunks_ = chunk_count<T>(plan.n);
    blocks_ = (chunks_ + kBlock - 1) / kBlock;
    states_ = static_cast<State*>(own_.keep_bytes(static_cast<std::size_t>(blocks_) * sizeof(State)));
  }

  void run(std::int64_t r) {
    Row row = {};
    reduce<0>(r, row);
    if constexpr (Kernel::kPasses > 1) reduce<1>(r, row);
    if constexpr (Kernel::kRowOutput) {
      Driver(plan_, own_).emit_row(r, row);
    } else {
      auto part = [&](std::int64_t i, Workspace& workspace) {
        Driver(plan_, workspace).map_part(r, i * kBlock, end(i), row);
      };
      run_parts(blocks_, threads_, part);
    }
  }

 private:
  static constexpr std::int64_t kBlock = std::int64_t(1) << kBlockLevel;
  std::int64_t end(std::int64_t i) const { return (i + 1) * kBlock < chunks_ ? (i + 1) * kBlock : chunks_; }

  template <int pass>
  void reduce(std::int64_t r, Row& row) {
    auto part = [&](std::int64_t i, Workspace& workspace) {
      states_[i] = Driver(plan_, workspace).template reduce_part<pass>(r, i * kBlock, end(i), row);
    };
    run_parts(blocks_, threads_, part);
    MergeTree<State> tree;
    for (std::int64_t i = 0; i < blocks_ - 1; ++i) tree.push(states_[i], kBlockLevel);
    Params params;
    params.temperature = plan_.temperature;
    Kernel::finish(pass, tree.finish(states_[blocks_ - 1]), row, params);
  }

  const Plan& plan_;
  int threads_;
  Workspace& own_ = cpu::thread_workspace();
  std::int64_t chunks_, blocks_;
  State* states_;
};

template <class V, class S, class Kernel>
void run_split(const Plan& plan, int threads) {
  SplitDriver<V, S, Kernel> driver(plan, threads);
  for (std::int64_t r = 0; r < plan.rows; ++r) driver.run(r);
}

}  // namespace sumexp::SUMEXP_NS
