// Every CUDA kernel, type and selection path, run on the machine: bytes equal to the CPU kernels'.
//
//   test_kernels [seed] [filter]     filter: a part of "softmax f32 block packed"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/plan.hpp"
#include "formats.cuh"
#include "launch.hpp"
#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "numerics/formats.hpp"
#include "sumexp/cuda.hpp"

namespace {

using sumexp::Call;
using sumexp::DType;
using sumexp::Op;
using sumexp::cpu::OpInfo;
using sumexp::cuda::Access;
using sumexp::cuda::Path;

// Every op of the table, and once more those that may give a second result.
struct OpCase {
  const OpInfo& info;
  Op op;
  bool extra;
  std::string name() const { return std::string(info.name) + (extra ? "_extra" : ""); }
};
std::vector<OpCase> all_ops() {
  std::vector<OpCase> ops;
  for (int k = 0; k < sumexp::kOpCount; ++k) {
    const OpInfo& info = sumexp::cpu::op_info(Op(k));
    ops.push_back({info, Op(k), false});
    if (info.extra) ops.push_back({info, Op(k), true});
  }
  return ops;
}
constexpr const char* kTypes[] = {"f16", "bf16", "f32", "f64"};
constexpr const char* kPaths[] = {"choose", "warp", "block", "cluster", "stream"};

// How rows lie in memory.
enum class Layout {
  packed,      // aligned rows
  misaligned,  // rows start one element after a 16-byte boundary, and have odd distances
  steps,       // every third element, backwards
  two_axes,    // a row runs over two axes that do not join
  side,        // the axis is not the last
  masked,      // packed, with a mask
  heated,      // packed, with a temperature
  overheated,  // the same, with quotients that overflow
  overheated_side,
  uniform,  // packed, with an infinite temperature
  cold,     // packed, with one whose inverse is no number
};
constexpr const char* kLayouts[] = {"packed", "misaligned", "steps",           "two_axes", "side", "masked",
                                    "heated", "overheated", "overheated_side", "uniform",  "cold"};
bool is_side(Layout layout) { return layout == Layout::side || layout == Layout::overheated_side; }
bool is_overheated(Layout layout) { return layout == Layout::overheated || layout == Layout::overheated_side; }

void store(DType type, void* at, double v) {
  const float f = float(v);
  if (type == DType::f64) std::memcpy(at, &v, 8);
  if (type == DType::f32) std::memcpy(at, &f, 4);
  if (type == DType::f16) *static_cast<sumexp::gpu::f16*>(at) = sumexp::gpu::to_f16(f);
  if (type == DType::bf16) *static_cast<sumexp::gpu::bf16*>(at) = sumexp::gpu::to_bf16(f);
}
std::size_t size_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

double most_of(DType type) { return type == DType::f64 ? 1.7e308 : type == DType::f16 ? 65504.0 : 3.3e38; }

// Maxima between these powers of two are subtracted before the reduction (base_of in numerics/state.hpp); no f16 is one.
struct Range {
  int from, to;
};
constexpr Range anchored(DType type) {
  return type == DType::f64 ? Range{40, 62} : type == DType::f16 ? Range{14, 15} : Range{16, 32};
}

// Rows of every kind, outliers planted so that the result is not all near zero.
constexpr std::int64_t kKinds = 15;
double logit(std::int64_t row, std::int64_t i, std::int64_t n, DType type) {
  const double inf = HUGE_VAL;
  const double big = type == DType::f16 ? 3e4 : type == DType::f64 ? 1e100 : 1e30;
  const Range range = anchored(type);
  const double anchor = 1.3 * std::ldexp(1, range.from + int((row + n) % (range.to - range.from)));
  const double step = std::floor(double(i) * 6 / double(n));
  switch (row % kKinds) {
    case 0: return 5 * normal();
    case 1: return 100 * (2 * uniform() - 1);
    case 2: return i < n / 2 || i % 5 == 0 ? -inf : normal();  // tiles of -inf
    case 3: return i == n / 3 ? 40 : normal();                 // a confident row
    case 4: return -inf;
    case 5: return i == n - 1 ? NAN : normal();
    case 6: return i == n / 2 ? inf : normal();
    case 7: return big + (i % 3) * 0.25;
    case 8: return 1.5;                                // all equal
    case 9: return i == 0 ? 0 : -30 - 60 * uniform();  // is refined
    case 10: return -big * uniform();
    case 11: return 300 * step + normal();  // chunks far apart
    case 12: return i % 5 ? anchor + 4 * step + normal() : normal();
    case 13: return -anchor - 4 * step + normal();
    default: return std::ldexp(1, range.from) + 9 * (step - 3) + normal();  // chunks on both sides of the least of these
  }
}

struct Array {
  simt::Buffer<unsigned char> bytes;
  std::vector<std::int64_t> strides;
  std::int64_t start = 0;  // bytes from data() to the first element
  void* data() const { return bytes.data() + start; }
};

struct Shape {
  std::vector<std::int64_t> sizes;
  std::uint64_t axes;
};

Shape shape_of(Layout layout, std::int64_t rows, std::int64_t n) {
  if (is_side(layout)) return {{2, n, rows}, 2};
  if (layout == Layout::two_axes) {
    std::int64_t inner = 1;
    for (std::int64_t d = 2; d <= 7; ++d)
      if (n % d == 0) inner = d;
    return {{n / inner, rows, inner}, 5};
  }
  return {{rows, n}, 2};
}

// An array of the shape, or with length 1 along the axes, in the layout.
Array make_array(const Shape& shape, Layout layout, std::size_t item, bool per_row, simt::Place place, const char* name) {
  std::vector<std::int64_t> strides(shape.sizes.size());
  const bool apart = !per_row && (layout == Layout::packed || layout == Layout::masked || layout == Layout::heated ||
                                  layout == Layout::overheated || layout == Layout::uniform);
  std::int64_t step = std::int64_t(item), start = 0;
  if (layout == Layout::steps && !per_row) step *= 3;
  std::int64_t extent = step;
  for (int d = int(strides.size()) - 1; d >= 0; --d) {
    const bool on_row = shape.axes >> d & 1;
    strides[d] = per_row && on_row ? 0 : extent;
    if (!(per_row && on_row)) extent *= shape.sizes[d];
    if (apart && d == int(strides.size()) - 1) extent = (extent + 15) / 16 * 16;
    if (layout == Layout::misaligned && d == int(strides.size()) - 1) extent += std::int64_t(item);
  }
  std::size_t bytes = extent > 0 ? std::size_t(extent) : 1;
  if (layout == Layout::misaligned) start = std::int64_t(item), bytes += item;
  if (layout == Layout::steps && !per_row)
    for (std::size_t d = 0; d < strides.size(); ++d)
      if (shape.axes >> d & 1) start += strides[d] * (shape.sizes[d] - 1), strides[d] = -strides[d];
  return {simt::Buffer<unsigned char>(bytes, place, name), strides, start};
}

template <class Body>
void each_element(const Shape& shape, const Array& a, bool per_row, Body body) {
  std::int64_t rows = 1, n = 1;
  for (std::size_t d = 0; d < shape.sizes.size(); ++d) (shape.axes >> d & 1 ? n : rows) *= shape.sizes[d];
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < (per_row ? 1 : n); ++i) {
      std::int64_t row = r, at = i, offset = 0;
      for (int d = int(shape.sizes.size()) - 1; d >= 0; --d) {
        std::int64_t& index = shape.axes >> d & 1 ? at : row;
        const std::int64_t size = shape.sizes[d] > 0 ? shape.sizes[d] : 1;  // an empty row has a result
        offset += index % size * a.strides[d];
        index /= size;
      }
      body(r, i, static_cast<unsigned char*>(a.data()) + offset, n);
    }
}

std::string label;
void failed(const std::string& why) {
  if (++failures <= 20) std::printf("FAILED %s: %s\n", label.c_str(), why.c_str());
}

void check(const OpCase& c, DType type, Path path, Layout layout, std::int64_t rows, std::int64_t n, bool in_place) {
  ++checks;
  const std::size_t item = size_of(type);
  const Shape shape = shape_of(layout, rows, n);
  const simt::Place place = layout == Layout::misaligned || checks % 2 ? simt::Place::front : simt::Place::back;
  const auto aligned = [&](Layout l) { return l == Layout::misaligned ? simt::Place::front : place; };

  Call call;
  call.op = c.op;
  call.dtype = type;
  call.ndim = int(shape.sizes.size());
  call.shape = shape.sizes.data();
  call.axes = shape.axes;
  if (layout == Layout::heated) call.temperature = 1.7;
  if (layout == Layout::uniform) call.temperature = HUGE_VAL;
  if (layout == Layout::cold) call.temperature = type == DType::f64 ? 1e-310 : 1e-40;
  if (is_overheated(layout)) call.temperature = type == DType::f16 ? 0x1p-118 : 0.625;
  const OpInfo& info = c.info;
  const int inputs = info.inputs + (info.row_input >= 0 ? 1 : 0);
  std::vector<Array> in;
  for (int k = 0; k < inputs; ++k) {
    const bool per_row = k == info.row_input;
    const simt::Place where = per_row ? place : aligned(layout);
    const bool is_index = per_row && info.index;
    in.push_back(make_array(shape, layout, is_index ? 8 : item, per_row, where, per_row ? "a row input" : "an input"));
    const bool is_y = !info.logits && k == inputs - 1;
    each_element(shape, in[k], per_row, [&](std::int64_t r, std::int64_t i, void* at, std::int64_t length) {
      if (is_index) {
        const std::int64_t index = std::int64_t(uniform() * double(length)) % (length ? length : 1);
        std::memcpy(at, &index, 8);
        return;
      }
      double v = k == 0 && info.logits ? logit(r, i, length, type) : normal();
      // Far above the others, or far below, or neither: rows that overflow beside those that do not.
      if (k == 0 && info.logits && is_overheated(layout) && r % 3 && (i + 1) % 7 == 0 && std::isfinite(v))
        v = (r % 3 == 1 ? 1.0 : -1.0) * most_of(type) * (i % 2 ? 0.99 : 0.7);
      if (k == 1 && c.op == Op::weighted_logsumexp && i % 4 == 0) v = 0;
      if (is_y) v = c.op == Op::softmax_vjp || c.op == Op::softmax_hvp ? uniform() / double(length) : -10 * uniform();
      if (!info.logits && r % kKinds == 5 && i == length / 2) v = NAN;
      if (per_row && r % kKinds == 8) v = NAN;
      if (per_row && r % kKinds == 3) v = HUGE_VAL;
      store(type, at, v);
    });
  }
  for (std::size_t k = 0; k < in.size(); ++k) call.in[k] = {in[k].data(), in[k].strides.data()};
  Array mask = make_array(shape, Layout::misaligned, 1, false, simt::Place::front, "the mask");
  if (layout == Layout::masked) {
    each_element(shape, mask, false,
                 [&](std::int64_t, std::int64_t, unsigned char* at, std::int64_t) { *at = uniform() < 0.7; });
    call.where = {mask.data(), mask.strides.data()};
  }
  const auto result = [&](const char* name, bool per_row) {
    return make_array(shape, layout, item, per_row, per_row && !info.row_output ? place : aligned(layout), name);
  };
  Array expected = result("the expected result", info.row_output), out = result("the result", info.row_output);
  Array expected_extra = result("the expected second result", true), extra = result("the second result", true);

  call.out = {expected.data(), expected.strides.data()};
  if (c.extra) call.extra = {expected_extra.data(), expected_extra.strides.data()};
  const sumexp::Status cpu = sumexp::run(call);
  if (!cpu.ok()) return failed(cpu.message);

  if (in_place) {
    call.out = call.in[0];
  } else {
    call.out = {out.data(), out.strides.data()};
  }
  if (c.extra) call.extra = {extra.data(), extra.strides.data()};
  sumexp::cuda::Plan plan;
  const sumexp::Status planned = sumexp::cuda::make_plan(call, plan, path);
  if (!planned.ok()) return failed(planned.message);
  simt::Buffer<unsigned char> workspace(plan.workspace, simt::Place::back, "the workspace");
  const cudaError_t error = sumexp::cuda::launch(plan, workspace.data(), nullptr);
  if (error != cudaSuccess) return failed(simt::error());

  const Array& got = in_place ? in[0] : out;
  std::string difference;
  const auto compare = [&](const Array& a, const Array& b, bool per_row, const char* what) {
    std::vector<const unsigned char*> wanted;
    each_element(shape, a, per_row, [&](std::int64_t, std::int64_t, unsigned char* at, std::int64_t) { wanted.push_back(at); });
    std::size_t e = 0;
    each_element(shape, b, per_row, [&](std::int64_t r, std::int64_t i, unsigned char* at, std::int64_t) {
      const unsigned char* w = wanted[e++];
      if (!difference.empty() || std::memcmp(at, w, item) == 0) return;
      char text[200];
      unsigned long long x = 0, y = 0;
      std::memcpy(&x, w, item), std::memcpy(&y, at, item);
      std::snprintf(text, sizeof text, "%s[%lld, %lld]: 0x%llx on the CPU, 0x%llx on the machine", what, (long long)r,
                    (long long)i, x, y);
      difference = text;
    });
  };
  compare(expected, got, info.row_output, "out");
  if (c.extra) compare(expected_extra, extra, true, "extra");
  if (!difference.empty()) return failed(difference);
  for (const Array& a : in)
    if (!a.bytes.intact()) return failed("wrote beside an input");
  const auto beside = [&](const Array& a, bool per_row) {  // between rows and elements, too, the poison must stand
    std::vector<bool> element(a.bytes.size());
    each_element(shape, a, per_row, [&](std::int64_t, std::int64_t, unsigned char* at, std::int64_t) {
      for (std::size_t b = 0; b < item; ++b) element[std::size_t(at - a.bytes.data()) + b] = true;
    });
    for (std::size_t b = 0; b < element.size(); ++b)
      if (!element[b] && a.bytes[b] != simt::poison_byte(1)) return true;
    return !a.bytes.intact();
  };
  if (beside(out, info.row_output) || (c.extra && beside(extra, true))) return failed("wrote beside the result");
}

// sumexp/cuda.hpp: a call runs on its device and leaves the current one as it was; too little workspace runs nothing.
void check_devices() {
  label = "sumexp::cuda::run";
  const std::int64_t n = 300000, shape[1] = {n}, strides[1] = {4};
  std::vector<float> x(std::size_t(n), 1.0f), y(std::size_t(n), 7.0f);
  Call call;
  call.ndim = 1;
  call.shape = shape;
  call.axes = 1;
  call.in[0] = {x.data(), strides};
  call.out = {y.data(), strides};
  sumexp::cuda::Target target;
  target.device = 1;
  if (sumexp::cuda::run(call, target).code != sumexp::Code::needs_workspace || target.workspace_bytes == 0 || y[0] != 7)
    return failed("a long row ran without its workspace");
  std::vector<unsigned char> workspace(target.workspace_bytes + 256);
  target.workspace = workspace.data() + 256 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 256;
  const sumexp::Status status = sumexp::cuda::run(call, target);
  if (!status.ok() || y[0] == 7) return failed(status.message);
  if (simt::counters().device != 1) failed("ran on another device than the target's");
  if (simt::settings().device != 0) failed("left another device current");
  target.device = simt::device_count;
  if (sumexp::cuda::run(call, target).code != sumexp::Code::device_error) failed("took a device that does not exist");
}

// An index of no element: that row's results are NaN, the others what they are without it, and nothing is read there.
void check_indices() {
  for (const Path path : {Path::warp, Path::block, Path::stream}) {
    label = std::string("cross_entropy_with_grad with bad indices ") + kPaths[int(path)];
    ++checks;
    const std::int64_t rows = 5, n = path == Path::warp ? 100 : 5000, shape[2] = {rows, n}, strides[2] = {4 * n, 4};
    const std::int64_t per_row[2] = {4, 0}, of_indices[2] = {8, 0};
    std::vector<float> x(std::size_t(rows * n)), dx(x.size()), expected(x.size()), loss(rows), expected_loss(rows);
    for (float& v : x) v = float(normal());
    std::vector<std::int64_t> target = {3, 0, n - 1, 1, 2};
    Call call;
    call.op = Op::cross_entropy_with_grad;
    call.ndim = 2;
    call.shape = shape;
    call.axes = 2;
    call.in[0] = {x.data(), strides};
    call.in[1] = {target.data(), of_indices};
    call.out = {expected.data(), strides};
    call.extra = {expected_loss.data(), per_row};
    if (!sumexp::run(call).ok()) return failed("the CPU refuses");
    target = {3, -1, n - 1, n, std::int64_t(1) << 61};
    call.out = {dx.data(), strides};
    call.extra = {loss.data(), per_row};
    sumexp::cuda::Plan plan;
    if (!sumexp::cuda::make_plan(call, plan, path).ok()) return failed("no plan");
    simt::Buffer<unsigned char> workspace(plan.workspace, simt::Place::back, "the workspace");
    if (sumexp::cuda::launch(plan, workspace.data(), nullptr) != cudaSuccess) return failed(simt::error());
    for (std::int64_t r = 0; r < rows; ++r) {
      const bool bad = r == 1 || r > 2;
      if (bad ? loss[r] == loss[r] : loss[r] != expected_loss[r]) failed("loss of row " + std::to_string(r));
      for (std::int64_t i = r * n; i < (r + 1) * n; ++i)
        if (bad ? dx[i] == dx[i] : dx[i] != expected[i]) return failed("gradient of row " + std::to_string(r));
    }
  }
}

// How many threads of a warp meet in one of the 32 banks, four bytes each, at worst: 64-bit values go by half warps.
template <class T, class PlaceOf>
int threads_in_a_bank(PlaceOf place_of) {
  int worst = 0;
  for (int first = 0; first < 32; first += 128 / int(sizeof(T))) {
    int banks[32] = {};
    for (int lane = first; lane < std::min(32, first + 128 / int(sizeof(T))); ++lane)
      worst = std::max(worst, ++banks[place_of(lane) * sizeof(T) / 4 % 32]);
  }
  return worst;
}

// The stage of rows that are not packed: no two threads of a warp meet in a bank.
template <class S>
void check_banks(const char* type) {
  using T = sumexp::gpu::Compute<S>;
  using Stage = sumexp::gpu::Stage<T>;
  using Tile = sumexp::gpu::Tile<S>;
  label = std::string("banks ") + type;
  for (int rows : {1, 2, 8, 16})
    for (int warps : {1, 2, 4, 8, 16}) {
      const int pitch = Stage::pitch(rows * Tile::G::kLanes, warps);
      const auto to_registers = [&](int lane) { return Stage::place(lane * Tile::kPack); };
      const auto along = [&](int lane) { return Stage::place(lane); };
      const auto across = [&](int lane) { return lane % warps * pitch + Stage::place(lane / warps); };
      const int worst =
          std::max({threads_in_a_bank<T>(to_registers), threads_in_a_bank<T>(along), threads_in_a_bank<T>(across)});
      ++checks;
      if (worst > 1) failed(std::to_string(worst) + " threads in a bank, warps " + std::to_string(warps));
    }
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const std::string filter = argc > 2 ? argv[2] : "";
  simt::reseed(seed);
  random_state = seed;
  for (const OpCase& c : all_ops()) {
    const OpInfo& info = c.info;
    for (int type = 0; type < 4; ++type) {
      const std::int64_t lanes = type == 3 ? 64 : 256, chunk = 8 * lanes;
      const auto run = [&](Path path, Layout layout, std::int64_t rows, std::int64_t n, bool in_place = false) {
        label = c.name() + " " + kTypes[type] + " " + kPaths[int(path)] + " " + kLayouts[int(layout)] + " rows " +
                std::to_string(rows) + " n " + std::to_string(n) + (in_place ? " in place" : "");
        if (label.find(filter) != std::string::npos) check(c, DType(type), path, layout, rows, n, in_place);
      };
      // around every edge: a pack, a group, a warp, a lane row, 1, 2, 4 and 8 of them
      for (std::int64_t n : {std::int64_t(1), std::int64_t(7), std::int64_t(33), lanes - 1, lanes, lanes + 1, 2 * lanes,
                             2 * lanes + 1, 4 * lanes, 4 * lanes + 3, chunk - 1, chunk})
        run(Path::warp, Layout::packed, kKinds, n);
      run(Path::warp, Layout::packed, 5, 3 * lanes, !info.row_output);
      for (std::int64_t n : {chunk + 1, 3 * chunk - 5, 8 * chunk}) run(Path::block, Layout::packed, kKinds, n);
      for (std::int64_t n : {9 * chunk + 3, 17 * chunk}) run(Path::cluster, Layout::packed, 3, n);
      for (std::int64_t n : {chunk + 1, 9 * chunk, 17 * chunk + 1}) run(Path::stream, Layout::packed, kKinds, n);
      run(Path::stream, Layout::packed, 2, 3 * chunk, !info.row_output);
      if (info.index) run(Path::block, Layout::packed, 2 * kKinds, 3 * chunk, !info.row_output);
      for (std::int64_t n : {std::int64_t(5), lanes + 9}) {
        for (Layout layout : {Layout::misaligned, Layout::steps, Layout::two_axes}) run(Path::warp, layout, kKinds, n);
        run(Path::warp, Layout::side, 19, n);
      }
      run(Path::block, Layout::misaligned, 3, 2 * chunk + 1);
      run(Path::block, Layout::two_axes, 3, 2 * chunk);
      run(Path::cluster, Layout::misaligned, 2, 9 * chunk);
      simt::settings().max_cluster = 1;  // no room: streamed
      run(Path::cluster, Layout::packed, 3, 9 * chunk + 3);
      simt::settings().max_cluster = 8;
      run(Path::stream, Layout::steps, 3, chunk + 77, !info.row_output);
      run(Path::stream, Layout::side, 19, chunk + 77);
      if (info.mask)
        for (Path path : {Path::warp, Path::block, Path::stream})
          run(path, Layout::masked, kKinds, path == Path::warp ? lanes + 9 : chunk + 9);
      if (info.temperature != 0)
        for (Path path : {Path::warp, Path::block, Path::stream})
          run(path, Layout::heated, kKinds, path == Path::warp ? lanes + 9 : chunk + 9);
      if (info.temperature > 0)
        for (Path path : {Path::warp, Path::block, Path::stream})
          run(path, Layout::cold, kKinds, path == Path::warp ? lanes + 9 : chunk + 9);
      if (info.temperature < 0) {
        for (Path path : {Path::warp, Path::block, Path::cluster, Path::stream}) {
          const std::int64_t n = path == Path::warp ? lanes + 9 : path == Path::cluster ? 9 * chunk + 9 : 2 * chunk + 9;
          run(path, Layout::overheated, kKinds, n);
          run(path, Layout::overheated, 7, n, true);
          run(path, Layout::uniform, kKinds, n);
        }
        for (std::int64_t n : {std::int64_t(33), lanes + 9}) run(Path::warp, Layout::overheated_side, 19, n);
        run(Path::stream, Layout::overheated_side, 19, chunk + 77);
        run(Path::stream, Layout::overheated, 3, 17 * chunk + 1);
      }
      if (info.row_output && !info.index) run(Path::choose, Layout::packed, 3, 0);
    }
  }
  if (filter.empty()) {
    check_devices();
    check_indices();
    check_banks<sumexp::gpu::f16>("f16");
    check_banks<sumexp::gpu::bf16>("bf16");
    check_banks<float>("f32");
    check_banks<double>("f64");
  }
  std::printf("%d checks, %d failed; %llu launches, %llu threads, %llu switches\n", checks, failures,
              (unsigned long long)simt::counters().launches, (unsigned long long)simt::counters().threads,
              (unsigned long long)simt::counters().switches);
  return failures != 0;
}
