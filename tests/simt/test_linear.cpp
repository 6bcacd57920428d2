// The softmax layer on the machine against the CPU's, byte by byte: targets, options, chunks, gradients and ignored tokens
// drawn at random, with products that add in one order.   usage: test_simt_linear [seed] [cases]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "arch/arch.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "sumexp/cuda.hpp"

namespace {

using namespace sumexp;

std::int64_t below(std::int64_t n) { return std::int64_t(uniform() * double(n)); }
bool one_in(int n) { return below(n) == 0; }

void expect(bool right, const char* what, int number) {
  ++checks;
  if (right) return;
  ++failures;
  std::printf("FAILED: %s, case %d\n", what, number);
}

template <class T>
void multiply(void*, DType, bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const void* a,
              std::int64_t a_step, const void* b, std::int64_t b_step, bool add, void* c, std::int64_t c_step) {
  const T *const x = static_cast<const T*>(a), *const y = static_cast<const T*>(b);
  T* const z = static_cast<T*>(c);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      T sum = add ? z[i * c_step + j] : T(0);
      for (std::int64_t l = 0; l < k; ++l)
        sum += (transpose_a ? x[l * a_step + i] : x[i * a_step + l]) * (transpose_b ? y[j * b_step + l] : y[l * b_step + j]);
      z[i * c_step + j] = sum;
    }
}

template <class T>
void check_random(int number) {
  const std::int64_t tokens = below(8) ? 1 + below(20) : 0, d = 1 + below(6), v = 1 + below(one_in(6) ? 3000 : 40);
  const std::int64_t x_step = d + below(3), w_step = d + below(2), pairs = 3, size = sizeof(T);
  LinearCrossEntropyCall call;
  CrossEntropyCall& loss = call.loss;
  loss.kind = TargetKind(below(3));
  const bool probabilities = loss.kind == TargetKind::probabilities, is_pairs = loss.kind == TargetKind::pairs;
  const std::int64_t each = probabilities ? v : is_pairs ? pairs : 1;
  const auto numbers = [](std::int64_t count, const char* name) {
    simt::Buffer<T> b(std::size_t(count > 0 ? count : 1), simt::Place::back, name);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = T(uniform() * 2 - 1);
    return b;
  };
  const auto x = numbers(tokens * x_step, "x"), w = numbers(v * w_step, "w"), bias = numbers(v, "bias");
  const auto y = numbers(tokens * each, "probabilities or weights"), weight = numbers(v, "weight");
  simt::Buffer<std::int64_t> target(std::size_t(tokens * each + 1), simt::Place::back, "target");
  simt::Buffer<double> token(std::size_t(tokens + 1), simt::Place::back, "token_weight");
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::fabs(y[i]);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = std::fabs(weight[i]);
  for (std::size_t i = 0; i < token.size(); ++i) token[i] = uniform();
  loss.ignore_index = one_in(3) ? 0 : -100;
  for (std::int64_t r = 0; r < tokens; ++r) {
    const bool ignored = one_in(3);
    for (std::int64_t k = 0; k < each; ++k)
      target[std::size_t(r * each + k)] = ignored || one_in(8) ? loss.ignore_index : below(v);
    for (std::int64_t i = 0; i < d && ignored && !probabilities; ++i) x[std::size_t(r * x_step + i)] = T(NAN);
  }
  call.tokens = tokens, call.width = d, call.classes = v, call.chunk = one_in(2) ? 1 + below(7) : 0;
  call.x = x.data(), call.x_step = x_step, call.w = w.data(), call.w_step = w_step, call.gemm.multiply = multiply<T>;
  if (one_in(2)) call.bias = bias.data();
  loss.dtype = loss.target_dtype = size == 8 ? DType::f64 : DType::f32;
  const std::int64_t of_target[] = {each * (probabilities ? size : 8), probabilities ? size : 8},
                     of_share[] = {each * size, size};
  const std::int64_t of_token[] = {8, 0};
  if (probabilities) loss.target = {y.data(), of_target};
  else loss.target = {target.data(), of_target};
  if (is_pairs) loss.target_weight = {y.data(), of_share}, loss.pairs = pairs;
  if (one_in(2)) loss.weight = weight.data();
  if (one_in(2)) loss.token_weight = {token.data(), of_token};
  if (one_in(3)) loss.label_smoothing = 0.25;
  if (one_in(3)) loss.z_loss = 0.01;
  if (one_in(3)) loss.softcap = 2.0;
  if (one_in(3)) loss.temperature = 0.7;
  loss.reduction = LossReduction(below(3));
  if (loss.reduction == LossReduction::mean && one_in(2)) loss.given_denominator = true, loss.denominator = double(below(4));
  loss.zero_if_empty = one_in(2);
  call.add_dw = one_in(3);
  const bool needs[] = {!one_in(3), !one_in(3), !one_in(3)}, info = one_in(2);

  // Results of both, one after the other: loss, lse, dx, dw, dbias.
  const std::int64_t sizes[] = {loss.reduction == LossReduction::none ? tokens : 1, tokens, tokens * d, v * d, v};
  std::vector<simt::Buffer<T>> made[2];
  for (auto& results : made)
    for (const std::int64_t count : sizes) {
      results.push_back(numbers(count, "a result"));
      for (std::size_t i = 0; i < results.back().size(); ++i) results.back()[i] = T(3);
    }
  for (int side = 0; side < 2; ++side) {
    auto& r = made[side];
    loss.loss = r[0].data(), loss.lse = info ? r[1].data() : nullptr;
    call.dx = needs[0] ? r[2].data() : nullptr, call.dw = needs[1] ? r[3].data() : nullptr;
    call.dbias = needs[2] ? r[4].data() : nullptr;
    if (side == 0) {
      expect(linear_cross_entropy(call).ok(), "the CPU's", number);
      continue;
    }
    cuda::Target to;
    Status status = cuda::linear_cross_entropy(call, to);
    expect(status.code == Code::needs_workspace, "wants a workspace", number);
    const simt::Buffer<unsigned char> workspace(to.workspace_bytes, simt::Place::front, "workspace");
    to.workspace = workspace.data();
    status = cuda::linear_cross_entropy(call, to);
    if (!status.ok()) std::printf("%s\n", status.message);
    expect(status.ok(), "the machine's", number);
  }
  const char* const names[] = {"loss", "lse", "dx", "dw", "dbias"};
  for (std::size_t k = 0; k < 5; ++k) {
    bool same = true;
    for (std::size_t i = 0; i < made[0][k].size(); ++i) {
      const T a = made[0][k][i], b = made[1][k][i];
      same = same && (a == b || (a != a && b != b));  // zeros of products may have either sign
    }
    expect(same, names[k], number);
  }
}

void check_refusals() {
  LinearCrossEntropyCall call;
  cuda::Target to;
  expect(cuda::linear_cross_entropy(call, to).code == Code::invalid_argument, "a missing gemm", 0);
  call.gemm.multiply = multiply<float>, call.loss.dtype = DType::f16;
  expect(cuda::linear_cross_entropy(call, to).code == Code::invalid_argument, "a dtype without products", 0);
}

}  // namespace

int main(int argc, char** argv) {
  random_state = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const int cases = argc > 2 ? std::atoi(argv[2]) : 300;
  for (int i = 0; i < cases; ++i) {
    if (i % 2) check_random<float>(i);
    else check_random<double>(i);
  }
  check_refusals();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
