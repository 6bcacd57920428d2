// sumexp::cuda::segments against the CPU's, byte by byte: all ops and dtypes, segments from none to many chunks, arrays in any
// layout between guard pages; and offsets that are none, with which nothing beside the arrays may be touched.
//   usage: test_simt_segments [dtype]
#include <algorithm>
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
using Offsets = std::vector<std::int64_t>;

enum Layout { kPacked, kFeaturesFirst, kSteps, kBackwards, kLayouts };
constexpr const char* kLayoutNames[] = {"packed", "features first", "steps", "backwards"};
constexpr Op kOps[] = {Op::softmax,         Op::log_softmax,     Op::logsumexp,     Op::softmax_vjp,
                       Op::log_softmax_vjp, Op::log_softmax_jvp, Op::logsumexp_vjp, Op::logsumexp_jvp};
constexpr const char* kOpNames[] = {"softmax",         "log_softmax",     "logsumexp",     "softmax_vjp",
                                    "log_softmax_vjp", "log_softmax_jvp", "logsumexp_vjp", "logsumexp_jvp"};

// (n, features) elements of S in a layout, guard pages around them.
template <class S>
struct Array {
  simt::Buffer<S> memory;
  std::int64_t n, features, strides[2];
  std::size_t first = 0;

  Array(std::int64_t n, std::int64_t features, Layout layout, simt::Place place, const char* name)
      : memory(std::size_t(n * features * (layout == kSteps ? 2 : 1)), place, name, layout == kPacked ? 1 : 0),
        n(n),
        features(features) {
    const std::int64_t item = sizeof(S), step = layout == kSteps ? 2 * item : item;
    strides[0] = layout == kFeaturesFirst ? item : features * step, strides[1] = layout == kFeaturesFirst ? n * item : step;
    if (layout == kBackwards && n > 0) first = std::size_t((n - 1) * features), strides[0] = -strides[0];
  }
  S& at(std::int64_t i, std::int64_t f) {
    return *reinterpret_cast<S*>(reinterpret_cast<char*>(start()) + i * strides[0] + f * strides[1]);
  }
  S* start() { return memory.data() + first; }
  View view() { return {start(), strides}; }
  bool is(Array& other) {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t f = 0; f < features; ++f)
        if (std::memcmp(&at(i, f), &other.at(i, f), sizeof(S)) != 0) return false;
    return true;
  }
};

// What the ops take: logits, log-probabilities or probabilities, and anything.
template <class S>
void fill(Array<S>& array, bool outputs, bool logs, bool specials) {
  using T = gpu::Compute<S>;
  for (std::int64_t i = 0; i < array.n; ++i)
    for (std::int64_t f = 0; f < array.features; ++f) {
      const double u = uniform();
      double x = outputs ? logs ? -8 * u * u : u : 30 * u - (i % 5 ? 15 : 200);
      if (specials && !outputs && uniform() < 0.2) x = uniform() < 0.9 ? -INFINITY : uniform() < 0.5 ? NAN : INFINITY;
      array.at(i, f) = gpu::Narrow<S>::from(T(x));
    }
}

void failed(const std::string& label, const char* why) {
  ++failures;
  std::printf("FAILED %s: %s\n", label.c_str(), why);
}

Status run_on_device(const SegmentsCall& call) {
  cuda::Target target;
  Status status = cuda::segments(call, target);
  if (status.code != Code::needs_workspace) return status;
  const simt::Buffer<unsigned char> workspace(target.workspace_bytes, simt::Place::back, "the workspace");
  target.workspace = workspace.data();
  status = cuda::segments(call, target);
  if (status.ok() && !workspace.intact()) failed("workspace", "wrote beside it");
  return status;
}

template <class S>
void check(DType dtype, int op, const Offsets& lengths, std::int64_t features, Layout layout, bool specials, bool in_place,
           bool good = true) {
  Offsets ends = {0};
  for (const std::int64_t n : lengths) ends.push_back(ends.back() + n);
  std::int64_t elements = ends.back();
  const auto count = std::int64_t(lengths.size());
  if (!good) elements = 5000;
  const simt::Buffer<std::int64_t> offsets(ends.size(), simt::Place::back, "offsets");
  std::copy(ends.begin(), ends.end(), offsets.data());
  const std::string label = std::string(kOpNames[op]) + " dtype " + std::to_string(int(dtype)) + " " + kLayoutNames[layout] +
                            " of " + std::to_string(elements) + " x " + std::to_string(features) + " in " +
                            std::to_string(count) + (specials ? " with specials" : "") + (in_place ? " in place" : "");
  const bool row_output = op == 2 || op == 7, outputs = op >= 3 && op <= 5;
  Array<S> a(elements, features, layout, simt::Place::back, "an input"),
      b(op == 6 ? count : elements, features, layout, simt::Place::front, "an input"),
      want(row_output ? count : elements, features, kPacked, simt::Place::back, "the CPU's result"),
      out(row_output ? count : elements, features, layout, simt::Place::back, "the result");
  fill(a, false, false, specials);
  fill(b, outputs, op > 3, false);
  SegmentsCall call;
  call.op = kOps[op], call.dtype = dtype;
  call.elements = elements, call.features = features, call.segments = count;
  call.offsets = offsets.data();
  call.in[0] = a.view();
  if (op > 2) call.in[1] = b.view();
  call.out = want.view();
  ++checks;
  if (good)
    if (const Status status = segments(call); !status.ok()) return failed(label, status.message);
  Array<S>& got = in_place ? a : out;
  call.out = got.view();
  const Status status = run_on_device(call);
  if (!status.ok()) return failed(label, status.message);
  if (good && !got.is(want)) failed(label, "other bytes");
  if (!a.memory.intact() || !b.memory.intact() || !out.memory.intact()) failed(label, "wrote beside an array");
}

template <class S>
void check_all(DType dtype) {
  using G = gpu::Geometry<gpu::Compute<S>>;
  const std::int64_t lane_row = G::kLanes, chunk = G::kChunk;
  Offsets edges = {1, 0, 0, 7, 17, lane_row - 1, lane_row, lane_row + 1, 3 * lane_row, chunk - 1, chunk, 0, chunk + 1, 2};
  Offsets power = {0, 40 * chunk + 5, 1, 1, 0, 1, 3 * chunk, 2 * chunk - 1, 5, 17 * chunk, 1, 1, 0};
  Offsets many(300, 1);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = std::int64_t(40 * uniform() * uniform());
  for (int op = 0; op < 8; ++op) {
    const bool in_place = op != 2 && op != 7;
    for (int layout = 0; layout < kLayouts; ++layout)
      check<S>(dtype, op, edges, 1 + layout % 2 * 2, Layout(layout), false, false);
    check<S>(dtype, op, edges, 1, kPacked, true, false);
    check<S>(dtype, op, edges, 2, kPacked, false, in_place);
    check<S>(dtype, op, power, 1, kPacked, false, false);
    check<S>(dtype, op, power, 2, kFeaturesFirst, true, in_place);
    check<S>(dtype, op, many, 5, kPacked, false, false);
    check<S>(dtype, op, {}, 3, kPacked, false, false);
    check<S>(dtype, op, {0, 0, 0}, 3, kPacked, false, false);
    check<S>(dtype, op, {4, 5}, 0, kPacked, false, false);
    check<S>(dtype, op, {chunk, 3, chunk}, 1, kPacked, false, false);
    // Offsets that fall, and go beyond both ends.
    check<S>(dtype, op, {9, -20, 3000, -2900, 4000, std::int64_t{1} << 61, -(std::int64_t{1} << 62), 3, 2600}, 2, kPacked,
             false, false, false);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  if (only.empty() || only == "f32") check_all<float>(DType::f32);
  if (only.empty() || only == "f64") check_all<double>(DType::f64);
  if (only.empty() || only == "f16") check_all<gpu::f16>(DType::f16);
  if (only.empty() || only == "bf16") check_all<gpu::bf16>(DType::bf16);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
