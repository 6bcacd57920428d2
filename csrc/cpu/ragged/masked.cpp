// Attention rows. A row is packed piece by piece, with what the options make of it, and goes through the kernels of the plain
// ops: what is left out is -inf, which adds nothing, and what lies behind the row's last element is not there at all. A sink is
// a state of its own, of one element, that merges last. Rows of one chunk without a sink go as panels, with -inf behind their
// ends.
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "../../include/sumexp/ragged.hpp"
#include "../../numerics/state.hpp"
#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "row.hpp"

namespace sumexp {

namespace {

using namespace cpu;

constexpr std::int64_t kTaskElements = 1 << 15;
constexpr std::int64_t kResidentBytes = 512 << 10;  // of a row that is copied whole
constexpr std::int64_t kDirectPanel = 256;          // longer rows that need no copy are taken where they lie
constexpr int kSummedBlocks = 8;                    // of the rows that a bias's gradient is summed over
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum { kX = 0, kG, kMask, kLengths, kBias, kSink, kResult, kDBias, kDSink, kViews };

struct BatchDim {
  std::int64_t size, stride[kViews];
};
struct RowAddresses {
  char* of[kViews];  // null where absent
};

struct MaskedPlan {
  const MaskedCall& call;
  const RaggedJob& forward;  // softmax and log_softmax: also where their VJP begins; logsumexp: itself, or its VJP
  const RaggedJob* backward;
  int batch_dims = 0;
  BatchDim batch[kMaxDims];
  std::int64_t rows = 1, n = 0, stride[kViews];  // along the axis
  std::int64_t causal_rows = 1;
  char* data[kViews];
  bool options = false;                    // elements are not their logits
  bool row_value = false;                  // the result, and g, is one value a row
  double absent = 0.0;                     // what is written where something is left out
  double pre = 1.0, divisor, scale = 1.0;  // LogitOptions

  MaskedPlan(const MaskedCall& call, const RaggedJob& forward, const RaggedJob* backward);

  RowAddresses addresses(std::int64_t r) const {
    RowAddresses at;
    for (int k = 0; k < kViews; ++k) at.of[k] = data[k];
    for (int d = batch_dims - 1; d >= 0; --d) {
      const std::int64_t i = d > 0 ? r % batch[d].size : r;
      if (d > 0) r /= batch[d].size;
      for (int k = 0; k < kViews; ++k)
        if (at.of[k]) at.of[k] += i * batch[d].stride[k];
    }
    return at;
  }
  // Elements of row r that are there.
  std::int64_t count(std::int64_t r, const RowAddresses& at) const {
    std::int64_t count = n;
    if (at.of[kLengths]) {
      std::int64_t length;
      std::memcpy(&length, at.of[kLengths], sizeof(length));
      count = std::min(count, length);
    }
    if (call.causal) {
      const std::int64_t i = r % causal_rows;  // no i + offset + 1 may overflow
      count = call.causal_offset < -i ? 0 : call.causal_offset >= n - i ? count : std::min(count, i + call.causal_offset + 1);
    }
    return count;
  }
};

// What a row's state says of its sum.
enum class Row { number, nothing, nan };

template <class T>
Row look(const void* from) {
  SUMEXP_NS::ExpState<T> state;
  std::memcpy(&state, from, sizeof(state));
  if (SUMEXP_NS::is_nan(state.R) || state.m == std::numeric_limits<T>::infinity()) return Row::nan;
  return state.m == -std::numeric_limits<T>::infinity() ? Row::nothing : Row::number;
}

class MaskedRows {
 public:
  MaskedRows(const MaskedPlan& plan, Workspace& workspace)
      : plan_(plan), job_(plan.forward), kernel_(job_.kernel), workspace_(workspace), moves_(job_) {}

  void forward(std::int64_t begin, std::int64_t end) {
    const bool panels = kernel_.panels[kScratch] && !plan_.data[kSink];
    const std::int64_t longest = std::min<std::int64_t>(plan_.n, direct() ? kDirectPanel : job_.order.chunk);
    const int width = job_.moves.width, most = (longest <= kShortRow ? kTiles : 1) * width;
    std::int64_t waiting[kTiles * kWidestVector];
    int count = 0;
    for (std::int64_t r = begin; r < end; ++r) {
      at_ = plan_.addresses(r);
      const std::int64_t n = plan_.count(r, at_);
      if (!panels || n == 0 || n > longest) {
        row(n);
      } else {
        waiting[count++] = r;
        if (count == most) panel_rows(waiting, count), count = 0;
      }
    }
    if (count) panel_rows(waiting, count);
  }

  // The VJP of row r. use(first, count, dz): what comes back for logits [first, first + count), of T. Returns the sink's.
  template <class Use>
  double backward(std::int64_t r, Use use) {
    at_ = plan_.addresses(r);
    const std::int64_t n = plan_.count(r, at_);
    begin(n, true);
    reduce();
    const Row kind = merge_sink();
    double sink_gradient = 0.0;
    if (kind == Row::nothing) {
      fill(0, n, 0.0);
    } else {
      finish(at_.of[kG]);
      if (plan_.backward) {
        sum_products();
        each_chunk([&](std::int64_t first, int count) {
          char* const y = outputs(first, count);
          char* const g = gradients(first, count);
          plan_.backward->kernel.map[kScratch](two(g, y, count), finished_back_);
          give_back(first, count, g, use);
        });
        if (at_.of[kSink]) {
          double y = 0.0, g = 0.0;  // or floats
          sink_output(&y);
          plan_.backward->kernel.map[kScratch](two(reinterpret_cast<char*>(&g), reinterpret_cast<char*>(&y), 1),
                                               finished_back_);
          sink_gradient = number(&g);
        }
      } else {
        each_chunk([&](std::int64_t first, int count) { give_back(first, count, outputs(first, count), use); });
        if (at_.of[kSink]) {
          double y = 0.0;
          sink_output(&y);
          sink_gradient = number(&y);
        }
      }
    }
    fill(n, plan_.n - n, 0.0);
    return sink_gradient;
  }

 private:
  bool direct() const {
    return !plan_.options && kernel_.reduce[0][kStored] && plan_.stride[kX] == job_.item &&
           (plan_.row_value || plan_.stride[kResult] == job_.item);
  }
  double number(const void* at) const {
    if (job_.wide == 8) return *static_cast<const double*>(at);
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  bool own_mask() const { return at_.of[kMask] != nullptr; }
  bool one_value() const { return plan_.row_value && !plan_.call.g.data; }

  void fill(std::int64_t first, std::int64_t count, double value) const {
    if (count > 0) job_.ragged.fill(at_.of[kResult] + first * plan_.stride[kResult], plan_.stride[kResult], count, value);
  }
  LogitOptions options_at(std::int64_t first) const {
    return {at_.of[kMask] ? at_.of[kMask] + first * plan_.stride[kMask] : nullptr,
            plan_.stride[kMask],
            at_.of[kBias] ? at_.of[kBias] + first * plan_.stride[kBias] : nullptr,
            plan_.stride[kBias],
            plan_.call.temperature,
            plan_.call.softcap,
            plan_.pre,
            plan_.divisor,
            plan_.scale};
  }
  void pack_logits(std::int64_t first, int count, void* to) {
    moves_.pack(at_.of[kX], plan_.stride[kX], first, count, to);
    if (!plan_.options) return;
    if (apart_) return job_.ragged.logits_apart(options_at(first), count, top_, to);
    if (plan_.call.temperature != 1.0) suspect_ |= !job_.moves.divide(plan_.call.temperature, count, to);
    suspect_ |= !job_.ragged.logits(options_at(first), count, to);
  }
  // Whether a logit of the row overflows, of elements that count. Then all are taken less the largest of them. logsumexp, whose
  // result may overflow, takes them as they are.
  void set_apart() {
    top_ = {-kInfinity, 0.0, 0.0};
    suspect_ = false;
    each_chunk([&](std::int64_t first, int count) {
      moves_.pack(at_.of[kX], plan_.stride[kX], first, count, packed_);
      apart_ |= job_.ragged.overflows(options_at(first), count, packed_, &top_);
    });
    if (at_.of[kSink]) {
      moves_.pack(at_.of[kSink], 0, 0, 1, &sink_);
      const double sink = number(&sink_), scaled = sink * plan_.scale * plan_.scale;
      if (scaled > top_.scaled) top_ = {scaled, 0.0, sink};
    }
    if (one_value()) top_ = {0.0, 0.0, 0.0};
  }
  void shift_sink() {
    const double scaled = number(&sink_) * plan_.scale * plan_.scale;
    double sink = (0.0 - top_.x * plan_.pre) / plan_.divisor / plan_.scale / plan_.scale + (number(&sink_) - top_.bias);
    if (!std::isfinite(sink) || plan_.call.softcap != 0.0) sink = (scaled - top_.scaled) / plan_.scale / plan_.scale;
    const float narrow = static_cast<float>(sink);
    std::memcpy(&sink_, job_.wide == 8 ? static_cast<const void*>(&sink) : &narrow, static_cast<std::size_t>(job_.wide));
  }
  void leave_out(std::int64_t first, int count, double value, void* x) const {
    if (own_mask()) job_.ragged.leave_out(at_.of[kMask] + first * plan_.stride[kMask], plan_.stride[kMask], count, value, x);
  }

  // -- a row alone ----------------------------------------------------------------------------------------------

  void begin(std::int64_t n, bool packed) {
    n_ = n;
    apart_ = suspect_ = false;
    elements_ = !packed && direct() ? kStored : kScratch;
    const bool back = plan_.call.g.data;
    const std::int64_t bytes = n * job_.wide, chunk = std::int64_t{job_.order.chunk} * job_.wide, chunks = job_.chunks_of(n);
    resident_ = elements_ == kScratch && bytes <= kResidentBytes;
    const std::int64_t place = resident_ ? bytes : chunk;
    const bool probabilities = job_.info.probabilities, stored = elements_ == kStored;
    const bool apart = probabilities && stored && job_.item != job_.wide && bytes <= kResidentBytes;
    const std::int64_t row = kernel_.row_bytes, state = kernel_.state_bytes;
    const std::int64_t row_back = plan_.backward ? plan_.backward->kernel.row_bytes : 0;
    const std::int64_t state_back = plan_.backward ? plan_.backward->kernel.state_bytes : 0;
    // One piece of scratch memory, cut.
    char** const parts[] = {&packed_,   &gradients_, &elements_again_, &terms_,      &maxima_,
                            &finished_, &state_,     &finished_back_,  &state_back_, &tree_.stack};
    const std::int64_t sizes[] = {stored ? 0 : place,
                                  back && plan_.backward ? place : 0,
                                  back ? chunk : 0,
                                  apart ? bytes : 0,
                                  (chunks + 1) * job_.wide,
                                  row,
                                  state,
                                  row_back,
                                  state_back,
                                  StateTree::kLevels * std::max(state, state_back)};
    std::int64_t all = 0;
    for (const std::int64_t size : sizes) all += (size + 63) / 64 * 64;
    workspace_.reset();
    char* at = take<char>(workspace_, all);
    for (int i = 0; i < 10; ++i) *parts[i] = at, at += (sizes[i] + 63) / 64 * 64;
    if (!apart)
      terms_ = !probabilities           ? nullptr
               : !stored                ? resident_ ? packed_ : nullptr
               : job_.item == job_.wide ? at_.of[kResult]
                                        : nullptr;
  }

  // body(first element, count) for each chunk.
  template <class Body>
  void each_chunk(Body body) {
    for (std::int64_t first = 0; first < n_; first += job_.order.chunk)
      body(first, static_cast<int>(std::min<std::int64_t>(n_ - first, job_.order.chunk)));
  }
  Chunk chunk_at(std::int64_t first, int count) const {
    Chunk chunk;
    chunk.first = first, chunk.count = count;
    if (elements_ == kStored) {
      chunk.in[0] = at_.of[kX] + first * job_.item;
      chunk.out = one_value() ? nullptr : at_.of[kResult] + first * job_.item;
    } else {
      chunk.in[0] = chunk.out = packed_ + (resident_ ? first * job_.wide : 0);
    }
    chunk.terms = terms_ ? terms_ + first * job_.wide : nullptr;
    chunk.maximum = maxima_ + (job_.info.probabilities ? first / job_.order.chunk * job_.wide : 0);
    chunk.ahead = elements_ == kStored ? job_.order.chunk : 0;
    chunk.stream = false;
    return chunk;
  }
  // A chunk of two rows of T, whose result takes the place of the first.
  Chunk two(char* a, char* b, int count) const {
    Chunk chunk;
    chunk.in[0] = chunk.out = a, chunk.in[1] = b;
    chunk.terms = nullptr, chunk.maximum = maxima_ + job_.chunks_of(n_) * job_.wide;
    chunk.first = 0, chunk.count = count, chunk.ahead = 0, chunk.stream = false;
    return chunk;
  }

  template <class Reduce>
  void reduce_tree(const Kernel& kernel, char* state, Reduce reduce) {
    if (n_ == 0) return kernel.empty(state);
    tree_.filled = 0;
    each_chunk([&](std::int64_t first, int count) {
      reduce(first, count);
      if (first + count < n_) tree_.push(kernel, state);
      else tree_.finish(kernel, state);
    });
  }
  void reduce() {
    reduce_chunks();
    if (!suspect_) return;
    set_apart();
    reduce_chunks();
  }
  void reduce_chunks() {
    reduce_tree(kernel_, state_, [&](std::int64_t first, int count) {
      if (elements_ == kScratch) pack_logits(first, count, packed_ + (resident_ ? first * job_.wide : 0));
      kernel_.reduce[0][elements_](chunk_at(first, count), nullptr, state_);
    });
  }
  Chunk sink_chunk(void* value, void* out) const {
    Chunk chunk = two(static_cast<char*>(value), nullptr, 1);
    chunk.out = out;
    return chunk;
  }
  // The sink joins the row's state.
  Row merge_sink() {
    if (at_.of[kSink]) {
      char* const state = tree_.stack;  // what the tree had there has been merged
      moves_.pack(at_.of[kSink], 0, 0, 1, &sink_);
      if (apart_) shift_sink();
      kernel_.reduce[0][kScratch](sink_chunk(&sink_, nullptr), nullptr, state);
      kernel_.merge(state_, state, state_);
    }
    return job_.wide == 8 ? look<double>(state_) : look<float>(state_);
  }
  void finish(const char* input) {
    const double at_index = 0.0;
    kernel_.finish[0](state_, {1.0, input, &at_index}, finished_);
  }
  // What the forward's map gives for the sink.
  void sink_output(void* to) {
    const Chunk chunk = sink_chunk(&sink_, to);
    std::memcpy(chunk.maximum, &sink_, static_cast<std::size_t>(job_.wide));
    kernel_.map[kScratch](chunk, finished_);
  }

  void row(std::int64_t n) {
    begin(n, false);
    reduce();
    const Row kind = merge_sink();
    if (one_value()) {
      finish(nullptr);
      return kernel_.emit(finished_, at_.of[kResult], nullptr);
    }
    if (kind == Row::nothing) return fill(0, plan_.n, plan_.call.empty == Empty::nan ? kNaN() : plan_.absent);
    finish(nullptr);
    each_chunk([&](std::int64_t first, int count) {
      if (elements_ == kScratch && !resident_) pack_logits(first, count, packed_);
      const Chunk chunk = chunk_at(first, count);
      kernel_.map[elements_](chunk, finished_);
      if (elements_ == kStored) return;
      leave_out(first, count, plan_.absent, chunk.out);
      moves_.unpack(at_.of[kResult], plan_.stride[kResult], first, count, chunk.out);
    });
    fill(n, plan_.n - n, plan_.absent);
  }
  static double kNaN() { return std::numeric_limits<double>::quiet_NaN(); }

  // -- panels ---------------------------------------------------------------------------------------------------

  void panel_rows(const std::int64_t* rows, int count) {
    const int width = job_.moves.width, in_line = kLineBytes / job_.wide;
    std::int64_t longest = 0;
    for (int b = 0; b < count; ++b) {
      at_ = plan_.addresses(rows[b]);
      longest = std::max(longest, plan_.count(rows[b], at_));
    }
    std::int64_t pitch = longest / in_line * in_line + in_line;  // an odd number of lines
    if (pitch / in_line % 2 == 0) pitch += in_line;
    workspace_.reset();
    char* const buffer = take<char>(workspace_, count * pitch * job_.wide);
    char* const results = take<char>(workspace_, count * std::int64_t{job_.wide});
    apart_ = suspect_ = false;
    for (int b = 0; b < count; ++b) {
      at_ = plan_.addresses(rows[b]);
      const int n = static_cast<int>(plan_.count(rows[b], at_));
      char* const to = buffer + b * pitch * job_.wide;
      pack_logits(0, n, to);
      if (n < longest) lowest(to, n, static_cast<int>(longest));
    }
    Panel panels[kTiles];
    int tiles = 0;
    for (int first = 0; first < count; first += width, ++tiles) {
      Panel& panel = panels[tiles];
      panel.in[0] = panel.out = panel.terms = {buffer + first * pitch * job_.wide, pitch * job_.wide};
      if (one_value()) panel.out = {results + first * job_.item, job_.item};
      panel.row_input = panel.extra = {nullptr, 0};
      panel.count = static_cast<int>(longest);
      panel.rows = std::min(width, count - first);
      panel.ahead = 0, panel.stream = false;
    }
    const bool done = !suspect_ && kernel_.panels[kScratch](panels, tiles, 1.0);
    if (!done) {
      for (int b = 0; b < count; ++b) {
        at_ = plan_.addresses(rows[b]);
        row(plan_.count(rows[b], at_));
      }
      return;
    }
    for (int b = 0; b < count; ++b) {
      at_ = plan_.addresses(rows[b]);
      if (one_value()) {
        std::memcpy(at_.of[kResult], results + b * job_.item, static_cast<std::size_t>(job_.item));
        continue;
      }
      const std::int64_t n = plan_.count(rows[b], at_);
      char* const from = buffer + b * pitch * job_.wide;
      leave_out(0, static_cast<int>(n), plan_.absent, from);
      moves_.unpack(at_.of[kResult], plan_.stride[kResult], 0, static_cast<int>(n), from);
      fill(n, plan_.n - n, plan_.absent);
    }
  }
  void lowest(char* row, int first, int end) const {
    if (job_.wide == 8) std::fill(reinterpret_cast<double*>(row) + first, reinterpret_cast<double*>(row) + end, -kInfinity);
    else std::fill(reinterpret_cast<float*>(row) + first, reinterpret_cast<float*>(row) + end, static_cast<float>(-kInfinity));
  }

  // -- VJPs -----------------------------------------------------------------------------------------------------

  // Results of the forward kernel for a chunk: y, or of logsumexp's VJP its own results.
  char* outputs(std::int64_t first, int count) {
    char* const place = packed_ + (resident_ ? first * job_.wide : 0);
    if (resident_ && mapped_) return place;
    if (!resident_) pack_logits(first, count, place);
    kernel_.map[kScratch](chunk_at(first, count), finished_);
    leave_out(first, count, plan_.backward ? plan_.absent : 0.0, place);
    return place;
  }
  char* gradients(std::int64_t first, int count) {
    char* const place = gradients_ + (resident_ ? first * job_.wide : 0);
    if (resident_ && mapped_) return place;
    moves_.pack(at_.of[kG], plan_.stride[kG], first, count, place);
    leave_out(first, count, 0.0, place);
    return place;
  }
  void sum_products() {
    const Kernel& back = plan_.backward->kernel;
    mapped_ = false;
    reduce_tree(back, state_back_, [&](std::int64_t first, int count) {
      char* const y = outputs(first, count);
      back.reduce[0][kScratch](two(gradients(first, count), y, count), nullptr, state_back_);
    });
    mapped_ = resident_;
    const double at_index = 0.0;
    back.finish[0](state_back_, {1.0, nullptr, &at_index}, finished_back_);
  }
  template <class Use>
  void give_back(std::int64_t first, int count, char* dz, Use use) {
    leave_out(first, count, 0.0, dz);
    use(first, count, dz);
    if (plan_.call.temperature != 1.0 || plan_.call.softcap != 0.0) {
      if (plan_.call.softcap != 0.0) moves_.pack(at_.of[kX], plan_.stride[kX], first, count, elements_again_);
      job_.ragged.to_elements(options_at(first), count, elements_again_, dz, dz);
      leave_out(first, count, 0.0, dz);
    }
    moves_.unpack(at_.of[kResult], plan_.stride[kResult], first, count, dz);
  }

  const MaskedPlan& plan_;
  const RaggedJob& job_;
  const Kernel& kernel_;
  Workspace& workspace_;
  RowMoves moves_;
  RowAddresses at_;
  std::int64_t n_ = 0;
  Elements elements_ = kScratch;
  bool resident_ = false, mapped_ = false;
  double sink_ = 0.0;  // a T
  // A logit may overflow; one does, and they are less top_.
  bool suspect_ = false, apart_ = false;
  LargestLogit top_ = {0.0, 0.0, 0.0};
  char *packed_, *gradients_, *elements_again_, *terms_, *maxima_, *state_, *finished_, *state_back_, *finished_back_;
  StateTree tree_;
};

// -- sums over rows ---------------------------------------------------------------------------------------------

// A sum of doubles that rounds once, at its end: hi + lo.
struct Accumulator {
  double hi = 0.0, lo = 0.0;

  void add(double x) {
    const SUMEXP_NS::DD<double> sum = SUMEXP_NS::two_sum(hi, x);
    hi = sum.hi, lo += sum.lo;
  }
  double value() const { return lo == lo && std::isfinite(hi) ? hi + lo : hi; }
};

// The rows of a call as those that are summed for one row of view k (its stride is 0 along their dimensions): in C order of
// both.
class Grouping {
 public:
  Grouping(const MaskedPlan& plan, int k) {
    std::int64_t step = 1;
    for (int d = plan.batch_dims - 1; d >= 0; --d) {
      const std::int64_t size = plan.batch[d].size;
      if (size > 1) {
        std::vector<Dim>& dims = plan.batch[d].stride[k] == 0 ? summed_ : kept_;
        dims.push_back({size, step});
        (plan.batch[d].stride[k] == 0 ? members : groups) *= size;
      } else if (size == 0) {
        groups = 0;
      }
      step *= size;
    }
  }
  std::int64_t row(std::int64_t group, std::int64_t member) const { return at(kept_, group) + at(summed_, member); }

  std::int64_t groups = 1, members = 1;

 private:
  struct Dim {
    std::int64_t size, step;
  };
  static std::int64_t at(const std::vector<Dim>& dims, std::int64_t i) {  // innermost first
    std::int64_t row = 0;
    for (const Dim& dim : dims) row += i % dim.size * dim.step, i /= dim.size;
    return row;
  }
  std::vector<Dim> kept_, summed_;
};

template <class T>
void put(const MaskedPlan& plan, char* to, std::int64_t stride, std::int64_t first, int count, const Accumulator* sums) {
  T values[64];
  RowMoves moves(plan.forward);
  for (int i = 0; i < count; i += 64) {
    const int part = std::min(64, count - i);
    for (int j = 0; j < part; ++j) values[j] = static_cast<T>(sums[i + j].value());
    moves.unpack(to, stride, first + i, part, values);
  }
}
void put(const MaskedPlan& plan, char* to, std::int64_t stride, int count, const Accumulator* sums) {
  if (plan.forward.wide == 8) put<double>(plan, to, stride, 0, count, sums);
  else put<float>(plan, to, stride, 0, count, sums);
}

class MaskedBackward {
 public:
  explicit MaskedBackward(const MaskedPlan& plan) : plan_(plan) {
    if (plan.data[kDSink]) sinks_.resize(static_cast<std::size_t>(plan.rows));
  }

  void run() {
    const int threads = threads_for(plan_.rows * plan_.n);
    if (plan_.data[kDBias]) with_bias(threads);
    else rows(threads);
    if (plan_.data[kDSink]) sinks();
  }

 private:
  void one_row(std::int64_t r, MaskedRows& rows, std::vector<Accumulator>* sums) {
    const bool along = sums && sums->size() > 1;
    const double sink = rows.backward(r, [&](std::int64_t first, int count, const char* dz) {
      if (!sums) return;
      for (int i = 0; i < count; ++i) {
        const double value = plan_.forward.wide == 8 ? reinterpret_cast<const double*>(dz)[i]
                                                     : static_cast<double>(reinterpret_cast<const float*>(dz)[i]);
        (*sums)[static_cast<std::size_t>(along ? first + i : 0)].add(value);
      }
    });
    if (!sinks_.empty()) sinks_[static_cast<std::size_t>(r)] = sink;
  }
  template <class Body>
  static void over(std::int64_t tasks, int threads, Body body) {
    run_parts(
        tasks, threads,
        [](void* context, std::int64_t i, Workspace& workspace) { (*static_cast<Body*>(context))(i, workspace); }, &body);
  }

  void rows(int threads) {
    const std::int64_t step = std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(plan_.n, 1));
    over((plan_.rows + step - 1) / step, threads, [&](std::int64_t i, Workspace& workspace) {
      MaskedRows rows(plan_, workspace);
      for (std::int64_t r = i * step; r < std::min((i + 1) * step, plan_.rows); ++r) one_row(r, rows, nullptr);
    });
  }
  // The rows of a group in kSummedBlocks blocks, each summed in order, and then the blocks' sums.
  void with_bias(int threads) {
    const Grouping grouping(plan_, kDBias);
    const std::size_t length = static_cast<std::size_t>(plan_.stride[kDBias] ? plan_.n : 1);
    const std::int64_t size = (grouping.members + kSummedBlocks - 1) / kSummedBlocks;
    const auto block = [&](std::int64_t group, std::int64_t b, std::vector<Accumulator>& sums, Workspace& workspace) {
      MaskedRows rows(plan_, workspace);
      for (std::int64_t m = b * size; m < std::min((b + 1) * size, grouping.members); ++m)
        one_row(grouping.row(group, m), rows, &sums);
    };
    const auto finish = [&](std::int64_t group, const std::vector<Accumulator>& sums) {
      const RowAddresses at = plan_.addresses(grouping.row(group, 0));
      put(plan_, at.of[kDBias], plan_.stride[kDBias], static_cast<int>(length), sums.data());
    };
    const auto join = [&](std::vector<Accumulator>& total, const std::vector<Accumulator>& sums) {
      for (std::size_t i = 0; i < length; ++i) total[i].add(sums[i].value());
    };
    if (grouping.groups >= threads * 4 || threads < 2) {
      over(grouping.groups, threads, [&](std::int64_t group, Workspace& workspace) {
        std::vector<Accumulator> total(length), sums;
        for (std::int64_t b = 0; b < kSummedBlocks; ++b) {
          sums.assign(length, Accumulator{});
          block(group, b, sums, workspace);
          join(total, sums);
        }
        finish(group, total);
      });
      return;
    }
    for (std::int64_t group = 0; group < grouping.groups; ++group) {
      std::vector<std::vector<Accumulator>> sums(kSummedBlocks, std::vector<Accumulator>(length));
      over(kSummedBlocks, threads,
           [&](std::int64_t b, Workspace& workspace) { block(group, b, sums[static_cast<std::size_t>(b)], workspace); });
      std::vector<Accumulator> total(length);
      for (const auto& part : sums) join(total, part);
      finish(group, total);
    }
  }
  void sinks() {
    const Grouping grouping(plan_, kDSink);
    for (std::int64_t group = 0; group < grouping.groups; ++group) {
      Accumulator sum;
      for (std::int64_t m = 0; m < grouping.members; ++m) sum.add(sinks_[static_cast<std::size_t>(grouping.row(group, m))]);
      put(plan_, plan_.addresses(grouping.row(group, 0)).of[kDSink], 0, 1, &sum);
    }
  }

  const MaskedPlan& plan_;
  std::vector<double> sinks_;  // of each row
};

Status check_call(const MaskedCall& call) {
  const int op = static_cast<int>(call.op), dtype = static_cast<int>(call.dtype);
  if (call.op != Op::softmax && call.op != Op::log_softmax && call.op != Op::logsumexp)
    return fail(Code::unsupported, "op: got code %d; accepted are softmax, log_softmax and logsumexp", op);
  if (dtype < 0 || dtype > 3)
    return fail(Code::invalid_argument, "dtype: got code %d; accepted are 0 to 3 (f16, bf16, f32, f64)", dtype);
  if (call.ndim < 1 || call.ndim > kMaxDims || call.axis < -call.ndim || call.axis >= call.ndim)
    return fail(Code::invalid_argument, "axis: got %d for ndim = %d; accepted are -ndim to ndim - 1, ndim 1 to %d", call.axis,
                call.ndim, kMaxDims);
  if (!call.shape) return fail(Code::invalid_argument, "shape: missing; ndim is %d", call.ndim);
  std::int64_t elements = 8;
  bool empty = false;
  for (int d = 0; d < call.ndim; ++d) {
    if (call.shape[d] < 0)
      return fail(Code::invalid_argument, "shape: dimension %d is %lld; accepted are sizes from 0", d,
                  static_cast<long long>(call.shape[d]));
    empty |= call.shape[d] == 0;
    if (call.shape[d] && __builtin_mul_overflow(elements, call.shape[d], &elements))
      return fail(Code::invalid_argument, "shape: has more bytes than 63 bits can count");
  }
  if (const Status status = check_temperature(call.dtype, call.temperature); !status.ok()) return status;
  const double cap = call.dtype == DType::f64 ? call.softcap : static_cast<float>(call.softcap);
  if (!(call.softcap >= 0.0) || !std::isfinite(cap) || (cap == 0.0 && call.softcap != 0.0))
    return fail(Code::invalid_argument, "softcap: got %g; accepted are finite numbers above 0, or 0 for none", call.softcap);
  if (call.causal && call.ndim < 2)
    return fail(Code::invalid_argument, "causal: x has 1 dimension; accepted are arrays of two and more");
  const View* const given[] = {&call.x,    &call.out, &call.where, &call.lengths, &call.bias,
                               &call.sink, &call.g,   &call.dbias, &call.dsink};
  constexpr const char* kNames[] = {"x", "out", "where", "lengths", "bias", "sink", "g", "dbias", "dsink"};
  for (int k = 0; k < 9; ++k) {
    if (k < 2 && !given[k]->data && !empty) return fail(Code::invalid_argument, "%s: missing", kNames[k]);
    if (given[k]->data && !given[k]->strides) return fail(Code::invalid_argument, "%s: has no strides", kNames[k]);
  }
  return Status{};
}

MaskedPlan::MaskedPlan(const MaskedCall& call, const RaggedJob& forward, const RaggedJob* backward)
    : call(call), forward(forward), backward(backward) {
  const View* views[kViews] = {&call.x,    &call.g,   &call.where, &call.lengths, &call.bias,
                               &call.sink, &call.out, &call.dbias, &call.dsink};
  const int axis = call.axis < 0 ? call.axis + call.ndim : call.axis;
  for (int k = 0; k < kViews; ++k) data[k] = static_cast<char*>(views[k]->data);
  for (int d = 0; d < call.ndim; ++d) {
    if (d != axis) batch[batch_dims].size = call.shape[d], rows *= call.shape[d];
    for (int k = 0; k < kViews; ++k) (d == axis ? stride : batch[batch_dims].stride)[k] = data[k] ? views[k]->strides[d] : 0;
    batch_dims += d != axis;
  }
  n = call.shape[axis];
  causal_rows = batch_dims ? batch[batch_dims - 1].size : 1;
  row_value = call.op == Op::logsumexp;
  options = call.where.data || call.bias.data || call.temperature != 1.0 || call.softcap != 0.0;
  absent = call.op == Op::log_softmax ? -kInfinity : 0.0;
  divisor = call.temperature;
  if (call.dtype == DType::f64 && std::isfinite(divisor)) {  // a float's logits are well within a double
    int exponent;
    divisor = std::frexp(divisor, &exponent);
    pre = 0x1p-4;
    if (exponent > 0) divisor = call.temperature, exponent = 0;
    if (exponent % 2) exponent -= 1, divisor *= 2.0;
    scale = std::ldexp(1.0, exponent / 2 - 2);
  }
}

Status check_lengths(const MaskedPlan& plan) {
  if (!plan.data[kLengths]) return Status{};
  MaskedPlan distinct = plan;
  distinct.rows = 1;
  for (int d = 0; d < distinct.batch_dims; ++d) {
    if (distinct.batch[d].stride[kLengths] == 0 && distinct.batch[d].size > 1) distinct.batch[d].size = 1;
    distinct.rows *= distinct.batch[d].size;
  }
  for (std::int64_t r = 0; r < distinct.rows; ++r) {
    std::int64_t length;
    std::memcpy(&length, distinct.addresses(r).of[kLengths], sizeof(length));
    if (length < 0 || length > plan.n)
      return fail(Code::invalid_argument, "lengths: got %lld for row %lld; accepted are 0 to %lld, the length of the axis",
                  static_cast<long long>(length), static_cast<long long>(r), static_cast<long long>(plan.n));
  }
  return Status{};
}

void run(const MaskedPlan& plan) {
  if (plan.call.g.data) return MaskedBackward(plan).run();
  const int threads = threads_for(plan.rows * plan.n);
  const std::int64_t step = std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(plan.n, 1));
  struct Work {
    const MaskedPlan& plan;
    std::int64_t step;
  } work = {plan, step};
  run_parts((plan.rows + step - 1) / step, threads,
            [](void* context, std::int64_t i, Workspace& workspace) {
              const Work& work = *static_cast<Work*>(context);
              MaskedRows(work.plan, workspace).forward(i * work.step, std::min((i + 1) * work.step, work.plan.rows));
            },
            &work);
}

}  // namespace

Status masked(const MaskedCall& call) noexcept {
  const DefaultFloatingPoint mode;
  Status status = check_call(call);
  if (!status.ok()) return status;
  return with_scratch([&]() -> Status {
    const bool back = call.g.data != nullptr;
    const RaggedJob forward(back && call.op == Op::logsumexp ? Op::logsumexp_vjp : call.op, call.dtype);
    const RaggedJob backward(call.op == Op::softmax ? Op::softmax_vjp : Op::log_softmax_vjp, call.dtype);
    const MaskedPlan plan(call, forward, back && call.op != Op::logsumexp ? &backward : nullptr);
    if (plan.rows == 0) return status;
    status = check_lengths(plan);
    if (!status.ok() || (plan.n == 0 && !plan.row_value && !back)) return status;
    run(plan);
    return status;
  });
}

}  // namespace sumexp
