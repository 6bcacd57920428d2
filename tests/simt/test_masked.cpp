// sumexp::cuda::masked against the CPU's, byte by byte: options, dtypes, lengths of rows, axes, specials, and the gradients of
// biases and sinks.   usage: test_simt_masked [a part of the names of cases]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "formats.cuh"
#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "sumexp/cuda.hpp"
#include "sumexp/ragged.hpp"

namespace {

using namespace sumexp;
namespace gpu = sumexp::SUMEXP_NS;

const char* filter = "";
int below(int n) { return int(uniform() * n); }

// How a bias or sink lies over (batch, heads, rows, n): bit d set where it has dimension d of its own.
constexpr unsigned kAll = 15, kAlong = 8, kHeads = 2, kBatch = 1, kRows = 4;

struct Case {
  Op op = Op::softmax;
  std::int64_t n = 1, batch = 2, heads = 3, rows = 4;
  bool side = false;  // rows lie side by side: the axis is the third
  std::size_t skip = 0;
  bool back = false, where = false, lengths = false, causal = false, in_place = false;
  std::int64_t offset = 0;
  int bias = -1, sink = -1;  // -1: none
  double softcap = 0.0, temperature = 1.0;
  Empty empty = Empty::zero;
  int special = 0;  // 1: infinities and NaN; 2: rows of -inf; 3: large numbers; 4: g with them; 5: logits that overflow
};

// An array laid over the call's shape, as the CPU and the machine see it.
template <class E>
struct Array {
  std::int64_t strides[4] = {};
  std::int64_t count = 1;
  simt::Buffer<E> device;
  std::vector<E> host;

  static std::int64_t size_of(const std::int64_t* shape, unsigned own) {
    std::int64_t count = 1;
    for (int d = 0; d < 4; ++d) count *= own >> d & 1 ? shape[d] : 1;
    return count;
  }
  Array(const std::int64_t* shape, unsigned own, const char* name, std::size_t skip = 0)
      : device(std::size_t(size_of(shape, own)), skip ? simt::Place::front : simt::Place::back, name, skip) {
    for (int d = 3; d >= 0; --d)
      if (own >> d & 1) strides[d] = count * std::int64_t(sizeof(E)), count *= shape[d];
  }
  void share() {
    host.reserve(1);  // no null of an array without elements
    host.assign(device.data(), device.data() + count);
  }
  View on_device() { return {device.data(), strides}; }
  View on_host() { return {host.data(), strides}; }
  bool same() const { return std::memcmp(host.data(), device.data(), host.size() * sizeof(E)) == 0; }
};

template <class S>
void check(DType dtype, const Case& c) {
  using T = gpu::Compute<S>;
  static const char* const kTypes[] = {"f16", "bf16", "f32", "f64"};
  char name[256];
  std::snprintf(
      name, sizeof name,
      "op %d %s n %lld%s skip %d back %d where %d lengths %d causal %d bias %d sink %d cap %g T %g special %d place %d",
      int(c.op), kTypes[int(dtype)], static_cast<long long>(c.n), c.side ? " side" : "", int(c.skip), c.back, c.where,
      c.lengths, c.causal, c.bias, c.sink, c.softcap, c.temperature, c.special, c.in_place);
  if (!std::strstr(name, filter)) return;
  const int axis = c.side ? 2 : 3;
  const std::int64_t shape[] = {c.batch, c.heads, c.side ? c.n : c.rows, c.side ? c.rows : c.n};
  // own dimensions as of (batch, heads, rows, n)
  const auto laid = [&](unsigned own) { return c.side ? (own & 3) | (own & 4) << 1 | (own & 8) >> 1 : own; };
  const unsigned all = laid(kAll), row = laid(kAll - kAlong), result = c.op == Op::logsumexp ? row : all;
  const auto number = [](double x) { return gpu::Narrow<S>::from(T(x)); };

  Array<S> x(shape, all, "x", c.skip), out(shape, c.back ? all : result, "out", c.skip), g(shape, result, "g");
  Array<S> bias(shape, laid(c.bias < 0 ? 0 : unsigned(c.bias)), "bias"),
      dbias(shape, laid(c.bias < 0 ? 0 : unsigned(c.bias)), "dbias");
  Array<S> sink(shape, laid(c.sink < 0 ? 0 : unsigned(c.sink)), "sink"),
      dsink(shape, laid(c.sink < 0 ? 0 : unsigned(c.sink)), "dsink");
  Array<unsigned char> where(shape, all, "where");
  Array<std::int64_t> lengths(shape, row, "lengths");
  const double inf = std::numeric_limits<double>::infinity(), size = c.special == 3   ? dtype == DType::f16 ? 3e4 : 1e30
                                                                     : c.special == 5 ? dtype == DType::f16   ? 3e4
                                                                                        : dtype == DType::f64 ? 1e308
                                                                                                              : 2e38
                                                                                      : 8.0;
  const auto draw = [&](double scale) { return scale * (uniform() + uniform() - 1.0) * (below(40) ? 1.0 : 4.0); };
  for (std::int64_t i = 0; i < x.count; ++i) x.device[std::size_t(i)] = number(draw(size));
  for (std::int64_t i = 0; i < g.count; ++i) g.device[std::size_t(i)] = number(draw(1.0));
  for (std::int64_t i = 0; i < bias.count; ++i)
    bias.device[std::size_t(i)] = number(below(50) ? draw(c.special == 5 && below(2) ? size : 2.0) : -inf);
  for (std::int64_t i = 0; i < sink.count; ++i) sink.device[std::size_t(i)] = number(draw(4.0));
  for (std::int64_t i = 0; i < where.count; ++i)
    where.device[std::size_t(i)] = static_cast<unsigned char>(below(4) ? 1 + below(255) : 0);
  for (std::int64_t i = 0; i < lengths.count; ++i)
    lengths.device[std::size_t(i)] = below(3) ? std::int64_t(uniform() * double(c.n + 1)) : below(2) ? c.n : 0;
  if (c.special == 1 || c.special == 4) {
    Array<S>& some = c.special == 1 ? x : g;
    for (std::int64_t i = below(5); i < some.count; i += 1 + below(int(c.n / 2 + 3)) * 4)
      some.device[std::size_t(i)] = number(below(3) == 0 ? std::nan("") : below(2) ? inf : -inf);
    if (c.special == 1 && sink.count > 1) sink.device[0] = number(inf), sink.device[1] = number(std::nan(""));
  }
  if (c.special == 2)
    for (std::int64_t i = 0; i < x.count; ++i)
      if (c.side ? i % c.rows == 1 : i / c.n % 2) x.device[std::size_t(i)] = number(-inf);
  if (c.special == 2 && sink.count > 1) sink.device[0] = number(-inf);
  x.share(), g.share(), bias.share(), sink.share(), where.share(), lengths.share(), out.share(), dbias.share(), dsink.share();

  MaskedCall call;
  call.op = c.op, call.dtype = dtype, call.ndim = 4, call.shape = shape, call.axis = axis;
  call.causal = c.causal, call.causal_offset = c.offset, call.empty = c.empty;
  call.softcap = c.softcap, call.temperature = c.temperature;
  MaskedCall there = call;
  const auto give = [&](View MaskedCall::*view, auto& array) { call.*view = array.on_host(), there.*view = array.on_device(); };
  give(&MaskedCall::x, x);
  if (c.in_place) call.out = call.x, there.out = there.x;
  else give(&MaskedCall::out, out);
  if (c.back) give(&MaskedCall::g, g);
  if (c.where) give(&MaskedCall::where, where);
  if (c.lengths) give(&MaskedCall::lengths, lengths);
  if (c.bias >= 0) give(&MaskedCall::bias, bias);
  if (c.sink >= 0) give(&MaskedCall::sink, sink);
  if (c.back && c.bias >= 0) give(&MaskedCall::dbias, dbias);
  if (c.back && c.sink >= 0) give(&MaskedCall::dsink, dsink);
  const Status want = masked(call);
  cuda::Target target;
  Status status = cuda::masked(there, target);
  simt::Buffer<unsigned char> workspace(status.code == Code::needs_workspace ? target.workspace_bytes : 0, simt::Place::front,
                                        "the workspace");
  if (status.code == Code::needs_workspace) {
    target.workspace = workspace.data();
    status = cuda::masked(there, target);
  }
  ++checks;
  const auto say = [&](const char* what) {
    ++failures;
    std::printf("FAILED %s: %s\n", name, what);
  };
  if (!want.ok()) return say(want.message);
  if (!status.ok()) return say(status.message);
  if (!out.same()) say("other bytes");
  if (!x.same()) say(c.in_place ? "other bytes in place" : "x was written");
  if (!dbias.same()) say("other bytes of the bias's gradient");
  if (!dsink.same()) say("other bytes of the sink's gradient");
  if (!out.device.intact() || !dbias.device.intact() || !dsink.device.intact() || !x.device.intact() || !workspace.intact())
    say("wrote beside a result");
}

void check_all(const Case& c) {
  check<float>(DType::f32, c);
  check<double>(DType::f64, c);
  check<gpu::f16>(DType::f16, c);
  check<gpu::bf16>(DType::bf16, c);
}

// Lengths that are out of range count as the nearest that is not.
void check_clamped() {
  if (*filter) return;
  const std::int64_t shape[] = {3, 5}, strides[] = {20, 4}, steps[] = {8, 0};
  float x[15], y[15], want[15];
  for (int i = 0; i < 15; ++i) x[i] = float(i % 4);
  std::int64_t wild[] = {-3, 99, std::numeric_limits<std::int64_t>::max()}, tame[] = {0, 5, 5};
  MaskedCall call;
  call.ndim = 2, call.shape = shape, call.x = {x, strides}, call.out = {want, strides}, call.lengths = {tame, steps};
  bool good = masked(call).ok();
  call.out.data = y, call.lengths.data = wild;
  cuda::Target target;
  good = good && cuda::masked(call, target).ok() && std::memcmp(y, want, sizeof y) == 0;
  ++checks;
  if (!good) ++failures, std::printf("FAILED lengths out of range\n");
}
void check_refusals() {
  MaskedCall call;
  call.op = Op::softmax_vjp;
  cuda::Target target;
  const Status status = cuda::masked(call, target);
  ++checks;
  if (status.ok() || !std::strstr(status.message, "accepted: softmax")) ++failures, std::printf("FAILED a refusal\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  constexpr Op kOps[] = {Op::softmax, Op::log_softmax, Op::logsumexp};
  constexpr int kBiases[] = {-1, int(kAll), int(kAlong), int(kAll - kBatch), int(kHeads), int(kAll - kAlong), 0};
  constexpr int kSinks[] = {-1, int(kHeads), 0, int(kBatch + kRows), int(kAll - kAlong)};
  int k = 0;
  // Every length with every op, both ways; options by turns whose lengths have no common factor, so that they meet.
  for (const std::int64_t n : {0, 1, 7, 32, 63, 64, 65, 255, 256, 257, 512, 513, 1100, 2048, 2049, 5000})
    for (const Op op : kOps)
      for (const bool back : {false, true})
        for (int turn = 0; turn < (n < 600 ? 6 : 2); ++turn, ++k) {
          Case c;
          c.op = op, c.n = n, c.back = back;
          c.side = k % 5 == 1, c.skip = k % 4 == 3 ? 1 : 0;
          c.where = k % 3 == 0, c.lengths = k % 2 == 0, c.causal = k % 7 == 2, c.offset = below(int(n) + 3) - 2;
          c.bias = kBiases[(k / 2) % 7], c.sink = kSinks[(k / 3) % 5];
          c.softcap = k % 8 == 5 ? 3.0 : 0.0, c.temperature = k % 9 == 4 || k % 8 == 5 ? 1.7 : 1.0;
          c.empty = k % 11 < 5 ? Empty::zero : Empty::nan;
          c.special = k % 13 < 5 ? k % 13 : 0;
          c.in_place = k % 6 == 5 && (back || op != Op::logsumexp);
          if (n >= 600) c.batch = 2, c.heads = 2, c.rows = 2;
          check_all(c);
        }
  // Rows of many chunks: more than warps.
  for (const std::int64_t n : {16384, 16385, 40961})
    for (const Op op : kOps)
      for (const bool back : {false, true}) {
        Case c;
        c.op = op, c.n = n, c.batch = 2, c.heads = 1, c.rows = 1, c.back = back;
        c.where = k % 2 == 0, c.lengths = k % 3 == 0, c.bias = k % 2 ? int(kAlong) : -1, c.sink = k % 4 == 0 ? 0 : -1;
        c.special = k % 5 == 3 ? 3 : 0, c.temperature = k % 3 == 2 ? 0.7 : 1.0, c.softcap = k % 3 == 1 ? 4.0 : 0.0;
        c.in_place = k % 3 == 1 && back;
        ++k;
        check_all(c);
      }
  // Logits that overflow.
  for (const std::int64_t n : {7, 70, 300, 2500})
    for (const Op op : kOps)
      for (const bool back : {false, true})
        for (int turn = 0; turn < 6; ++turn, ++k) {
          Case c;
          c.op = op, c.n = n, c.back = back, c.batch = 2, c.heads = 2, c.rows = 2;
          c.special = 5, c.where = k % 3 == 0, c.lengths = k % 2 == 0, c.side = k % 5 == 1, c.in_place = back && k % 7 == 3;
          c.temperature = turn == 5 ? std::numeric_limits<double>::infinity() : turn < 3 ? 0x1p-130 : 0.25;
          c.softcap = turn == 2 ? 5.0 : 0.0;
          c.bias = k % 4 == 3 ? -1 : kBiases[(k / 2) % 7], c.sink = kSinks[(k / 3) % 5];
          check_all(c);
        }
  // More members than blocks of them, and not a multiple.
  for (const Op op : kOps)
    for (const int bias : {int(kAlong), 0, int(kRows), int(kBatch)}) {
      Case c;
      c.op = op, c.n = 40, c.batch = 3, c.heads = 7, c.rows = 5, c.back = true, c.bias = bias, c.sink = 0, c.lengths = true;
      check_all(c);
    }
  // No rows to sum.
  for (const Op op : kOps)
    for (const int empty : {0, 1, 2})
      for (const int bias : {int(kAll), int(kAlong), 0, int(kHeads + kAlong), int(kBatch)})
        for (const bool side : {false, true}) {
          Case c;
          c.op = op, c.n = 300, c.back = true, c.side = side, c.bias = bias,
          c.sink = bias == int(kAll) ? int(kHeads) : bias & 7;
          (empty == 0 ? c.batch : empty == 1 ? c.heads : c.rows) = 0;
          check_all(c);
        }
  check_clamped();
  check_refusals();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
