// The softmax layer in chunks of tokens.
#include <sumexp/linear.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../ops/losses.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "call.hpp"
#include "head.hpp"

namespace sumexp {

namespace {

using namespace cpu;

// Products run in the floating-point mode of the caller, all else in the default one.
class Head {
 public:
  explicit Head(const LinearCrossEntropyCall& call) : call_(call), item_(head_item(call)) {}

  Status run() {
    Status status = check_head(call_);
    if (!status.ok()) return status;
    CrossEntropyCall loss = of_rows(0, call_.tokens);
    double denominator = 1.0;
    status = cross_entropy_denominator(loss, &denominator);  // checks options and targets too
    if (!status.ok()) return status;
    if (!loss.given_denominator) denominator_ = denominator;
    else denominator_ = loss.denominator_at ? *loss.denominator_at : loss.denominator;
    find_kept();
    if (!loss.row_loss) row_loss_.resize(static_cast<std::size_t>(call_.tokens * item_));
    clear_left_out();
    const std::int64_t kept = static_cast<std::int64_t>(kept_.size()), chunk = head_rows(call_, kept);
    logits_.resize(static_cast<std::size_t>(std::min(chunk, kept) * call_.classes * item_));
    for (std::int64_t first = 0; first < kept && status.ok(); first += chunk)
      status = sweep(kept_.data() + first, std::min(chunk, kept - first), first == 0);
    return status.ok() ? reduce() : status;
  }

 private:
  bool wants_gradient() const { return call_.dx || call_.dw || call_.dbias; }
  std::size_t bytes(std::int64_t elements) const { return static_cast<std::size_t>(elements * item_); }
  const char* x_row(std::int64_t r) const { return static_cast<const char*>(call_.x) + r * call_.x_step * item_; }
  char* at(void* all, std::int64_t element) const { return static_cast<char*>(all) + element * item_; }

  CrossEntropyCall of_rows(std::int64_t first, std::int64_t count) { return loss_of_tokens(call_, first, count, shape_); }

  bool is_ignored(std::int64_t row) const {
    const CrossEntropyCall& loss = call_.loss;
    if (loss.kind == TargetKind::probabilities) return false;
    const char* const target = static_cast<const char*>(loss.target.data) + row * loss.target.strides[0];
    const std::int64_t count = loss.kind == TargetKind::pairs ? loss.pairs : 1;
    for (std::int64_t k = 0; k < count; ++k) {
      const SUMEXP_NS::Index index = SUMEXP_NS::read_index(loss.index_type, target + k * loss.target.strides[1]);
      if (index.huge || index.value != loss.ignore_index) return false;
    }
    return true;
  }
  void find_kept() {
    for (std::int64_t r = 0; r < call_.tokens; ++r)
      if (!is_ignored(r)) kept_.push_back(r);
  }
  // What is told of ignored tokens, and gradients before anything is added.
  void clear_left_out() {
    const CrossEntropyCall& loss = call_.loss;
    for (void* rows : {loss.row_loss, loss.lse, loss.log_prob, loss.entropy, loss.z_loss_part,
                       loss.reduction == LossReduction::none ? loss.loss : nullptr})
      if (rows) std::memset(rows, 0, bytes(call_.tokens));
    if (loss.predicted) std::fill(loss.predicted, loss.predicted + call_.tokens, -1);
    if (loss.correct) std::memset(loss.correct, 0, static_cast<std::size_t>(call_.tokens));
    if (call_.dx) std::memset(call_.dx, 0, bytes(call_.tokens * call_.width));
    if (call_.dbias) std::memset(call_.dbias, 0, bytes(call_.classes));
    if (call_.dw && !call_.add_dw && kept_.empty()) std::memset(call_.dw, 0, bytes(call_.classes * call_.width));
  }

  // body(first of the run in the chunk, its length) for tokens that follow each other
  template <class Body>
  void each_run(const std::int64_t* rows, std::int64_t count, Body body) const {
    for (std::int64_t i = 0, end; i < count; i = end) {
      for (end = i + 1; end < count && rows[end] == rows[end - 1] + 1;) ++end;
      body(i, end - i);
    }
  }

  // One chunk of tokens that are kept.
  Status sweep(const std::int64_t* rows, std::int64_t count, bool first) {
    const std::int64_t v = call_.classes, d = call_.width;
    const bool together = rows[count - 1] - rows[0] == count - 1;
    const void* x = x_row(rows[0]);
    std::int64_t step = call_.x_step;
    if (!together) {
      packed_.resize(bytes(count * d));
      for (std::int64_t i = 0; i < count; ++i) std::memcpy(packed_.data() + bytes(i * d), x_row(rows[i]), bytes(d));
      x = packed_.data(), step = d;
    }
    multiply(false, true, count, v, d, x, step, call_.w, call_.w_step, false, logits_.data(), v);
    if (call_.bias) add_bias(count);
    Status status;
    each_run(rows, count, [&](std::int64_t i, std::int64_t length) {
      if (status.ok()) status = losses(rows[i], i, length);
    });
    if (!status.ok()) return status;
    if (call_.dx) {
      void* to = at(call_.dx, rows[0] * d);
      if (!together) {
        back_.resize(bytes(count * d));
        to = back_.data();
      }
      multiply(false, false, count, d, v, logits_.data(), v, call_.w, call_.w_step, false, to, d);
      for (std::int64_t i = 0; !together && i < count; ++i)
        std::memcpy(at(call_.dx, rows[i] * d), back_.data() + bytes(i * d), bytes(d));
    }
    if (call_.dw) multiply(true, false, v, d, count, logits_.data(), v, x, step, call_.add_dw || !first, call_.dw, d);
    if (call_.dbias) add_rows(count);
    return status;
  }
  void multiply(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const void* a,
                std::int64_t a_step, const void* b, std::int64_t b_step, bool add, void* c, std::int64_t c_step) const {
    call_.gemm.multiply(call_.gemm.context, call_.loss.dtype, transpose_a, transpose_b, m, n, k, a, a_step, b, b_step, add, c,
                        c_step);
  }
  Status losses(std::int64_t row, std::int64_t in_chunk, std::int64_t count) {
    CrossEntropyCall loss = of_rows(row, count);
    const std::int64_t strides[] = {call_.classes * item_, item_};
    loss.logits = {logits_.data() + bytes(in_chunk * call_.classes), strides};
    if (wants_gradient()) loss.dlogits = loss.logits, loss.flush_subnormal = true;
    if (!loss.row_loss) loss.row_loss = row_loss_.data() + bytes(row);
    if (loss.reduction != LossReduction::none) loss.loss = nullptr;
    loss.given_denominator = loss.reduction == LossReduction::mean, loss.denominator_at = &denominator_;
    return cross_entropy(loss);
  }
  template <class T>
  void add_bias_of(std::int64_t count) {
    const T* const bias = static_cast<const T*>(call_.bias);
    T* z = reinterpret_cast<T*>(logits_.data());
    for (std::int64_t i = 0; i < count; ++i, z += call_.classes)
      for (std::int64_t j = 0; j < call_.classes; ++j) z[j] += bias[j];
  }
  template <class T>
  void add_rows_of(std::int64_t count) {
    T* const sum = static_cast<T*>(call_.dbias);
    const T* g = reinterpret_cast<const T*>(logits_.data());
    for (std::int64_t i = 0; i < count; ++i, g += call_.classes)
      for (std::int64_t j = 0; j < call_.classes; ++j) sum[j] += g[j];
  }
  void add_bias(std::int64_t count) {
    const DefaultFloatingPoint mode;
    item_ == 8 ? add_bias_of<double>(count) : add_bias_of<float>(count);
  }
  void add_rows(std::int64_t count) {
    const DefaultFloatingPoint mode;
    item_ == 8 ? add_rows_of<double>(count) : add_rows_of<float>(count);
  }

  // The reduction, over the losses of all tokens, in cross_entropy's order.
  Status reduce() const {
    const DefaultFloatingPoint mode;
    const CrossEntropyCall& loss = call_.loss;
    if (loss.reduction == LossReduction::none) return Status{};
    double sum = 0.0;
    const Status status = sum_rows(loss.row_loss ? loss.row_loss : row_loss_.data(), loss.dtype, call_.tokens, &sum);
    if (loss.reduction == LossReduction::mean) sum = SUMEXP_NS::mean_of(sum, denominator_, loss.zero_if_empty);
    if (item_ == 8) *static_cast<double*>(loss.loss) = sum;
    else *static_cast<float*>(loss.loss) = static_cast<float>(sum);
    return status;
  }

  const LinearCrossEntropyCall& call_;
  const std::int64_t item_;
  std::int64_t shape_[2] = {};
  double denominator_ = 1.0;
  std::vector<std::int64_t> kept_;
  std::vector<char> logits_, packed_, back_;
  mutable std::vector<char> row_loss_;
};

}  // namespace

Status cpu::check_head(const LinearCrossEntropyCall& call) {
  const CrossEntropyCall& loss = call.loss;
  if (loss.dtype != DType::f32 && loss.dtype != DType::f64)
    return fail(Code::invalid_argument, "dtype is code %d, accepted: 2 and 3 (f32, f64)", static_cast<int>(loss.dtype));
  const std::int64_t sizes[] = {call.tokens, call.width, call.classes, call.chunk};
  const char* const names[] = {"tokens", "width", "classes", "chunk"};
  for (int k = 0; k < 4; ++k)
    if (sizes[k] < 0)
      return fail(Code::invalid_argument, "%s is %lld, accepted: integers from 0", names[k], static_cast<long long>(sizes[k]));
  if (!call.gemm.multiply) return fail(Code::invalid_argument, "gemm is missing");
  const View* const views[] = {&loss.target, &loss.target_weight, &loss.token_weight, &loss.g};
  const char* const of_views[] = {"target", "target_weight", "token_weight", "g"};
  for (int k = 0; k < 4; ++k)
    if (views[k]->data && !views[k]->strides) return fail(Code::invalid_argument, "%s has no strides", of_views[k]);
  if (call.width > 0 && ((call.tokens > 0 && !call.x) || (call.classes > 0 && !call.w)))
    return fail(Code::invalid_argument, "%s is missing", call.classes > 0 && !call.w ? "w" : "x");
  if (call.x_step < call.width || call.w_step < call.width)
    return fail(Code::invalid_argument, "%s is %lld, accepted: integers from the width, %lld",
                call.x_step < call.width ? "x_step" : "w_step",
                static_cast<long long>(call.x_step < call.width ? call.x_step : call.w_step),
                static_cast<long long>(call.width));
  if (loss.reduction != LossReduction::none && !loss.loss) return fail(Code::invalid_argument, "loss is missing");
  return Status{};
}

std::int64_t cpu::head_rows(const LinearCrossEntropyCall& call, std::int64_t tokens) {
  if (call.chunk > 0) return std::min(call.chunk, std::max<std::int64_t>(tokens, 1));
  constexpr std::int64_t kLeastLogits = 1 << 20, kMostRows = 512;
  const std::int64_t least = kLeastLogits / std::max<std::int64_t>(call.classes, 1);
  const std::int64_t share = (tokens / 24 - kLeastLogits * 3 / 2 / std::max<std::int64_t>(call.classes, 1)) / 16 * 16;
  const std::int64_t rows = std::min(std::max({share, least, std::int64_t{16}}), std::max(kMostRows, least));
  return std::max<std::int64_t>(1, std::min(tokens, rows));
}

CrossEntropyCall cpu::loss_of_tokens(const LinearCrossEntropyCall& call, std::int64_t first, std::int64_t count,
                                     std::int64_t* shape) {
  shape[0] = count, shape[1] = call.classes;
  const std::int64_t item = head_item(call);
  const auto at = [&](void* all, std::int64_t element) { return static_cast<char*>(all) + element * item; };
  CrossEntropyCall loss = call.loss;
  loss.ndim = 2, loss.shape = shape, loss.axis = 1;
  loss.logits = loss.dlogits = {};
  for (View* view : {&loss.target, &loss.target_weight, &loss.token_weight, &loss.g})
    if (view->data) view->data = static_cast<char*>(view->data) + first * view->strides[0];
  for (void** rows : {&loss.row_loss, &loss.lse, &loss.log_prob, &loss.entropy, &loss.z_loss_part})
    if (*rows) *rows = at(*rows, first);
  if (loss.predicted) loss.predicted += first;
  if (loss.correct) loss.correct += first;
  if (loss.saved) loss.saved = static_cast<char*>(loss.saved) + first * cross_entropy_saved_bytes(loss.dtype, call.classes);
  if (loss.reduction == LossReduction::none && loss.loss) loss.loss = at(loss.loss, first);
  return loss;
}

Status linear_cross_entropy(const LinearCrossEntropyCall& call) noexcept {
  return with_scratch([&] { return Head(call).run(); });
}

}  // namespace sumexp
