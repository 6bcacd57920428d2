// The cuts that csrc/cuda/rows/filters.cuh finds are those of the CPU: of its function on the row after mask and temperature,
// and of cpu::sample, which makes that row itself.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "numerics/formats.hpp"
#include "rows/filters.hpp"

namespace {

using namespace sumexp;
using sumexp::gpu::bf16;
using sumexp::gpu::f16;

// Rows of every kind.
constexpr int kKinds = 17;
double logit(int kind, std::int64_t i, std::int64_t n, bool wide) {
  const double inf = HUGE_VAL;
  switch (kind) {
    case 0: return 2 * normal();
    case 1: return std::floor(3 * normal());           // ties
    case 2: return i % 3 == 0 ? -inf : normal();       // excluded elements
    case 3: return 1.5;                                // all equal
    case 4: return i == n / 2 ? 30 : normal() * 1e-3;  // one far above all others
    case 5: return i == n - 1 ? NAN : normal();
    case 6: return i == n / 2 ? inf : normal();
    case 7: return -inf;
    case 8: return double(i) / double(n) * 30;  // sorted
    case 9: return -double(i) / double(n) * 30;
    case 10: return (wide ? 1e13 : 7e4) + std::floor(4 * normal()) * (wide ? 0.5 : 8);  // subtracted from each other before exp
    case 11: return i % 2 ? -0.0 : 0.0;
    case 12: return i % 1000 == 7 ? 1e-3 * double(i) : -60;    // most have no mass
    case 13: return (uniform() - 0.5) * (wide ? 1e300 : 6e4);  // every power of two
    case 14: return i == n / 3 ? 0 : -40 - 5 * uniform();      // masses around the least
    case 15: return i < n / 2 ? 2 : 1;                         // two values
    default: return 1e-3 * normal();
  }
}

struct Options {
  double temperature = 1;
  Filters filters;
};

std::vector<Options> options_of(std::int64_t n, FilterOrder order) {
  std::vector<Options> all;
  const auto add = [&](double temperature, std::int64_t k, double p, double min_p) {
    all.push_back({temperature, Filters{k, p, min_p, order}});
  };
  add(1, 0, 1, 0);
  for (const std::int64_t k : {std::int64_t(1), std::int64_t(2), std::int64_t(50), n / 3, n / 2, n - 1, n, n + 5})
    add(1, k, 1, 0);
  for (const double p : {1e-320, 1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 0x1p-53}) add(1, 0, p, 0);
  for (const double p : {1e-30, 0.02, 0.5, 1.0}) add(1, 0, 1, p);
  add(0.7, 40, 0.9, 0.01), add(0.7, n / 2, 0.6, 1e-4), add(1.7, n / 3, 0.95, 0), add(3, 7, 0.3, 0.2);
  add(1, n / 2, 0.97, 0.05), add(1, 3, 1 - 0x1p-53, 0);
  add(0, 0, 1, 0), add(0, 5, 0.5, 0.5), add(HUGE_VAL, n / 4, 0.3, 0.1);
  add(1e-40, 3, 0.9, 0), add(1e-305, n / 2, 0.9, 0.1), add(3.5e38, 2, 1, 0), add(0.02, 0, 0.99, 0);
  return all;
}

// The CPU's, by what `sample` says of a row.
template <class S>
cuda::RowCut wanted(const S* x, const unsigned char* mask, std::int64_t n, const Options& options) {
  const std::int64_t shape[1] = {n}, strides[1] = {sizeof(S)}, ones[1] = {1};
  const std::uint64_t seed = 1;
  std::int64_t out;
  cuda::RowCut cut = {-HUGE_VAL, -1, 0};
  SampleCall call;
  call.dtype = Type<S>::dtype;
  call.ndim = 1, call.shape = shape, call.axis = 0;
  call.logits = {const_cast<S*>(x), strides};
  if (mask) call.where = {const_cast<unsigned char*>(mask), ones};
  call.seed = {&seed, 0};
  call.temperature = {&options.temperature, 0};
  if (options.filters.top_k >= 1) call.top_k = {&options.filters.top_k, 0};
  call.top_p = {&options.filters.top_p, 0};
  call.min_p = {&options.filters.min_p, 0};
  call.order = options.filters.order;
  call.out = &out;
  call.kept = &cut.kept, call.cut_logit = &cut.logit, call.cut_index = &cut.index;
  const Status status = sample(call);
  return status.ok() ? cut : cuda::RowCut{-HUGE_VAL, -1, 0};
}

bool same(const cuda::RowCut& a, const cuda::RowCut& b) {
  return std::memcmp(&a.logit, &b.logit, 8) == 0 && a.index == b.index && a.kept == b.kept;
}

enum class Layout { packed, misaligned, steps, columns };

// All options of one order, a row each, in one launch: each row with options of its own, all of one kind.
template <class S>
void rows_of(int kind, std::int64_t n, FilterOrder order, Layout layout, bool masked, simt::Place place) {
  const bool wide = sizeof(S) == 8;
  const std::vector<Options> options = options_of(n, order);
  const std::int64_t rows = std::int64_t(options.size());
  const auto length = static_cast<std::size_t>(n);
  std::vector<S> given(length);
  std::vector<unsigned char> mask(length, 1);
  for (std::int64_t i = 0; i < n; ++i) given[std::size_t(i)] = Type<S>::from(logit(kind, i, n, wide));
  if (masked)
    for (auto& m : mask) m = uniform() < 0.6;

  const std::int64_t step = layout == Layout::steps ? 3 : layout == Layout::columns ? rows : 1;
  const std::int64_t pitch = layout == Layout::columns ? 1 : layout == Layout::packed ? (n + 15) / 16 * 16 : n * step + 1;
  const auto extent = std::size_t((n > 0 ? (n - 1) * step : 0) + (rows - 1) * pitch + 1);
  simt::Buffer<S> x(extent, place, "logits", layout == Layout::misaligned ? 1 : 0);
  simt::Buffer<unsigned char> where(length, place, "where");
  simt::Buffer<double> temperature(std::size_t(rows), place), top_p(std::size_t(rows), place), min_p(std::size_t(rows), place);
  simt::Buffer<std::int64_t> top_k(std::size_t(rows), place);
  simt::Buffer<cuda::RowCut> cuts(std::size_t(rows), place, "cuts");
  std::vector<cuda::RowCut> want;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Options& o = options[std::size_t(r)];
    for (std::int64_t i = 0; i < n; ++i) x[std::size_t(r * pitch + i * step)] = given[std::size_t(i)];
    temperature[std::size_t(r)] = o.temperature, top_p[std::size_t(r)] = o.filters.top_p;
    min_p[std::size_t(r)] = o.filters.min_p, top_k[std::size_t(r)] = o.filters.top_k;
    want.push_back(wanted(given.data(), masked ? mask.data() : nullptr, n, o));
  }
  std::copy(mask.begin(), mask.end(), where.data());

  const std::int64_t shape[2] = {rows, n}, item = sizeof(S);
  const std::int64_t strides[2] = {pitch * item, step * item}, mask_strides[2] = {0, 1};
  const View views[2] = {{x.data(), strides}, {masked ? where.data() : nullptr, mask_strides}};
  cuda::FilterRows call = {};
  Status laid = cuda::lay_rows(2, shape, 1, views, call.views);
  call.temperature = {temperature.data(), 1}, call.top_p = {top_p.data(), 1}, call.min_p = {min_p.data(), 1};
  call.top_k = {top_k.data(), 1};
  call.order = order;
  const cudaError_t error = cuda::find_cuts(Type<S>::dtype, call, cuts.data(), nullptr);
  const char* const at = masked ? "masked" : "";
  ++checks;
  if (!laid.ok() || error != cudaSuccess || !cuts.intact()) {
    ++failures;
    std::printf("FAILED %s kind %d n %lld layout %d %s: %s\n", Type<S>::name, kind, (long long)n, int(layout), at,
                simt::error().c_str());
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const cuda::RowCut &got = cuts[std::size_t(r)], &cut = want[std::size_t(r)];
    ++checks;
    if (same(got, cut)) continue;
    const Options& o = options[std::size_t(r)];
    if (++failures < 40)
      std::printf(
          "FAILED %s kind %d n %lld layout %d %s T %g top_k %lld top_p %.17g min_p %g order %d: (%.9g, %lld, %lld), "
          "on the CPU (%.9g, %lld, %lld)\n",
          Type<S>::name, kind, (long long)n, int(layout), at, o.temperature, (long long)o.filters.top_k, o.filters.top_p,
          o.filters.min_p, int(order), got.logit, (long long)got.index, (long long)got.kept, cut.logit, (long long)cut.index,
          (long long)cut.kept);
  }
}

template <class S>
void all_rows(std::uint64_t seed) {
  constexpr std::int64_t kLengths[] = {0, 1, 2, 31, 33, 128, 600, 2048, 2049, 4097, 6000};
  constexpr FilterOrder kOrders[] = {FilterOrder::vllm, FilterOrder::hf, FilterOrder::llama_cpp};
  std::uint64_t k = seed;
  for (const std::int64_t n : kLengths)
    for (int kind = 0; kind < kKinds; ++kind, ++k) {
      // of 16 bits only loads differ from float's: of long rows each format takes half of the kinds
      if (sizeof(S) == 2 && n > 600 && kind % 2 == std::is_same_v<S, f16>) continue;
      rows_of<S>(kind, n, kOrders[k % 3], Layout(k / 3 % 4), k % 5 == 0, k % 2 ? simt::Place::front : simt::Place::back);
    }
  for (const int kind : {0, 1, 3, 13}) rows_of<S>(kind, 20'000, kOrders[k++ % 3], Layout::packed, false, simt::Place::back);
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const std::string only = argc > 2 ? argv[2] : "";
  random_state += seed;
  simt::reseed(seed);
  if (only.empty() || only == "f32") all_rows<float>(seed);
  if (only.empty() || only == "f64") all_rows<double>(seed);
  if (only.empty() || only == "f16") all_rows<f16>(seed);
  if (only.empty() || only == "bf16") all_rows<bf16>(seed);
  std::printf("%d checks: %s\n", checks, failures ? "FAILED" : "ok");
  return failures != 0;
}
