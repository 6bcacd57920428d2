// log_prob, entropy, kl_div and their gradients on the machine, against the CPU's functions, == on bytes: dtypes, rows of one
// element to many chunks, contiguous, side by side and misaligned, in place, with temperatures, indices and special values.
//   test_information [DTYPE]
#include <sumexp/cuda.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cases.hpp"
#include "machine/memory.hpp"

using namespace cases;
using sumexp::LogitsRows;
using sumexp::View;

namespace {

using Byte = unsigned char;
constexpr std::int64_t kBatch[2] = {2, 3}, kRows = 6;

struct Layout {
  const char* name;
  bool side;         // (2, n, 3) in place of (2, 3, n)
  std::size_t skip;  // elements left out, so that rows are not aligned
};
constexpr Layout kLayouts[] = {{"contiguous", false, 0}, {"side by side", true, 0}, {"misaligned", false, 1}};

// `length` elements a row in such a layout, in the machine's memory or the CPU's; one a row: length 1.
class Array {
 public:
  Array(std::int64_t length, std::int64_t item, const Layout& layout, bool guarded)
      : length(length), item(item), side_(layout.side), own_(guarded ? 0 : std::size_t(kRows * length * item)) {
    const simt::Place place = length % 2 ? simt::Place::front : simt::Place::back;
    if (guarded) device_.emplace_back(std::size_t(kRows * length * item), place, "an array", layout.skip * std::size_t(item));
    strides_[0] = kBatch[1] * length * item;
    strides_[side_ ? 2 : 1] = (side_ ? 1 : length) * item;
    strides_[side_ ? 1 : 2] = (side_ ? kBatch[1] : 1) * item;
  }
  Byte* data() { return device_.empty() ? own_.data() : device_[0].data(); }
  Byte* at(std::int64_t row, std::int64_t i) {
    return data() + row / kBatch[1] * strides_[0] + row % kBatch[1] * strides_[side_ ? 2 : 1] + i * strides_[side_ ? 1 : 2];
  }
  View view() { return {data(), strides_}; }
  bool intact() const { return device_.empty() || device_[0].intact(); }
  void copy(const Array& from) {
    Array& other = const_cast<Array&>(from);
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t i = 0; i < length; ++i) std::memcpy(at(r, i), other.at(r, i), std::size_t(item));
  }
  bool same(Array& other) {
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t i = 0; i < length; ++i)
        if (std::memcmp(at(r, i), other.at(r, i), std::size_t(item)) != 0) return false;
    return true;
  }

  std::int64_t length, item;

 private:
  bool side_;
  std::int64_t strides_[3] = {};
  std::vector<Byte> own_;
  std::vector<simt::Buffer<Byte>> device_;
};

enum { kX, kY, kIndex, kOfPicks, kOfRow, kInputs };
enum { kLogProb, kEntropy, kGradient, kDivergence, kOfP, kOfQ, kOutputs };

struct Case {
  const DTypeCase& type;
  std::int64_t n, picks;
  const Layout& layout;
  Kind kind;
  double temperature;
  bool entropy, in_place;
  bool bad_index = false;  // of row 2
};

std::vector<Array> inputs_of(const Case& c, bool guarded) {
  std::vector<Array> in;
  for (const std::int64_t length : {c.n, c.n, c.picks, c.picks, std::int64_t{1}})
    in.emplace_back(length, in.size() == kIndex ? 8 : c.type.size, c.layout, guarded);
  return in;
}
std::vector<Array> outputs_of(const Case& c, bool guarded) {
  std::vector<Array> out;
  for (const std::int64_t length : {c.picks, std::int64_t{1}, c.n, std::int64_t{1}, c.n, c.n})
    out.emplace_back(length, c.type.size, c.layout, guarded);
  return out;
}

void fill(const Case& c, std::vector<Array>& in) {
  Random random(static_cast<std::uint64_t>(c.n * 31 + c.kind));
  for (std::int64_t r = 0; r < kRows; ++r) {
    const Kind kind = r < 3 ? c.kind : kNormal;  // of the special ones too, some rows are not
    for (std::int64_t i = 0; i < c.n; ++i) {
      const double x = element(random, Role::logits, kind, c.type.dtype, i);
      put(c.type.dtype, in[kX].at(r, i), x);
      // near p, elsewhere, or p itself
      put(c.type.dtype, in[kY].at(r, i), r == 0 ? x + 1e-3 * random.normal() : r == 1 ? random.normal() * 8 : x);
    }
    const std::int64_t at = random.below(c.n);
    if (kind == kWinner) put(c.type.dtype, in[kX].at(r, at), 3 + 4.0 * static_cast<double>(random.below(20)));
    if (kind == kNaN) put(c.type.dtype, in[r == 1 ? kY : kX].at(r, at), __builtin_nan(""));
    if (kind == kInfinity) put(c.type.dtype, in[kX].at(r, at), infinity());
    if (kind == kMasked && r == 1) put(c.type.dtype, in[kY].at(r, at), -infinity());
    for (std::int64_t k = 0; k < c.picks; ++k) {
      std::int64_t index = k == 0 && kind == kWinner ? at : random.below(c.n);
      if (c.bad_index && r == 2 && k == c.picks - 1) index = random.below(2) ? c.n + 1000000 : -1;
      std::memcpy(in[kIndex].at(r, k), &index, 8);
      put(c.type.dtype, in[kOfPicks].at(r, k), random.normal());
    }
    put(c.type.dtype, in[kOfRow].at(r, 0), random.normal());
  }
}

void describe(const Case& c, char* to, std::size_t size) {
  std::snprintf(to, size, "%s, rows of %lld, kind %d, %s, %lld indices, temperature %g%s%s%s", c.type.name,
                static_cast<long long>(c.n), int(c.kind), c.layout.name, static_cast<long long>(c.picks), c.temperature,
                c.entropy ? ", entropy" : "", c.in_place ? ", in place" : "", c.bad_index ? ", an index of no class" : "");
}

// All four functions: call(name, f), where f() calls the CPU's and f(target) the device's, which is in target's namespace.
template <class Invoke>
void all(const Case& c, std::vector<Array>& in, std::vector<Array>& out, Invoke call) {
  const std::int64_t wide[3] = {kBatch[0], kBatch[1], c.n}, side[3] = {kBatch[0], c.n, kBatch[1]};
  LogitsRows rows;
  rows.dtype = c.type.dtype, rows.ndim = 3, rows.shape = c.layout.side ? side : wide, rows.axis = c.layout.side ? 1 : -1;
  rows.picks = c.picks, rows.temperature = c.temperature;
  const auto given = [](bool is, Array& array) { return is ? array.view() : View{}; };
  const bool picked = c.picks > 0, wanted = c.entropy;
  call("log_prob_and_entropy", [&](auto... target) {
    return log_prob_and_entropy(rows, in[kX].view(), given(picked, in[kIndex]), given(picked, out[kLogProb]),
                                given(wanted, out[kEntropy]), target...);
  });
  rows.temperature = 1.0;
  call("kl_div",
       [&](auto... target) { return kl_div(rows, in[kX].view(), in[kY].view(), out[kDivergence].view(), target...); });
  rows.temperature = c.temperature;
  if (c.in_place) out[kGradient].copy(in[kX]), out[kOfP].copy(in[kX]), out[kOfQ].copy(in[kY]);
  const auto logits = [&](int result, int input) { return (c.in_place ? out[result] : in[input]).view(); };
  call("log_prob_and_entropy_vjp", [&](auto... target) {
    return log_prob_and_entropy_vjp(rows, given(picked, in[kOfPicks]), given(wanted, in[kOfRow]), logits(kGradient, kX),
                                    given(picked, in[kIndex]), out[kGradient].view(), target...);
  });
  rows.temperature = 1.0;
  call("kl_div_vjp", [&](auto... target) {
    return kl_div_vjp(rows, in[kOfRow].view(), logits(kOfP, kX), logits(kOfQ, kY), out[kOfP].view(), out[kOfQ].view(),
                      target...);
  });
}

void check_case(const Case& c) {
  char doing[200];
  describe(c, doing, sizeof doing);
  std::vector<Array> in = inputs_of(c, false), want = outputs_of(c, false);
  std::vector<Array> device_in = inputs_of(c, true), got = outputs_of(c, true);
  fill(c, in);
  for (int k = 0; k < kInputs; ++k) device_in[std::size_t(k)].copy(in[std::size_t(k)]);
  if (c.bad_index) {  // which the CPU refuses
    const std::int64_t instead = 0;
    std::memcpy(in[kIndex].at(2, c.picks - 1), &instead, 8);
  }
  all(c, in, want, [&](const char* name, auto f) {
    const Status status = f();
    CHECK(status.ok(), "%s of the CPU, %s: %s", name, doing, status.message);
  });
  all(c, device_in, got, [&](const char* name, auto f) {
    sumexp::cuda::Target target;
    const Status status = f(target);
    CHECK(status.ok(), "%s, %s: %s", name, doing, status.message);
  });
  if (c.bad_index)
    for (const int k : {kLogProb, kEntropy, kGradient})
      for (std::int64_t i = 0; i < want[std::size_t(k)].length; ++i)
        put(c.type.dtype, want[std::size_t(k)].at(2, i), __builtin_nan(""));
  constexpr const char* kNames[] = {"log_prob", "entropy", "the gradient", "kl_div", "the gradient of p", "the gradient of q"};
  for (int k = 0; k < kOutputs; ++k) {
    const std::size_t at = std::size_t(k);
    if (k == kEntropy && !c.entropy) continue;
    CHECK(got[at].same(want[at]), "%s: %s has other bytes than the CPU's", doing, kNames[k]);
    CHECK(got[at].intact(), "%s: wrote beside %s", doing, kNames[k]);
  }
}

void refusals() {
  float x[6] = {0, 1, 2, 3, 4, 5}, out[2] = {7, 7};
  std::int64_t index[2] = {0, 2};
  const std::int64_t shape[2] = {2, 3}, full[2] = {12, 4}, one[2] = {4, 0}, at[2] = {8, 0};
  LogitsRows rows;
  rows.ndim = 2, rows.shape = shape;
  sumexp::cuda::Target target;
  const auto refused = [&](const Status& status, const char* message) {
    CHECK(!status.ok() && std::strstr(status.message, message), "got '%s', expected '%s'", status.message, message);
    CHECK(out[0] == 7 && out[1] == 7, "written in spite of '%s'", message);
  };
  const auto log_prob = [&] { return log_prob_and_entropy(rows, {x, full}, {index, at}, {out, one}, {}, target); };
  rows.axis = 2;
  refused(log_prob(), "axis is 2");
  rows.axis = -1, rows.temperature = 0;
  refused(log_prob(), "temperature is 0");
  rows.temperature = 2;
  refused(kl_div(rows, {x, full}, {x, full}, {out, one}, target), "temperature is 2; kl_div takes none");
  rows.temperature = 1, target.device = 7;
  refused(log_prob(), "on device 7");
  target.device = 0;
  refused(log_prob_and_entropy(rows, {x, full}, {index, at}, {}, {out, one}, target), "log_prob is missing");
  CHECK(log_prob().ok() && out[0] < 0 && out[1] < 0, "refused what is accepted");
}

// Rows of no elements, and no rows.
void nothing() {
  double out[2] = {7, 7}, x[1] = {0};
  const std::int64_t shape[2] = {2, 0}, full[2] = {0, 8}, one[2] = {8, 0}, none[2] = {0, 3};
  LogitsRows rows;
  rows.dtype = DType::f64, rows.ndim = 2, rows.shape = shape, rows.picks = 0;
  sumexp::cuda::Target target;
  Status status = log_prob_and_entropy(rows, {x, full}, {}, {}, {out, one}, target);
  CHECK(status.ok() && out[0] == 0 && out[1] == 0, "entropies of nothing: %g, %g, %s", out[0], out[1], status.message);
  out[0] = out[1] = 7;
  status = kl_div(rows, {x, full}, {x, full}, {out, one}, target);
  CHECK(status.ok() && out[0] == 0 && out[1] == 0, "divergences of nothing: %g, %g, %s", out[0], out[1], status.message);
  rows.shape = none;
  status = kl_div(rows, {nullptr, full}, {nullptr, full}, {nullptr, one}, target);
  CHECK(status.ok(), "no rows: %s", status.message);
}

}  // namespace

int main(int argc, char** argv) {
  refusals();
  nothing();
  int number = 0;
  const auto options = [&](const DTypeCase& type, std::int64_t n, Kind kind, const Layout& layout) {
    ++number;  // options take turns
    check_case({type, n, number % 3, layout, kind, number % 4 == 1 ? 0.75 : 1.0, number % 3 == 0 || number % 5 != 0,
                number % 7 < 3, number % 3 > 0 && number % 11 == 0});
  };
  for (const DTypeCase& type : kDTypes) {
    if (argc > 1 && std::strcmp(argv[1], type.name) != 0) continue;
    for (const std::int64_t n : {1, 2, 9, 64, 65, 255, 256, 257, 513, 2047, 2048, 2049, 5001})
      for (const Layout& layout : kLayouts) options(type, n, kNormal, layout);
    for (int kind = 0; kind < kKinds; ++kind)
      for (const std::int64_t n : {31, 700, 2500}) options(type, n, Kind(kind), kLayouts[kind % 3]);
    for (const Kind kind : {kNormal, kWinner, kSteps, kCrossing})  // more chunks than a block has warps, and than two rounds
      for (const std::int64_t chunks : {9, 19})
        options(type, chunks * (type.size == 8 ? 512 : 2048) - 3, kind, kLayouts[(kind + chunks) % 3]);
  }
  return check::finish();
}
