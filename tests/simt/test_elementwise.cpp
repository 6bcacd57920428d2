// sumexp::cuda::elementwise against the CPU's, byte by byte: all functions and dtypes, at special values and where results
// cancel, in any layout.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "formats.cuh"
#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "sumexp/cuda.hpp"

namespace {

using namespace sumexp;
namespace gpu = sumexp::SUMEXP_NS;

double any_number() {
  constexpr double kSpecials[] = {0.0,    -0.0,  1.0,   -1.0,   INFINITY, -INFINITY,      NAN,  709.0,
                                  -709.0, 745.0, 1e-30, -1e-30, 1e-310,   -36.0436533891, 88.7, -103.9};
  const double u = uniform();
  if (u < 0.3) return kSpecials[int(uniform() * 16)];
  if (u < 0.6) return std::log(uniform());  // logarithms of probabilities
  return (uniform() - 0.5) * std::exp(12 * uniform() - 4);
}

enum Layout { kPacked, kBroadcast, kSteps, kTransposed, kOneOutput, kLayouts };

template <class S>
void check(LogDomain op, DType dtype, Layout layout) {
  using T = gpu::Compute<S>;
  constexpr std::int64_t shape[] = {5, 7, 9}, size = 5 * 7 * 9, item = sizeof(S);
  const LogDomainArity n = arity(op);
  if (layout == kOneOutput && n.outputs < 2) return;
  const std::int64_t packed[] = {63 * item, 9 * item, item}, steps[] = {126 * item, 18 * item, 2 * item},
                     transposed[] = {item, 5 * item, 35 * item}, broadcast[] = {0, item, 0};
  std::vector<simt::Buffer<S>> in, got, want;
  View from[kLogDomainInputs], to[kLogDomainOutputs], cpu_to[kLogDomainOutputs];
  for (int k = 0; k < n.inputs; ++k) {
    in.emplace_back(std::size_t(layout == kSteps ? 2 * size : size), k ? simt::Place::front : simt::Place::back, "an input", 1);
    for (std::size_t i = 0; i < in[std::size_t(k)].size(); ++i) in.back()[i] = gpu::Narrow<S>::from(T(any_number()));
    from[k] = {in.back().data(), layout == kBroadcast && k == n.inputs - 1 ? broadcast
                                 : layout == kSteps                        ? steps
                                 : layout == kTransposed && k != 1         ? transposed
                                                                           : packed};
  }
  if (n.inputs > 1)  // equal and nearly equal arguments
    for (std::size_t i = 0; i < std::size_t(size); i += 3) in[std::size_t(n.inputs - 2)][i] = in.back()[i];
  for (int k = 0; k < n.outputs; ++k) {
    got.emplace_back(std::size_t(layout == kSteps ? 2 * size : size), simt::Place::back, "a result");
    want.emplace_back(got.back().size(), simt::Place::back, "the CPU's");
    const bool left_out = layout == kOneOutput && k == 0;
    to[k] = {left_out ? nullptr : got.back().data(), layout == kSteps ? steps : layout == kTransposed ? transposed : packed};
    cpu_to[k] = {left_out ? nullptr : want.back().data(), to[k].strides};
  }
  ++checks;
  cuda::Target target;
  const bool ran = elementwise(op, dtype, 3, shape, from, cpu_to).ok();
  const Status status = cuda::elementwise(op, dtype, 3, shape, from, to, target);
  bool same = true;
  for (int k = 0; k < n.outputs; ++k)
    same = same && got[std::size_t(k)].intact() &&
           std::memcmp(got[std::size_t(k)].data(), want[std::size_t(k)].data(), got[std::size_t(k)].size() * sizeof(S)) == 0;
  if (ran && status.ok() && same) return;
  ++failures;
  std::printf("FAILED op %d dtype %d layout %d: %s\n", int(op), int(dtype), int(layout),
              !ran          ? "the CPU refuses"
              : status.ok() ? "other bytes"
                            : status.message);
}

}  // namespace

int main() {
  for (int op = 0; op < kLogDomainOps; ++op)
    for (int layout = 0; layout < kLayouts; ++layout) {
      check<float>(LogDomain(op), DType::f32, Layout(layout));
      check<double>(LogDomain(op), DType::f64, Layout(layout));
      check<gpu::f16>(LogDomain(op), DType::f16, Layout(layout));
      check<gpu::bf16>(LogDomain(op), DType::bf16, Layout(layout));
    }
  cuda::Target target;
  if (cuda::elementwise(LogDomain(kLogDomainOps), DType::f32, 0, nullptr, nullptr, nullptr, target).ok()) {
    ++failures;
    std::printf("FAILED: took a function that does not exist\n");
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
