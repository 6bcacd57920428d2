// Masked rows on one thread. A row is packed piece by piece, with what the options make of it, and goes through the kernels of
// the plain ops: what is left out is -inf, which adds nothing, and what lies behind the row's last element is not there at all.
// A sink is a state of its own, of one element, that merges last. Rows of one chunk without a sink go as panels, with -inf
// behind their ends.
#pragma once

#include <algorithm>
#include <cmath>

#include "masked_plan.hpp"

namespace sumexp::cpu {

using SUMEXP_NS::MaskedKind;

constexpr std::int64_t kCopiedBytes = 512 << 10;  // of a row that is copied whole
constexpr std::int64_t kDirectPanel = 256;        // longer rows that need no copy are taken where they lie

template <class T>
MaskedKind kind_of(const void* from) {
  SUMEXP_NS::ExpState<T> state;
  std::memcpy(&state, from, sizeof(state));
  return SUMEXP_NS::masked_kind(state);
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
    const MaskedKind kind = merge_sink();
    double sink_gradient = 0.0;
    if (kind == MaskedKind::nothing) {
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
  bool one_value() const { return plan_.row_value && !plan_.back; }

  void fill(std::int64_t first, std::int64_t count, double value) const {
    if (count > 0) job_.ragged.fill(at_.of[kResult] + first * plan_.stride[kResult], plan_.stride[kResult], count, value);
  }
  LogitOptions options_at(std::int64_t first) const {
    return {at_.of[kMask] ? at_.of[kMask] + first * plan_.stride[kMask] : nullptr, plan_.stride[kMask],
            at_.of[kBias] ? at_.of[kBias] + first * plan_.stride[kBias] : nullptr, plan_.stride[kBias], plan_.scale};
  }
  void pack_logits(std::int64_t first, int count, void* to) {
    moves_.pack(at_.of[kX], plan_.stride[kX], first, count, to);
    if (!plan_.options) return;
    if (apart_) job_.ragged.logits_apart(options_at(first), count, top_, to);
    else suspect_ |= !job_.ragged.logits(options_at(first), count, to);
  }
  // Whether a logit of the row overflows, of elements that count. Then all are taken less the largest of them.
  void set_apart() {
    top_ = {-kInfinity, 0.0, 0.0};
    suspect_ = false;
    each_chunk([&](std::int64_t first, int count) {
      moves_.pack(at_.of[kX], plan_.stride[kX], first, count, packed_);
      apart_ |= job_.ragged.overflows(options_at(first), count, packed_, &top_);
    });
    if (at_.of[kSink]) {
      load_sink();
      top_ = job_.wide == 8 ? SUMEXP_NS::larger_with_sink(plan_.scale, top_, number(&sink_))
                            : SUMEXP_NS::larger_with_sink(plan_.scale, top_, static_cast<float>(number(&sink_)));
    }
    if (one_value()) top_ = {0.0, 0.0, 0.0};
  }
  void load_sink() { moves_.pack(at_.of[kSink], 0, 0, 1, &sink_); }
  void shift_sink() {
    if (job_.wide == 8) {
      sink_ = SUMEXP_NS::sink_apart(plan_.scale, top_, number(&sink_));
    } else {
      const float sink = SUMEXP_NS::sink_apart(plan_.scale, top_, static_cast<float>(number(&sink_)));
      std::memcpy(&sink_, &sink, sizeof(sink));
    }
  }
  void leave_out(std::int64_t first, int count, double value, void* x) const {
    if (at_.of[kMask] || at_.of[kBias]) job_.ragged.leave_out(options_at(first), count, value, x);
  }
  // The same of the forward's results, which a bias of -inf has made `value` already, unless all are NaN.
  void leave_out_results(std::int64_t first, int count, double value, void* x) const {
    if (at_.of[kMask] || (at_.of[kBias] && std::isnan(number(x)))) job_.ragged.leave_out(options_at(first), count, value, x);
  }

  // -- a row alone ----------------------------------------------------------------------------------------------

  void begin(std::int64_t n, bool packed) {
    n_ = n;
    apart_ = suspect_ = false;
    elements_ = !packed && direct() ? kStored : kScratch;
    const bool back = plan_.back;
    const std::int64_t bytes = n * job_.wide, chunk = std::int64_t{job_.order.chunk} * job_.wide, chunks = job_.chunks_of(n);
    resident_ = elements_ == kScratch && bytes <= kCopiedBytes;
    const std::int64_t place = resident_ ? bytes : chunk;
    const bool probabilities = job_.info.probabilities, stored = elements_ == kStored;
    const bool apart = probabilities && stored && job_.item != job_.wide && bytes <= kCopiedBytes;
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
  MaskedKind merge_sink() {
    if (at_.of[kSink]) {
      char* const state = tree_.stack;  // what the tree had there has been merged
      load_sink();
      if (apart_) shift_sink();
      kernel_.reduce[0][kScratch](sink_chunk(&sink_, nullptr), nullptr, state);
      kernel_.merge(state_, state, state_);
    }
    return job_.wide == 8 ? kind_of<double>(state_) : kind_of<float>(state_);
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
    const MaskedKind kind = merge_sink();
    if (one_value()) {
      finish(nullptr);
      return kernel_.emit(finished_, at_.of[kResult], nullptr);
    }
    if (kind == MaskedKind::nothing) return fill(0, plan_.n, plan_.call.empty == Empty::nan ? kNaN() : plan_.absent);
    finish(nullptr);
    each_chunk([&](std::int64_t first, int count) {
      if (elements_ == kScratch && !resident_) pack_logits(first, count, packed_);
      const Chunk chunk = chunk_at(first, count);
      kernel_.map[elements_](chunk, finished_);
      if (elements_ == kStored) return;
      leave_out_results(first, count, plan_.absent, chunk.out);
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
      leave_out_results(0, static_cast<int>(n), plan_.absent, from);
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
    leave_out_results(first, count, plan_.backward ? plan_.absent : 0.0, place);
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

}  // namespace sumexp::cpu
