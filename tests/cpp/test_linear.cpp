// The softmax layer in chunks against cross_entropy of the whole logits: equal bytes, as the product here adds in one order
// however it is divided.   usage: test_linear
#include <sumexp/linear.hpp>

#include <cfenv>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"

using check::Random;
using sumexp::Code;
using sumexp::DType;
using sumexp::LinearCrossEntropyCall;
using sumexp::LossReduction;
using sumexp::Status;
using sumexp::TargetKind;

namespace {

template <class T>
void multiply_as(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t as, const T* b,
                 std::int64_t bs, bool add, T* c, std::int64_t cs) {
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      T sum = add ? c[i * cs + j] : T(0);
      for (std::int64_t l = 0; l < k; ++l) sum += (ta ? a[l * as + i] : a[i * as + l]) * (tb ? b[j * bs + l] : b[l * bs + j]);
      c[i * cs + j] = sum;
    }
}
int products = 0, rounding = 0;
void multiply(void*, DType dtype, bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const void* a,
              std::int64_t as, const void* b, std::int64_t bs, bool add, void* c, std::int64_t cs) {
  ++products, rounding = std::fegetround();
  if (dtype == DType::f64)
    multiply_as(ta, tb, m, n, k, static_cast<const double*>(a), as, static_cast<const double*>(b), bs, add,
                static_cast<double*>(c), cs);
  else
    multiply_as(ta, tb, m, n, k, static_cast<const float*>(a), as, static_cast<const float*>(b), bs, add,
                static_cast<float*>(c), cs);
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

constexpr std::int64_t kTokens = 23, kWidth = 7, kClasses = 37, kStep = kWidth + 2, kPairs = 3;

template <class T>
struct Layer {
  std::vector<T> x = std::vector<T>(kTokens * kStep), w = std::vector<T>(kClasses * kStep), bias = std::vector<T>(kClasses);
  std::vector<T> probabilities = std::vector<T>(kTokens * kClasses), shares = std::vector<T>(kTokens * kPairs);
  std::vector<std::int64_t> index = std::vector<std::int64_t>(kTokens * kPairs);
  std::int64_t of_index[2], of_shares[2], of_probabilities[2] = {kClasses * std::int64_t{sizeof(T)}, sizeof(T)};

  explicit Layer(std::uint64_t seed) {
    Random random(seed);
    for (std::vector<T>* v : {&x, &w, &bias})
      for (T& e : *v) e = static_cast<T>(random.normal());
    for (T& e : probabilities) e = static_cast<T>(random.uniform() / kClasses);
    for (T& e : shares) e = static_cast<T>(random.uniform());
    for (std::int64_t& i : index) i = random.below(3) ? random.below(kClasses) : -100;
  }
  LinearCrossEntropyCall call(TargetKind kind, LossReduction reduction) {
    LinearCrossEntropyCall call;
    call.tokens = kTokens, call.width = kWidth, call.classes = kClasses;
    call.x = x.data(), call.w = w.data(), call.x_step = call.w_step = kStep, call.bias = bias.data();
    call.gemm.multiply = multiply;
    auto& loss = call.loss;
    loss.dtype = sizeof(T) == 8 ? DType::f64 : DType::f32, loss.kind = kind, loss.reduction = reduction;
    loss.target_dtype = loss.dtype, loss.label_smoothing = 0.1, loss.z_loss = 1e-3;
    const bool pairs = kind == TargetKind::pairs;
    of_index[0] = pairs ? 8 * kPairs : 8, of_index[1] = pairs ? 8 : 0;
    of_shares[0] = kPairs * std::int64_t{sizeof(T)}, of_shares[1] = sizeof(T);
    if (kind == TargetKind::probabilities) loss.target = {probabilities.data(), of_probabilities};
    else loss.target = {index.data(), of_index};
    if (pairs) loss.target_weight = {shares.data(), of_shares}, loss.pairs = kPairs;
    return call;
  }
};

template <class T>
struct Results {
  std::vector<T> loss, lse = std::vector<T>(kTokens, T(7)), dx = std::vector<T>(kTokens * kWidth, T(7)),
                       dw = std::vector<T>(kClasses * kWidth, T(7)), db = std::vector<T>(kClasses, T(7));
  std::vector<std::int64_t> predicted = std::vector<std::int64_t>(kTokens, 7);

  void into(sumexp::CrossEntropyCall& call) {
    loss.assign(call.reduction == LossReduction::none ? kTokens : 1, T(7));
    call.loss = loss.data(), call.lse = lse.data(), call.predicted = predicted.data();
  }
  bool operator==(const Results& o) const {
    return same(loss, o.loss) && same(lse, o.lse) && same(dx, o.dx) && same(dw, o.dw) && same(db, o.db) &&
           same(predicted, o.predicted);
  }
};

// From the whole logits.
template <class T>
Results<T> expected(const LinearCrossEntropyCall& layer) {
  Results<T> results;
  std::vector<T> z(kTokens * kClasses);
  const std::int64_t shape[] = {kTokens, kClasses}, strides[] = {kClasses * std::int64_t{sizeof(T)}, sizeof(T)};
  multiply(nullptr, layer.loss.dtype, false, true, kTokens, kClasses, kWidth, layer.x, kStep, layer.w, kStep, false, z.data(),
           kClasses);
  for (std::int64_t i = 0; i < kTokens * kClasses; ++i) z[i] += static_cast<const T*>(layer.bias)[i % kClasses];
  sumexp::CrossEntropyCall loss = layer.loss;
  loss.ndim = 2, loss.shape = shape, loss.axis = 1;
  loss.logits = loss.dlogits = {z.data(), strides};
  results.into(loss);
  const Status status = sumexp::cross_entropy(loss);
  CHECK(status.ok(), "cross_entropy: %s", status.message);
  multiply(nullptr, loss.dtype, false, false, kTokens, kWidth, kClasses, z.data(), kClasses, layer.w, kStep, false,
           results.dx.data(), kWidth);
  multiply(nullptr, loss.dtype, true, false, kClasses, kWidth, kTokens, z.data(), kClasses, layer.x, kStep, false,
           results.dw.data(), kWidth);
  std::fill(results.db.begin(), results.db.end(), T(0));
  for (std::int64_t i = 0; i < kTokens * kClasses; ++i) results.db[i % kClasses] += z[i];
  return results;
}

template <class T>
void test_bytes() {
  for (const TargetKind kind : {TargetKind::index, TargetKind::probabilities, TargetKind::pairs})
    for (const LossReduction reduction : {LossReduction::none, LossReduction::mean, LossReduction::sum}) {
      Layer<T> layer(static_cast<std::uint64_t>(10 * int(kind) + int(reduction)));
      LinearCrossEntropyCall call = layer.call(kind, reduction);
      const Results<T> want = expected<T>(call);
      for (const std::int64_t chunk : {0, 1, 4, 100}) {
        Results<T> got;
        got.into(call.loss);
        call.dx = got.dx.data(), call.dw = got.dw.data(), call.dbias = got.db.data(), call.chunk = chunk;
        const Status status = sumexp::linear_cross_entropy(call);
        CHECK(status.ok() && got == want, "kind %d, reduction %d, chunk %d: %s", int(kind), int(reduction), int(chunk),
              status.ok() ? "other bytes" : status.message);
      }
    }
}

// What is not wanted costs no product; dW is added to; nothing is left to average.
void test_options() {
  Layer<double> layer(5);
  LinearCrossEntropyCall call = layer.call(TargetKind::index, LossReduction::mean);
  Results<double> results;
  results.into(call.loss);
  products = 0;
  CHECK(sumexp::linear_cross_entropy(call).ok() && products == 1, "%d products for the loss", products);
  call.dx = results.dx.data(), products = 0;
  CHECK(sumexp::linear_cross_entropy(call).ok() && products == 2, "%d products with a frozen head", products);
  call.dw = results.dw.data();
  CHECK(sumexp::linear_cross_entropy(call).ok(), "dw");
  std::vector<double> added(results.dw.size(), 100.0);
  call.dw = added.data(), call.add_dw = true;
  CHECK(sumexp::linear_cross_entropy(call).ok(), "add_dw");
  for (std::size_t i = 0; i < added.size(); ++i)
    CHECK(std::fabs(added[i] - 100.0 - results.dw[i]) < 1e-12, "element %d of dw: %g", int(i), added[i]);
  std::fill(layer.index.begin(), layer.index.end(), -100);
  call.dw = results.dw.data(), call.add_dw = false, products = 0;
  CHECK(sumexp::linear_cross_entropy(call).ok() && products == 0 && std::isnan(results.loss[0]), "all ignored: %g",
        results.loss[0]);
  for (const double d : results.dw) CHECK(d == 0.0, "dw of nothing: %g", d);
  call.loss.zero_if_empty = true;
  CHECK(sumexp::linear_cross_entropy(call).ok() && results.loss[0] == 0.0, "all ignored, zero: %g", results.loss[0]);
}

// A denominator that lies somewhere is what the mean divides by.
void test_denominator() {
  Layer<double> layer(8);
  const double ten = 10.0;
  double loss[2];
  for (int k = 0; k < 2; ++k) {
    LinearCrossEntropyCall call = layer.call(TargetKind::index, LossReduction::mean);
    call.loss.loss = loss + k, call.loss.given_denominator = true;
    if (k) call.loss.denominator_at = &ten;
    else call.loss.denominator = ten;
    CHECK(sumexp::linear_cross_entropy(call).ok(), "denominator %d", k);
  }
  CHECK(loss[0] == loss[1], "a denominator of 10: %g, where it lies %g", loss[0], loss[1]);
}

// What is saved of each token gives the gradient that cross_entropy gives, whatever the chunks.
template <class T>
void test_saved() {
  Layer<T> layer(11);
  LinearCrossEntropyCall call = layer.call(TargetKind::index, LossReduction::mean);
  std::vector<T> z(kTokens * kClasses), want(z.size()), got(z.size());
  const std::int64_t shape[] = {kTokens, kClasses}, strides[] = {kClasses * std::int64_t{sizeof(T)}, sizeof(T)};
  multiply(nullptr, call.loss.dtype, false, true, kTokens, kClasses, kWidth, call.x, kStep, call.w, kStep, false, z.data(),
           kClasses);
  for (std::int64_t i = 0; i < kTokens * kClasses; ++i) z[i] += layer.bias[i % kClasses];
  T loss = 7;
  call.loss.loss = &loss;
  sumexp::CrossEntropyCall whole = call.loss;
  whole.ndim = 2, whole.shape = shape, whole.logits = {z.data(), strides}, whole.dlogits = {want.data(), strides};
  CHECK(sumexp::cross_entropy(whole).ok(), "cross_entropy");
  whole.dlogits = {got.data(), strides};
  std::vector<char> saved(static_cast<std::size_t>(kTokens * sumexp::cross_entropy_saved_bytes(call.loss.dtype, kClasses)));
  call.loss.saved = whole.saved = saved.data();
  for (const std::int64_t chunk : {1, 4, 100}) {
    call.chunk = chunk;
    std::fill(saved.begin(), saved.end(), char(0));
    CHECK(sumexp::linear_cross_entropy(call).ok(), "a call that saves");
    std::fill(got.begin(), got.end(), T(7));
    CHECK(cross_entropy_gradient_part(whole, 0, kClasses).ok() && same(got, want), "saved by chunks of %d", int(chunk));
  }
}

// The caller's floating-point mode is that of its products, and of nothing else.
void test_rounding() {
  Layer<float> layer(12);
  for (std::vector<float>* v : {&layer.x, &layer.w})
    for (float& e : *v) e = std::round(e);  // exact products
  LinearCrossEntropyCall call = layer.call(TargetKind::index, LossReduction::mean);
  call.chunk = 4;
  std::vector<float> losses[2], dbias[2];
  float loss[2];
  for (int k = 0; k < 2; ++k) {
    losses[k].resize(kTokens), dbias[k].resize(kClasses);
    call.loss.loss = loss + k, call.loss.row_loss = losses[k].data(), call.dbias = dbias[k].data();
    const int mode = k ? FE_UPWARD : FE_TONEAREST;
    std::fesetround(mode);
    const Status status = sumexp::linear_cross_entropy(call);
    const int after = std::fegetround();
    std::fesetround(FE_TONEAREST);
    CHECK(status.ok() && rounding == mode && after == mode, "rounding %d: products had %d, afterwards %d", mode, rounding,
          after);
  }
  CHECK(check::same(loss[0], loss[1]), "rounding up: loss %a, else %a", double(loss[1]), double(loss[0]));
  CHECK(same(losses[0], losses[1]) && same(dbias[0], dbias[1]), "rounding up: other bytes");
}

// Products meet no subnormal numbers: of e^-95 there is nothing in the gradient.
void test_subnormal() {
  const float x = 1, w[3] = {0, -80, -95};
  const std::int64_t target = 1, stride[2] = {8, 0};
  float loss = 0, dx = 0, dw[3] = {7, 7, 7};
  LinearCrossEntropyCall call;
  call.tokens = call.width = call.x_step = call.w_step = 1, call.classes = 3, call.x = &x, call.w = w;
  call.loss.dtype = DType::f32, call.loss.reduction = LossReduction::sum, call.loss.loss = &loss;
  call.loss.target = {const_cast<std::int64_t*>(&target), stride};
  call.dx = &dx, call.dw = dw, call.gemm.multiply = multiply;
  const Status status = sumexp::linear_cross_entropy(call);
  CHECK(status.ok() && loss == 80 && dx == 80, "%s: loss %g, dx %g", status.message, double(loss), double(dx));
  CHECK(dw[0] == 1 && dw[1] == -1 && dw[2] == 0, "dw %g, %g, %g", double(dw[0]), double(dw[1]), double(dw[2]));
}

void expect_error(const LinearCrossEntropyCall& call, const char* message) {
  const Status status = sumexp::linear_cross_entropy(call);
  CHECK(!status.ok() && std::strstr(status.message, message), "got '%s', expected '%s'", status.message, message);
}
void test_errors() {
  Layer<float> layer(6);
  const LinearCrossEntropyCall good = layer.call(TargetKind::index, LossReduction::sum);
  LinearCrossEntropyCall call = good;
  expect_error(call, "loss is missing");
  float loss = 7;
  call.loss.loss = &loss;
  const auto with = [&](auto change, const char* message) {
    LinearCrossEntropyCall bad = call;
    change(bad);
    expect_error(bad, message);
  };
  with([](auto& c) { c.loss.dtype = DType::bf16; }, "dtype is code 1");
  with([](auto& c) { c.tokens = -1; }, "tokens is -1");
  with([](auto& c) { c.gemm.multiply = nullptr; }, "gemm is missing");
  with([](auto& c) { c.w = nullptr; }, "w is missing");
  with([](auto& c) { c.x_step = 3; }, "x_step is 3, accepted: integers from the width, 7");
  with([](auto& c) { c.loss.label_smoothing = 2; }, "label_smoothing");
  with([](auto& c) { c.loss.target.strides = nullptr; }, "target has no strides");
  double g = 1;
  with([&](auto& c) { c.loss.g = {&g, nullptr}; }, "g has no strides");
  layer.index[4] = kClasses;
  expect_error(call, "target");
  CHECK(loss == 7, "the loss was written: %g", double(loss));
}

}  // namespace

int main() {
  test_bytes<float>();
  test_bytes<double>();
  test_options();
  test_denominator();
  test_saved<float>();
  test_saved<double>();
  test_rounding();
  test_subnormal();
  test_errors();
  return check::finish();
}
