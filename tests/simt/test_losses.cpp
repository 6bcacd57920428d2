// Cross-entropy on the machine against the CPU's, byte by byte: options drawn at random over dtypes, kinds of targets, lengths,
// layouts and specials; targets out of range; sums over more rows than one block adds.   usage: test_simt_losses [seed] [cases]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "arch/arch.hpp"
#include "formats.cuh"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "sumexp/cuda.hpp"

namespace {

using namespace sumexp;
namespace gpu = sumexp::SUMEXP_NS;

std::int64_t below(std::int64_t n) { return std::int64_t(uniform() * double(n)); }
bool one_in(int n) { return below(n) == 0; }

void put(DType dtype, unsigned char* at, double x) {
  const float f = float(x);
  const gpu::f16 h = gpu::Narrow<gpu::f16>::from(f);
  const gpu::bf16 b = gpu::Narrow<gpu::bf16>::from(f);
  switch (dtype) {
    case DType::f16: std::memcpy(at, &h, 2); break;
    case DType::bf16: std::memcpy(at, &b, 2); break;
    case DType::f32: std::memcpy(at, &f, 4); break;
    default: std::memcpy(at, &x, 8);
  }
}
std::int64_t item(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
std::int64_t item(IndexType type) { return 1 << (int(type) % 4); }

using Bytes = simt::Buffer<unsigned char>;
using Buffer = std::unique_ptr<Bytes>;

// Bytes at the end of pages, or at their beginning.
Buffer buffer(std::int64_t bytes, const char* name, int skip = 0) {
  return std::make_unique<Bytes>(std::size_t(bytes), skip ? simt::Place::front : simt::Place::back, name, std::size_t(skip));
}

// A call with its inputs; results go to places of its own.
struct Case {
  DType dtype;
  std::int64_t n, shape[3], strides[3], of_rows[3], of_target[3], of_shares[3];
  std::int64_t rows, wide;
  int axis;
  Buffer x, target, share, weight, token, g;
  CrossEntropyCall call;
  bool in_place, gradient, statistics, keeps_losses;
  bool coarse = one_in(5);  // of few numbers: many are the largest

  explicit Case(bool specials) {
    constexpr std::int64_t kSizes[] = {1, 2, 7, 16, 65, 255, 256, 257, 513, 1000, 2048, 2049, 4500, 16384, 17000, 36001};
    dtype = DType(below(4));
    const int length = int(below(one_in(3) ? 16 : 12));
    n = kSizes[length];
    const std::int64_t outer = 1 + below(2), inner = 1 + below(n > 3000 ? 2 : 5);
    const int layout = int(below(3));  // classes last, in the middle, last and every second
    axis = layout == 1 ? 1 : 2;
    rows = outer * inner, wide = dtype == DType::f64 ? 8 : 4;
    const std::int64_t size = item(dtype), skip = layout == 2 ? 2 : 1;
    shape[0] = outer, shape[axis] = n, shape[3 - axis] = inner;
    strides[2] = size * skip, strides[1] = shape[2] * strides[2], strides[0] = shape[1] * strides[1];
    x = buffer(rows * n * size * skip, "logits", one_in(3) ? int(size) : 0);
    // Quotients by the temperature that overflow: of large logits, or by the smallest of temperatures.
    const bool large = dtype != DType::f16 && one_in(5), small = !large && one_in(8);
    const double scale = large       ? (dtype == DType::f64 ? 1e308 : 2e38)
                         : one_in(3) ? 30.0
                                     : 3.0,
                 offset = one_in(4)   ? -70000.0
                          : one_in(4) ? 900.0
                                      : 0.0;
    for (std::int64_t i = 0; i < rows * n * skip; ++i)
      put(dtype, x->data() + i * size,
          coarse ? (one_in(12) ? 2.0 : 0.0)
                 : (uniform() + uniform() + uniform() - 1.5) * scale + (dtype == DType::f16 ? 0 : offset));
    call.kind = TargetKind(below(3)), call.index_type = IndexType(below(8)), call.target_dtype = DType(below(4));
    call.pairs = call.kind == TargetKind::pairs ? (one_in(4) ? 40 : 3) : 0;
    if (specials) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const double value = one_in(4) ? std::nan("") : one_in(3) ? HUGE_VAL : -HUGE_VAL;
        const bool all = one_in(5);
        for (std::int64_t j = 0; j < n; ++j)
          if (all || one_in(n > 20 ? 20 : 3)) put(dtype, logit(r, j), all ? -HUGE_VAL : value);
      }
    }
    set_targets();
    if (one_in(2)) set_weights();
    if (one_in(2)) call.label_smoothing = one_in(5) ? 1.0 : 0.125;
    if (one_in(3)) call.z_loss = 0.01;
    if (one_in(3)) call.softcap = 9.0;
    if (one_in(3)) call.temperature = 1.75;
    if (large) call.temperature = one_in(2) ? 0.5 : 1e-3;
    if (small) call.temperature = dtype == DType::f64 ? 1e-310 : 1e-40;
    call.reduction = LossReduction(below(3));
    if (call.reduction == LossReduction::mean && one_in(3)) call.given_denominator = true, call.denominator = double(below(3));
    call.zero_if_empty = one_in(2);
    in_place = one_in(2), gradient = !one_in(5), statistics = one_in(2), keeps_losses = one_in(2);
  }
  unsigned char* logit(std::int64_t r, std::int64_t j) const {
    const std::int64_t inner = shape[3 - axis];
    return x->data() + r / inner * strides[0] + r % inner * strides[3 - axis] + j * strides[axis];
  }
  void set_targets() {
    call.ignore_index = one_in(3) ? 0 : -100;
    const bool pairs = call.kind == TargetKind::pairs;
    const std::int64_t each = pairs ? call.pairs : 1, inner = shape[3 - axis];
    if (call.kind == TargetKind::probabilities) {
      const std::int64_t size = item(call.target_dtype);
      of_target[axis] = size * rows, of_target[3 - axis] = size, of_target[0] = size * inner;  // side by side
      target = buffer(rows * n * size, "target");
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t j = 0; j < n; ++j) {
          unsigned char* const at = target->data() + (j * rows + r) * size;
          put(call.target_dtype, at, coarse ? (*(logit(r, j) + item(dtype) - 1) ? 1.0 : 0.0) : one_in(3) ? 0 : uniform());
        }
    } else {
      const std::int64_t size = item(call.index_type);
      of_target[axis] = pairs ? size : 0, of_target[3 - axis] = size * each, of_target[0] = size * each * inner;
      target = buffer(rows * each * size, "target");
      const std::int64_t most = size == 1 && n > 127 ? 127 : size == 2 && n > 30000 ? 30000 : n;
      for (std::int64_t i = 0; i < rows * each; ++i) {
        std::int64_t t = one_in(5) ? call.ignore_index : below(most);
        if (t < 0 && int(call.index_type) > 3) t = 0;
        std::memcpy(target->data() + i * size, &t, std::size_t(size));
      }
    }
    if (pairs) {
      const std::int64_t size = item(call.target_dtype);
      of_shares[axis] = size, of_shares[3 - axis] = size * each, of_shares[0] = size * each * inner;
      share = buffer(rows * each * size, "target_weight");
      for (std::int64_t i = 0; i < rows * each; ++i)
        put(call.target_dtype, share->data() + i * size, one_in(4) ? 0 : uniform());
    }
  }
  void set_weights() {
    of_rows[axis] = 0, of_rows[3 - axis] = 8, of_rows[0] = 8 * shape[3 - axis];
    weight = buffer(n * wide, "weight"), token = buffer(rows * 8, "token_weight"), g = buffer(rows * 8, "g");
    for (std::int64_t j = 0; j < n; ++j)
      put(wide == 8 ? DType::f64 : DType::f32, weight->data() + j * wide, one_in(4) ? 0 : uniform());
    for (std::int64_t r = 0; r < rows; ++r) {
      put(DType::f64, token->data() + r * 8, one_in(4) ? 0 : uniform());
      put(DType::f64, g->data() + r * 8, uniform() * 2 - 1);
    }
  }

  // Where a call leaves its results.
  struct Results {
    Buffer logits, gradient, loss, row_loss, lse, log_prob, entropy, z_loss, predicted, correct;
  };
  // The call with places for its results.
  CrossEntropyCall prepared(Results& to) {
    to.logits =
        buffer(std::int64_t(x->size()), "logits", reinterpret_cast<std::uintptr_t>(x->data()) % 16 ? int(item(dtype)) : 0);
    std::memcpy(to.logits->data(), x->data(), x->size());
    to.gradient = buffer(std::int64_t(x->size()), "dlogits");
    std::memset(to.gradient->data(), 0, x->size());
    CrossEntropyCall made = call;
    made.dtype = dtype, made.ndim = 3, made.shape = shape, made.axis = axis;
    made.logits = {to.logits->data(), strides}, made.target = {target->data(), of_target};
    if (share) made.target_weight = {share->data(), of_shares};
    if (weight) made.weight = weight->data(), made.token_weight = {token->data(), of_rows}, made.g = {g->data(), of_rows};
    if (gradient) made.dlogits = in_place ? made.logits : View{to.gradient->data(), strides};
    const auto place = [&](Buffer& b, std::int64_t bytes, const char* name) {
      b = buffer(bytes, name);
      return b->data();
    };
    made.loss = place(to.loss, (call.reduction == LossReduction::none ? rows : 1) * item(dtype), "loss");
    if (keeps_losses) made.row_loss = place(to.row_loss, rows * wide, "row_loss");
    if (!statistics) return made;
    made.lse = place(to.lse, rows * wide, "lse"), made.log_prob = place(to.log_prob, rows * wide, "log_prob");
    made.entropy = place(to.entropy, rows * wide, "entropy"), made.z_loss_part = place(to.z_loss, rows * wide, "z_loss_part");
    made.predicted = reinterpret_cast<std::int64_t*>(place(to.predicted, rows * 8, "predicted"));
    made.correct = place(to.correct, rows, "correct");
    return made;
  }
};

// Runs a call on the machine, with the workspace that it asks for.
Status on_machine(const CrossEntropyCall& call) {
  cuda::Target target;
  Status status = cuda::cross_entropy(call, target);
  if (status.code != Code::needs_workspace) return status;
  const Bytes workspace(target.workspace_bytes, simt::Place::front, "workspace");
  target.workspace = workspace.data();
  status = cuda::cross_entropy(call, target);
  if (!workspace.intact()) std::printf("FAILED: wrote beside the workspace\n"), ++failures;
  return status;
}

const char* difference(const Case::Results& a, const Case::Results& b) {
  const Buffer Case::Results::*const members[] = {&Case::Results::loss,      &Case::Results::row_loss, &Case::Results::lse,
                                                  &Case::Results::log_prob,  &Case::Results::entropy,  &Case::Results::z_loss,
                                                  &Case::Results::predicted, &Case::Results::correct,  &Case::Results::logits,
                                                  &Case::Results::gradient};
  constexpr const char* kNames[] = {"loss",   "row_loss",  "lse",     "log_prob",        "entropy",
                                    "z_loss", "predicted", "correct", "logits in place", "dlogits"};
  for (int i = 0; i < 10; ++i) {
    const Buffer &one = a.*members[i], &other = b.*members[i];
    if (!one) continue;
    if (std::memcmp(one->data(), other->data(), one->size()) != 0) return kNames[i];
    if (!other->intact()) return "memory beside a result";
  }
  return nullptr;
}

void check_random(int number) {
  Case c(number % 4 == 3);
  Case::Results want, got;
  const CrossEntropyCall on_cpu = c.prepared(want), on_gpu = c.prepared(got);
  const Status expected = cross_entropy(on_cpu), status = on_machine(on_gpu);
  ++checks;
  const char* wrong = nullptr;
  if (!expected.ok()) wrong = expected.message;
  else if (!status.ok()) wrong = status.message;
  else wrong = difference(want, got);
  if (!wrong) return;
  ++failures;
  std::printf(
      "FAILED case %d: %s. dtype %d, %lld rows of %lld, axis %d, stride %lld, kind %d, pairs %lld, target_dtype %d, weights "
      "%d, "
      "smoothing %g, z_loss %g, softcap %g, temperature %g, reduction %d, denominator %d, statistics %d, in place %d\n",
      number, wrong, int(c.dtype), (long long)c.rows, (long long)c.n, c.axis, (long long)c.strides[c.axis], int(c.call.kind),
      (long long)c.call.pairs, int(c.call.target_dtype), c.weight != nullptr, c.call.label_smoothing, c.call.z_loss,
      c.call.softcap, c.call.temperature, int(c.call.reduction), c.call.given_denominator, c.statistics, c.in_place);
}

void expect(bool right, const char* what);

// Weights that cancel, so that a loss is nothing but what sums in the wide type round off: their order shows.
template <class T>
void check_order(std::int64_t n, bool columns) {
  constexpr std::int64_t kRows = 3;
  const std::int64_t size = sizeof(T), across = columns ? kRows : n, shape[] = {columns ? n : kRows, across};
  const std::int64_t strides[] = {across * size, size}, step = columns ? kRows : 1;
  const simt::Buffer<T> x(std::size_t(kRows * n)), y(std::size_t(kRows * n)), want(2 * kRows), got(2 * kRows);
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t j = 0; j < n; ++j) {
      const auto at = std::size_t(columns ? j * kRows + r : r * n + j);
      const bool paired = j >= n / 2 && j < n / 2 * 2;  // with the one half a row before
      x[at] = paired ? x[at - std::size_t(n / 2 * step)] : T(uniform() * 20);
      y[at] = paired ? -y[at - std::size_t(n / 2 * step)] : T(j == n - 1 ? 0 : uniform());
    }
  CrossEntropyCall call;
  call.dtype = call.target_dtype = size == 8 ? DType::f64 : DType::f32;
  call.ndim = 2, call.shape = shape, call.axis = columns ? 0 : 1, call.logits = {x.data(), strides};
  call.kind = TargetKind::probabilities, call.target = {y.data(), strides}, call.reduction = LossReduction::none;
  for (const double smoothing : {0.0, 0.125}) {
    call.label_smoothing = smoothing;
    call.loss = want.data(), call.log_prob = want.data() + kRows;
    expect(cross_entropy(call).ok(), "sums that cancel, on the CPU");
    bool seen = false;
    for (std::size_t r = kRows; r < 2 * kRows; ++r) seen = seen || (want[r] != T(0) && std::fabs(want[r]) < T(1e-9));
    expect(seen, "sums that cancel do");
    call.loss = got.data(), call.log_prob = got.data() + kRows;
    expect(on_machine(call).ok() && std::memcmp(want.data(), got.data(), std::size_t(2 * kRows * size)) == 0,
           "sums that cancel");
  }
}

void expect(bool right, const char* what) {
  ++checks;
  if (right) return;
  ++failures;
  std::printf("FAILED: %s\n", what);
}

// Rows whose target is no class: NaN, and nothing else.
void check_out_of_range(std::int64_t n, bool pairs, bool weights) {
  constexpr std::int64_t kRows = 5;
  const std::int64_t shape[] = {kRows, n}, strides[] = {4 * n, 4}, each = pairs ? 2 : 1,
                     of_target[] = {8 * each, pairs ? 8 : 0};
  const std::int64_t of_shares[] = {8, 4};
  const auto floats = [](std::int64_t count, const char* name) {
    auto b = std::make_unique<simt::Buffer<float>>(std::size_t(count), simt::Place::back, name);
    for (std::size_t i = 0; i < b->size(); ++i) (*b)[i] = float(uniform());
    return b;
  };
  const auto x = floats(kRows * n, "logits"), gradient = floats(kRows * n, "dlogits"), loss = floats(kRows, "loss");
  const auto share = floats(2 * kRows, "target_weight"), weight = floats(n, "weight"), mean = floats(1, "the mean");
  const auto want = floats(kRows * n, "want"), want_loss = floats(kRows, "want_loss");
  simt::Buffer<std::int64_t> target(std::size_t(kRows * each), simt::Place::back, "target");
  for (std::size_t i = 0; i < target.size(); ++i) target[i] = below(n);
  CrossEntropyCall call;
  call.ndim = 2, call.shape = shape, call.logits = {x->data(), strides}, call.target = {target.data(), of_target};
  if (pairs) call.kind = TargetKind::pairs, call.pairs = 2, call.target_weight = {share->data(), of_shares};
  if (weights) call.weight = weight->data();
  call.reduction = LossReduction::none, call.loss = want_loss->data(), call.dlogits = {want->data(), strides};
  if (!cross_entropy(call).ok()) ++failures;
  constexpr std::int64_t kBad[] = {-1, INT64_MAX, INT64_MIN};
  for (int r = 0; r < 3; ++r) target[std::size_t((r + 1) * each - 1)] = r == 1 ? kBad[1] : r == 0 ? n : kBad[0];
  call.loss = loss->data(), call.dlogits = {gradient->data(), strides};
  expect(on_machine(call).ok(), "targets out of range: a status");
  bool right = true;
  for (std::size_t r = 0; r < kRows; ++r) {
    right = right && (r < 3 ? (*loss)[r] != (*loss)[r] : (*loss)[r] == (*want_loss)[r]);
    for (std::size_t j = r * std::size_t(n); j < (r + 1) * std::size_t(n); ++j)
      right = right && (r < 3 ? (*gradient)[j] != (*gradient)[j] : (*gradient)[j] == (*want)[j]);
  }
  expect(right, "targets out of range: rows");
  call.reduction = LossReduction::mean, call.loss = mean->data();
  expect(on_machine(call).ok() && (*mean)[0] != (*mean)[0], "targets out of range: the mean");
  right = true;
  for (std::size_t j = 3 * std::size_t(n); j < kRows * std::size_t(n); ++j) right = right && std::isfinite((*gradient)[j]);
  expect(right, "targets out of range: other rows of a mean");
}

// More rows than a block's threads add in one round, and than one block adds; and none.
void check_many_rows(std::int64_t rows, DType dtype, bool weights) {
  const std::int64_t size = item(dtype), wide = dtype == DType::f64 ? 8 : 4, shape[] = {rows, 2}, strides[] = {2 * size, size};
  const std::int64_t of_rows[] = {8, 0}, of_target[] = {1, 0};
  const Buffer x = buffer(rows * 2 * size, "logits"), target = buffer(rows, "target"), token = buffer(rows * 8, "token_weight");
  const Buffer losses = buffer(rows * wide, "row_loss"), want = buffer(size, "want"), got = buffer(size, "got");
  for (std::int64_t i = 0; i < rows * 2; ++i) put(dtype, x->data() + i * size, uniform() * 8);
  for (std::int64_t r = 0; r < rows; ++r) {
    target->data()[r] = static_cast<unsigned char>(below(3) == 2 ? 156 : below(2));  // -100 in 8 bits
    put(DType::f64, token->data() + r * 8, uniform());
  }
  CrossEntropyCall call;
  call.dtype = dtype, call.ndim = 2, call.shape = shape, call.logits = {x->data(), strides};
  call.index_type = IndexType::i8, call.target = {target->data(), of_target}, call.loss = want->data();
  if (weights) call.token_weight = {token->data(), of_rows};
  call.row_loss = losses->data();
  expect(cross_entropy(call).ok(), "many rows, on the CPU");
  double of_cpu = 0.0;
  expect(cross_entropy_denominator(call, &of_cpu).ok(), "a denominator");
  double sum = 0.0;
  expect(sum_rows(losses->data(), dtype, rows, &sum).ok(), "a sum");
  call.loss = got->data(), call.row_loss = nullptr;
  expect(on_machine(call).ok() && std::memcmp(want->data(), got->data(), std::size_t(size)) == 0, "many rows");
  const simt::Buffer<double> place(2, simt::Place::back, "numbers");
  const Bytes workspace(1 << 20, simt::Place::front, "workspace");
  cuda::Target to;
  to.workspace = workspace.data(), to.workspace_bytes = workspace.size();
  expect(cuda::cross_entropy_denominator(call, place.data(), to).ok() && place[0] == of_cpu, "a denominator on the machine");
  expect(cuda::sum_rows(losses->data(), dtype, rows, place.data() + 1, to).ok() && place[1] == sum, "a sum on the machine");
}

void check_refusals() {
  CrossEntropyCall call;
  cuda::Target target;
  const std::int64_t shape[] = {2, 3}, strides[] = {12, 4};
  call.ndim = 2, call.shape = shape, call.logits = {nullptr, strides};
  expect(cuda::cross_entropy(call, target).code == Code::invalid_argument, "a missing target");
  call.label_smoothing = 2.0;
  expect(cuda::cross_entropy(call, target).code == Code::invalid_argument, "an option out of range");
}

}  // namespace

int main(int argc, char** argv) {
  random_state = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const int cases = argc > 2 ? std::atoi(argv[2]) : 600;
  for (int i = 0; i < cases; ++i) check_random(i);
  for (const std::int64_t n : {3, 300, 5000})
    for (const int option : {0, 1, 2, 3}) check_out_of_range(n, option & 1, option & 2);
  for (const std::int64_t n : {300, 2050, 5000, 36001})
    for (const bool columns : {false, true}) check_order<float>(n, columns), check_order<double>(n, columns);
  for (const std::int64_t rows : {0, 1, 2048, 2049, 20000})
    for (const bool weights : {false, true}) {
      check_many_rows(rows, DType::f32, weights);
      check_many_rows(rows, DType::f64, weights);
    }
  check_refusals();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
