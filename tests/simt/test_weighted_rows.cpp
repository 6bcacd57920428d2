// sumexp::cuda::logmeanexp and the derivatives of logsumexp with weights against the CPU's, byte by byte.
//   usage: test_simt_weighted_rows [dtype]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "formats.cuh"
#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "sumexp/cuda.hpp"

namespace {

using namespace sumexp;
namespace gpu = sumexp::SUMEXP_NS;

enum Kind { kMean, kVjp, kJvp };
constexpr const char* kKinds[] = {"logmeanexp", "weighted_logsumexp_vjp", "weighted_logsumexp_jvp"};
// What rows hold, by their number: near numbers; far apart, so that pieces are summed element by element; -inf among them, and
// all of a piece; NaN; infinite x; infinite weights, of one sign and both; weights that need another exponent.
constexpr int kRowKinds = 9;

struct Option {
  bool weights, side, left_out, in_place;
};
constexpr Option kOptions[] = {{true, false, false, false}, {false, false, false, false}, {true, true, false, false},
                               {true, false, true, false},  {true, false, false, true},   {false, true, true, false}};

template <class S>
void check(DType dtype, Kind kind, std::int64_t n, const Option& option) {
  using T = gpu::Compute<S>;
  const std::int64_t rows = kRowKinds, item = sizeof(S), shape[] = {rows, n};
  const std::int64_t packed[] = {n * item, item}, side[] = {item, rows * item}, row[] = {item};
  const std::int64_t* const full = option.side ? side : packed;
  const auto size = static_cast<std::size_t>(rows * n);
  std::vector<simt::Buffer<S>> arrays;  // x b, t tb, g, the results, the CPU's
  for (int k = 0; k < 9; ++k)
    arrays.emplace_back(k != 4 ? size : static_cast<std::size_t>(rows), k % 2 ? simt::Place::front : simt::Place::back,
                        "an array", k % 3 ? 1 : 0);
  simt::Buffer<S>&x = arrays[0], &b = arrays[1];
  const auto put = [](S& to, double value) { to = gpu::Narrow<S>::from(T(value)); };
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(option.side ? i * rows + r : r * n + i);
      double v = 10 * uniform(), w = uniform() - 0.3;
      if (r == 1) v = 2000 * uniform() - 1000;
      if (r == 2) v = i < 300 || uniform() < 0.4 ? -INFINITY : v;
      if (r == 3 && i == n / 2) v = NAN;
      if (r == 4 && i == n / 2) v = INFINITY;
      if (r == 5 && i % 5 == 0) w = INFINITY;
      if (r == 6 && i % 7 == 0) w = i % 2 ? INFINITY : -INFINITY;
      if (r == 7) w *= sizeof(S) == 8 ? 0x1p-900 : 0x1p-70;
      if (r == 8) w = i % 2 ? 0.0 : 1e30 * w, v = i % 2 ? NAN : v;
      put(x[at], v), put(b[at], w);
      put(arrays[2][at], uniform() - 0.5), put(arrays[3][at], uniform() - 0.5);
    }
  for (std::int64_t r = 0; r < rows; ++r) put(arrays[4][std::size_t(r)], 3 * uniform() - 1);
  simt::Buffer<double> count(std::size_t(rows), simt::Place::back, "count");
  for (std::size_t r = 0; r < count.size(); ++r) count[r] = r == 1 ? 0.0 : double(r + 3);

  WeightedRows call;
  call.dtype = dtype, call.ndim = 2, call.shape = shape;
  call.x = {x.data(), full};
  if (option.weights) call.b = {b.data(), full};
  const auto view = [&](int k, const std::int64_t* strides, bool left_out = false) {
    return left_out ? View{} : View{arrays[std::size_t(k)].data(), strides};
  };
  Status expected, status;
  cuda::Target target;
  if (kind == kMean) {
    const std::int64_t of_doubles[] = {8};
    const View given = option.left_out ? View{} : View{count.data(), of_doubles};
    expected = logmeanexp(call, given, view(7, row), view(8, row));
    status = cuda::logmeanexp(call, given, view(5, row), view(6, row), target);
  } else if (kind == kVjp) {
    expected = weighted_logsumexp_vjp(call, view(4, row), view(7, full), view(8, full, option.left_out));
    if (option.in_place) {
      status = cuda::weighted_logsumexp_vjp(call, view(4, row), call.b, call.x, target);
      std::memcpy(arrays[5].data(), b.data(), size * sizeof(S)), std::memcpy(arrays[6].data(), x.data(), size * sizeof(S));
    } else {
      status = cuda::weighted_logsumexp_vjp(call, view(4, row), view(5, full), view(6, full, option.left_out), target);
    }
  } else {
    expected = weighted_logsumexp_jvp(call, view(2, full), view(3, full, option.left_out), view(7, row));
    status = cuda::weighted_logsumexp_jvp(call, view(2, full), view(3, full, option.left_out), view(5, row), target);
  }
  ++checks;
  bool same = true;
  for (int k = 5; k < 7; ++k)
    same = same && std::memcmp(arrays[std::size_t(k)].data(), arrays[std::size_t(k + 2)].data(), size * sizeof(S)) == 0;
  for (const auto& array : arrays) same = same && array.intact();
  if (expected.ok() && status.ok() && same) return;
  ++failures;
  std::printf("FAILED %s dtype %d n %lld option %d: %s\n", kKinds[kind], int(dtype), static_cast<long long>(n),
              int(&option - kOptions),
              !expected.ok() ? expected.message
              : status.ok()  ? "other bytes"
                             : status.message);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  for (const int kind : {kMean, kVjp, kJvp})
    for (const std::int64_t n : {1, 5, 31, 32, 33, 255, 256, 257, 700, 2048, 2300, 5000})
      for (const Option& option : kOptions) {
        if (only.empty() || only == "f32") check<float>(DType::f32, Kind(kind), n, option);
        if (only.empty() || only == "f64") check<double>(DType::f64, Kind(kind), n, option);
        if (only.empty() || only == "f16") check<gpu::f16>(DType::f16, Kind(kind), n, option);
        if (only.empty() || only == "bf16") check<gpu::bf16>(DType::bf16, Kind(kind), n, option);
      }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
