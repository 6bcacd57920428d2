// The C++ API: what it refuses and says, and that a row's bytes depend on nothing but the row: not on strides,
// axis, mask layout, place in a batch, threads, other callers, or on being computed in place.
// usage: test_c_api [ISA]
#include <sys/wait.h>
#include <unistd.h>

#include <sumexp/log_domain.hpp>
#include <sumexp/losses.hpp>
#include <sumexp/ragged.hpp>
#include <sumexp/sampling.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "cases.hpp"

using namespace cases;
using sumexp::Code;

namespace {

// -- bad calls ----------------------------------------------------------------------------------------------

struct Refused {
  float x[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 1, 1, 1, 1, 1}, out[6] = {-7, -7, -7, -7, -7, -7};
  unsigned char where[6] = {1, 1, 1, 1, 1, 1};
  std::int64_t shape[2] = {2, 3}, strides[2] = {12, 4}, row[2] = {4, 0}, mask[2] = {3, 1};
  Call call;
  Refused() {
    call.ndim = 2, call.shape = shape, call.axes = 2;
    call.in[0] = {x, strides}, call.out = {out, strides};
  }
};

template <class Spoil>
void refuses(const char* naming, Spoil spoil, Code code = Code::invalid_argument) {
  Refused r;
  CHECK(sumexp::run(r.call).ok(), "the call that is spoilt next");
  std::fill(r.out, r.out + 6, -7.0f);
  spoil(r);
  const Status status = run(r.call);
  CHECK(status.code == code, "%s: code %d, expected %d", naming, static_cast<int>(status.code), static_cast<int>(code));
  CHECK(std::strstr(status.message, naming) != nullptr, "message '%s' does not name '%s'", status.message, naming);
  CHECK(std::strlen(status.message) < sizeof(status.message), "message ends");
  for (const float v : r.out) CHECK(v == -7.0f, "%s: out was written", naming);
}

void test_bad_calls() {
  refuses("op", [](Refused& r) { r.call.op = static_cast<Op>(-1); });
  refuses("op", [](Refused& r) { r.call.op = static_cast<Op>(sumexp::kOpCount); });
  refuses("dtype", [](Refused& r) { r.call.dtype = static_cast<DType>(4); });
  refuses("dtype", [](Refused& r) { r.call.dtype = static_cast<DType>(-1); });
  refuses("ndim", [](Refused& r) { r.call.ndim = -1; });
  refuses("ndim", [](Refused& r) { r.call.ndim = sumexp::kMaxDims + 1; });
  refuses("axes", [](Refused& r) { r.call.axes = 4; });
  refuses("shape", [](Refused& r) { r.shape[1] = -1; });
  refuses("shape", [](Refused& r) { r.shape[0] = r.shape[1] = std::int64_t{1} << 32; });
  refuses("shape", [](Refused& r) { r.shape[0] = std::numeric_limits<std::int64_t>::max(); });
  refuses("shape", [](Refused& r) { r.call.shape = nullptr; });
  refuses("in[0]", [](Refused& r) { r.call.in[0].strides = nullptr; });
  refuses("out", [](Refused& r) { r.call.out.strides = nullptr; });
  refuses("extra", [](Refused& r) { r.call.extra = {r.b, r.strides}; });
  refuses("temperature", [](Refused& r) { r.call.temperature = 1e-46; });  // 0 in float
  refuses("in[0]", [](Refused& r) { r.call.in[0].data = nullptr; });
  refuses("in[1]", [](Refused& r) { r.call.op = Op::softmax_vjp; });
  refuses("in[2]", [](Refused& r) { r.call.op = Op::softmax_hvp, r.call.in[1] = {r.b, r.strides}; });
  refuses("in[1]", [](Refused& r) { r.call.op = Op::logsumexp_vjp; });
  refuses("out", [](Refused& r) { r.call.out.data = nullptr; });
  refuses("in[1] is given; softmax takes 1 inputs", [](Refused& r) { r.call.in[1] = {r.b, r.strides}; });
  refuses("in[2] is given; softmax_vjp takes 2 inputs", [](Refused& r) {
    r.call.op = Op::softmax_vjp, r.call.in[1] = r.call.in[2] = {r.b, r.strides};
  });
  refuses("in[1] is given; logsumexp takes 1 inputs", [](Refused& r) {
    r.call.op = Op::logsumexp, r.call.out.strides = r.row, r.call.in[1] = {r.b, r.strides};
  });
  for (const double t : {0.0, -1.0, -infinity(), static_cast<double>(__builtin_nanf(""))})
    refuses("temperature", [t](Refused& r) { r.call.temperature = t; });
  refuses("temperature", [](Refused& r) { r.call.op = Op::logsumexp, r.call.out.strides = r.row, r.call.temperature = 2.0; });
  refuses("where", [](Refused& r) {
    r.call.op = Op::softmax_vjp, r.call.in[1] = {r.b, r.strides}, r.call.where = {r.where, r.mask};
  });

  // An empty std::vector has no address: still a sum with weights, of nothing.
  {
    const std::int64_t empty[2] = {2, 0}, strides[2] = {4, 4};
    float lse[2] = {7, 7}, sign[2] = {7, 7};
    Call call;
    call.op = Op::weighted_logsumexp, call.ndim = 2, call.shape = empty, call.axes = 2;
    call.in[0] = call.in[1] = {nullptr, strides};
    call.out = {lse, strides}, call.extra = {sign, strides};
    const Status status = sumexp::run(call);
    CHECK(status.ok() && lse[0] == -infinity() && lse[1] == -infinity(), "empty sums with weights: %s %g", status.message,
          lse[0]);
    CHECK(sign[0] == 0 && sign[1] == 0, "their signs: %g %g", sign[0], sign[1]);
  }

  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  for (const std::int64_t target : {std::int64_t{-1}, std::int64_t{3}, kLowest, std::int64_t{1} << 32}) {
    const std::int64_t targets[2] = {0, target}, strides[2] = {8, 0};
    char naming[80];
    std::snprintf(naming, sizeof(naming), "in[1] is %lld for row 1, accepted: indices from 0 below 3",
                  static_cast<long long>(target));
    refuses(naming, [&](Refused& r) {
      r.call.op = Op::cross_entropy_with_grad, r.call.in[1] = {const_cast<std::int64_t*>(targets), strides};
    });
  }

  const std::int64_t nothing[2] = {2, 0}, targets[2] = {0, 0}, strides[2] = {8, 0};  // of nothing there is no index
  refuses("in[1] is missing", [&](Refused& r) { r.call.op = Op::cross_entropy, r.call.shape = nothing; });
  refuses("in[1] is 0 for row 0", [&](Refused& r) {
    r.call.op = Op::cross_entropy, r.call.shape = nothing, r.call.in[1] = {const_cast<std::int64_t*>(targets), strides};
  });

  const std::int64_t shape[2] = {2, 3};
  float x[6] = {0}, y[6];
  for (const int axis : {2, -3, 100}) {
    const Status status = sumexp::softmax(x, y, DType::f32, 2, shape, axis);
    CHECK(status.code == Code::invalid_argument && std::strstr(status.message, "axis"), "axis %d: %s", axis, status.message);
  }
  for (const int n : {0, -3}) {
    const Status status = sumexp::set_num_threads(n);
    CHECK(status.code == Code::invalid_argument && std::strstr(status.message, "n is "), "threads: %s", status.message);
  }
  const auto names = [](const Status& status, const char* naming) {
    CHECK(status.code == Code::invalid_argument && std::strstr(status.message, naming), "%s: %s", naming, status.message);
  };
  names(sumexp::softmax(x, y, DType::f32, 2, nullptr, 1), "shape");
  const std::int64_t huge[2] = {std::numeric_limits<std::int64_t>::max(), 3};
  names(sumexp::softmax(x, y, DType::f32, 2, huge, 1), "shape");
  names(sumexp::set_isa(nullptr), "isa");
  names(sumexp::matrix(static_cast<sumexp::Matrix>(9), DType::f32, x, y, 1, 2), "which");
  names(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f32, nullptr, y, 1, 2), "y");
  names(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f32, x, nullptr, 1, 2), "out");
  names(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f32, x, y, -1, 2), "rows");
  names(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f32, x, y, 1, -2), "n");
  const Status isa = sumexp::set_isa("abacus");
  CHECK(isa.code == Code::invalid_argument && std::strstr(isa.message, "abacus") && std::strstr(isa.message, "scalar"),
        "isa: %s", isa.message);
  CHECK(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f16, x, y, 1, 1).code == Code::unsupported, "matrix of f16");
}

// -- the named functions, by the mathematics ----------------------------------------------------------------------

void test_named_functions() {
  const float x[6] = {1, 2, 3, 1, 2, 1000};
  float y[6], l[2];
  const std::int64_t shape[2] = {2, 3};
  CHECK(sumexp::softmax(x, y, DType::f32, 2, shape, -1).ok(), "softmax");
  CHECK(y[0] == 0.0900305733f && y[1] == 0.244728476f && y[2] == 0.665240943f, "softmax: %.9g %.9g %.9g", double(y[0]),
        double(y[1]), double(y[2]));
  CHECK(y[3] == 0.0f && y[4] == 0.0f && y[5] == 1.0f, "softmax of a winner");
  CHECK(sumexp::logsumexp(x, l, DType::f32, 2, shape, 1).ok(), "logsumexp");
  CHECK(l[0] == 3.40760589f && l[1] == 1000.0f, "logsumexp: %.9g %.9g", double(l[0]), double(l[1]));
  const double d[2] = {0.0, -50.0};
  double lse = 0.0, log_y[2];
  const std::int64_t two[1] = {2};
  CHECK(sumexp::logsumexp(d, &lse, DType::f64, 1, two, 0).ok() && lse == 1.9287498479639178e-22, "logsumexp([0, -50]) = %.17g",
        lse);
  CHECK(sumexp::log_softmax(d, log_y, DType::f64, 1, two, 0).ok() && log_y[0] == -1.9287498479639178e-22, "log_softmax = %.17g",
        log_y[0]);
  CHECK(sumexp::logsumexp(d, &lse, DType::f64, 1, std::vector<std::int64_t>{0}.data(), 0).ok() && lse == -infinity(),
        "an empty sum: %g", lse);
  const double p[2] = {0.25, 0.75};
  double J[4];
  CHECK(sumexp::matrix(sumexp::Matrix::softmax_jacobian, DType::f64, p, J, 1, 2).ok() && J[0] == 0.1875 && J[1] == -0.1875 &&
            J[2] == -0.1875 && J[3] == 0.1875,
        "jacobian");
}

// -- layouts -----------------------------------------------------------------------------------------------------

// Memory for one operand: any order of dimensions, gaps, either direction, dimensions of stride 0 (inputs only).
struct Layout {
  Bytes memory;
  std::vector<std::int64_t> strides;
  std::int64_t origin = 0;
  unsigned char* data() { return memory.data() + origin; }
};

Layout lay_out(Random& random, const std::vector<std::int64_t>& shape, std::int64_t size, std::uint64_t dropped,
               bool may_repeat) {
  const int ndim = static_cast<int>(shape.size());
  Layout layout;
  layout.strides.assign(shape.size(), 0);
  std::vector<int> order(shape.size());
  for (int d = 0; d < ndim; ++d) order[static_cast<std::size_t>(d)] = ndim - 1 - d;  // innermost first
  const bool plain = random.below(3) == 0;
  if (!plain)
    for (int d = ndim - 1; d > 0; --d)
      std::swap(order[static_cast<std::size_t>(d)], order[static_cast<std::size_t>(random.below(d + 1))]);
  std::int64_t step = size, lowest = 0;
  for (const int d : order) {
    const std::int64_t length = shape[static_cast<std::size_t>(d)];
    if ((dropped >> d) & 1) continue;
    if (may_repeat && random.below(12) == 0) continue;
    std::int64_t stride = step;
    if (!plain && random.below(4) == 0) stride += size * (1 + random.below(3));
    step = stride * (length > 0 ? length : 1);
    if (!plain && random.below(5) == 0) {
      stride = -stride;
      if (length > 0) lowest += (length - 1) * stride;
    }
    layout.strides[static_cast<std::size_t>(d)] = stride;
  }
  const std::int64_t shift = random.below(3) ? 0 : random.below(64);  // any alignment
  layout.memory.resize(static_cast<std::size_t>(step + shift) + 64, 0x5a);
  layout.origin = shift - lowest;
  return layout;
}

std::int64_t offset_of(const std::vector<std::int64_t>& index, const std::vector<std::int64_t>& strides) {
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < index.size(); ++d) offset += index[d] * strides[d];
  return offset;
}
bool advance(std::vector<std::int64_t>& index, const std::vector<std::int64_t>& shape, std::uint64_t over) {
  for (int d = static_cast<int>(shape.size()) - 1; d >= 0; --d) {
    if (!((over >> d) & 1)) continue;
    auto& i = index[static_cast<std::size_t>(d)];
    if (++i < shape[static_cast<std::size_t>(d)]) return true;
    i = 0;
  }
  return false;
}

// The elements of a row divided by a temperature; where a quotient overflows, less their maximum first.
template <class T>
std::vector<double> divided(const std::vector<double>& row, double temperature) {
  const T divisor = static_cast<T>(temperature);
  std::vector<double> quotients;
  bool overflows = false;
  double maximum = -infinity();
  for (const double x : row) {
    quotients.push_back(static_cast<double>(static_cast<T>(x) / divisor));
    overflows |= std::isinf(quotients.back()) && std::isfinite(x);
    if (x > maximum) maximum = x;
  }
  for (std::size_t i = 0; overflows && i < row.size(); ++i)
    quotients[i] = static_cast<double>(T(2) * ((static_cast<T>(row[i]) * T(0.5) - static_cast<T>(maximum) * T(0.5)) / divisor));
  return quotients;
}

// A row by itself: contiguous, unmasked, x / T beforehand; 16-bit formats in f32. Only 16-bit logits, which make terms of
// their own, stay what they are, T and all.
struct Alone {
  Bytes out, extra;
  Alone(const OpCase& op, const DTypeCase& type, std::int64_t n, Bytes (&rows)[3], const Bytes& where, double temperature,
        bool with_extra) {
    const bool as_is = type.size == 2 && op.role[0] == Role::logits;
    const DTypeCase& inside = type.size == 2 && !as_is ? kDTypes[2] : type;
    Bytes wide[3];
    const void* in[3];
    for (int k = 0; k < op.inputs; ++k) {
      const std::int64_t count = k == op.row_input ? 1 : n;
      if (op.is_index(k)) {
        in[k] = rows[k].data();
        continue;
      }
      wide[k].resize(static_cast<std::size_t>(count * inside.size) + 1);
      std::vector<double> values;
      for (std::int64_t i = 0; i < count; ++i) {
        const bool masked = k == 0 && !where.empty() && !where[static_cast<std::size_t>(i)];
        values.push_back(masked ? -infinity() : get(type.dtype, rows[k].data() + i * type.size));
      }
      const bool forward = op.op == Op::softmax || op.op == Op::log_softmax;
      if (k == 0 && forward && !as_is)
        values = inside.size == 4 ? divided<float>(values, temperature) : divided<double>(values, temperature);
      for (std::int64_t i = 0; i < count; ++i)
        put(inside.dtype, wide[k].data() + i * inside.size, values[static_cast<std::size_t>(i)]);
      in[k] = wide[k].data();
      if (!as_is && (op.op == Op::softmax || op.op == Op::log_softmax)) temperature = 1.0;
    }
    const std::int64_t results = op.row_output ? 1 : n;
    Bytes wide_out(static_cast<std::size_t>(results * inside.size) + 1), wide_extra(8);
    Contiguous c(op, inside, 1, n, in, wide_out.data(), with_extra ? wide_extra.data() : nullptr);
    c.call.temperature = temperature;
    CHECK(run(c.call).ok(), "%s alone", op.name);
    out.resize(static_cast<std::size_t>(results * type.size));
    extra.resize(static_cast<std::size_t>(type.size));
    if (type.size == inside.size) {
      check::copy(out.data(), wide_out.data(), out.size());
      check::copy(extra.data(), wide_extra.data(), extra.size());
    } else {
      for (std::int64_t i = 0; i < results; ++i)
        put(type.dtype, out.data() + i * type.size, get(inside.dtype, wide_out.data() + i * 4));
      put(type.dtype, extra.data(), get(inside.dtype, wide_extra.data()));
    }
  }
};

void test_layout(Random& random) {
  const OpCase& op = kOps[random.below(sizeof(kOps) / sizeof(kOps[0]))];
  const DTypeCase& type = kDTypes[random.below(4)];
  const int ndim = static_cast<int>(random.below(5));
  std::vector<std::int64_t> shape(static_cast<std::size_t>(ndim));
  for (auto& s : shape) s = random.below(20) == 0 ? 0 : 1 + random.below(random.below(8) == 0 ? 40 : 7);
  if (ndim && random.below(4) == 0)
    shape[static_cast<std::size_t>(random.below(ndim))] = 1 + random.below(ndim > 2 ? 300 : 5000);
  const std::uint64_t all = ndim ? (std::uint64_t(1) << ndim) - 1 : 0;
  std::uint64_t axes = random.next() & all;
  if (random.below(2) && ndim) axes = std::uint64_t(1) << random.below(ndim);
  const double temperature = op.temperature && random.below(3) == 0 ? 0.7 : 1.0;
  const bool masked = op.where && random.below(3) == 0;
  const Kind kind = static_cast<Kind>(random.below(kKinds));
  char doing[160];
  int used = std::snprintf(doing, sizeof(doing), "%s %s kind %d T=%g%s axes %llx shape", op.name, type.name, kind, temperature,
                           masked ? " masked" : "", static_cast<unsigned long long>(axes));
  for (const auto s : shape)
    used += std::snprintf(doing + used, sizeof(doing) - static_cast<std::size_t>(used), " %lld", static_cast<long long>(s));

  std::int64_t n = 1, rows = 1;
  for (int d = 0; d < ndim; ++d) ((axes >> d) & 1 ? n : rows) *= shape[static_cast<std::size_t>(d)];
  if (n * rows > 100000 || (op.has_index() && n == 0)) return;

  const std::uint64_t drop_row = axes;
  const bool in_place = !op.row_output && random.below(4) == 0;
  Layout in[3], where = lay_out(random, shape, 1, 0, true);
  for (auto& m : where.memory) m = random.below(4) != 0;
  const int replaced = in_place ? static_cast<int>(random.below(op.inputs)) : -1;
  for (int k = 0; k < op.inputs; ++k) {
    const bool one = k == op.row_input;
    in[k] = lay_out(random, shape, item_of(op, type, k), one ? drop_row : 0, !(k == replaced && !one));
    std::vector<std::int64_t> index(shape.size(), 0);
    if (rows * n > 0 && op.is_index(k)) {
      do {
        const std::int64_t target = random.below(n);
        std::memcpy(in[k].data() + offset_of(index, in[k].strides), &target, 8);
      } while (advance(index, shape, all));
    } else if (rows * n > 0) {
      std::int64_t i = 0;
      do put(type.dtype, in[k].data() + offset_of(index, in[k].strides), element(random, op.role[k], kind, type.dtype, i++));
      while (advance(index, shape, all));
    } else if (one) {
      for (std::size_t at = 0; at + 8 <= in[k].memory.size(); at += 8) std::memset(in[k].memory.data() + at, 0, 8);
    }
  }
  Layout out = lay_out(random, shape, type.size, op.row_output ? drop_row : 0, false);
  Layout extra = lay_out(random, shape, type.size, drop_row, false);
  const Layout before[3] = {in[0], in[1], in[2]};
  Layout& result = in_place && replaced != op.row_input ? in[replaced] : out;

  Call call;
  call.op = op.op, call.dtype = type.dtype, call.ndim = ndim, call.shape = shape.data(), call.axes = axes;
  for (int k = 0; k < op.inputs; ++k) call.in[k] = {in[k].data(), in[k].strides.data()};
  if (masked) call.where = {where.data(), where.strides.data()};
  call.out = {result.data(), result.strides.data()};
  if (op.extra && random.below(2)) call.extra = {extra.data(), extra.strides.data()};
  call.temperature = temperature;
  const Status status = run(call);
  CHECK(status.ok(), "%s: %s", doing, status.message);

  std::vector<std::int64_t> index(shape.size(), 0);
  if (rows > 0) do {
      Bytes row[3], mask;
      for (int k = 0; k < op.inputs; ++k) {
        const std::int64_t count = k == op.row_input ? 1 : n, item = item_of(op, type, k);
        row[k].resize(static_cast<std::size_t>(count * item) + 1);
        std::vector<std::int64_t> at = index;
        for (std::int64_t i = 0; i < count; ++i, advance(at, shape, axes))
          check::copy(row[k].data() + i * item, before[k].memory.data() + before[k].origin + offset_of(at, before[k].strides),
                      static_cast<std::size_t>(item));
      }
      if (masked) {
        std::vector<std::int64_t> at = index;
        for (std::int64_t i = 0; i < n; ++i, advance(at, shape, axes))
          mask.push_back(where.data()[offset_of(at, where.strides)]);
        mask.push_back(1);
      }
      const Alone alone(op, type, n, row, mask, temperature, call.extra.data != nullptr);
      std::vector<std::int64_t> at = index;
      for (std::int64_t i = 0; i < (op.row_output ? 1 : n); ++i, advance(at, shape, axes)) {
        const bool equal = check::equal_bytes(result.data() + offset_of(at, result.strides), alone.out.data() + i * type.size,
                                              static_cast<std::size_t>(type.size));
        CHECK(equal, "%s%s: element %lld is %a, alone %a", doing, in_place ? " in place" : "", static_cast<long long>(i),
              get(type.dtype, result.data() + offset_of(at, result.strides)),
              get(type.dtype, alone.out.data() + i * type.size));
        if (!equal) return;
      }
      if (call.extra.data)
        CHECK(check::equal_bytes(extra.data() + offset_of(index, extra.strides), alone.extra.data(), alone.extra.size()),
              "%s: extra", doing);
    } while (advance(index, shape, all & ~axes));
}

// -- threads -------------------------------------------------------------------------------------------------------

struct Job {
  const OpCase& op;
  const DTypeCase& type;
  std::int64_t rows, n;
  Bytes in[3];

  Job(const OpCase& o, const DTypeCase& t, std::int64_t r, std::int64_t length, Kind kind)
      : op(o), type(t), rows(r), n(length) {
    Random random(static_cast<std::uint64_t>(n));
    for (int k = 0; k < op.inputs; ++k) in[k] = make_input(random, op, k, kind, type, rows, n);
  }
  Bytes compute(bool in_place = false) const {
    Bytes out(static_cast<std::size_t>(rows * (op.row_output ? 1 : n) * type.size));
    if (in_place) std::copy(in[0].begin(), in[0].begin() + static_cast<std::ptrdiff_t>(out.size()), out.begin());
    const void* const from[3] = {in_place ? out.data() : in[0].data(), in[1].data(), in[2].data()};
    const Status status = run(Contiguous(op, type, rows, n, from, out.data()).call);
    CHECK(status.ok(), "%s: %s", op.name, status.message);
    return out;
  }
  // The same with the rows side by side.
  Bytes of_columns() const {
    const std::int64_t results = op.row_output ? 1 : n;
    Bytes turned[3], out(static_cast<std::size_t>(rows * results * type.size));
    const void* from[3];
    for (int k = 0; k < op.inputs; ++k) {
      turned[k] = transposed(in[k], rows, k == op.row_input ? 1 : n, item_of(op, type, k));
      from[k] = turned[k].data();
    }
    Contiguous c(op, type, rows, n, from, out.data());
    c.full[0] = type.size, c.full[1] = rows * type.size;
    const Status status = run(c.call);
    CHECK(status.ok(), "%s: %s", op.name, status.message);
    return transposed(out, results, rows, type.size);
  }
  static Bytes transposed(const Bytes& from, std::int64_t rows, std::int64_t n, std::int64_t item) {
    Bytes to(from.size());
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < n; ++i)
        std::copy_n(from.begin() + (r * n + i) * item, item, to.begin() + (i * rows + r) * item);
    return to;
  }
  Bytes row_by_row() const {
    Bytes out;
    for (std::int64_t r = 0; r < rows; ++r) {
      const void* from[3];
      for (int k = 0; k < op.inputs; ++k) from[k] = in[k].data() + r * (k == op.row_input ? 1 : n) * item_of(op, type, k);
      Bytes row(static_cast<std::size_t>((op.row_output ? 1 : n) * type.size));
      run(Contiguous(op, type, 1, n, from, row.data()).call);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }
};

// Enough elements for each of 8 threads, or of 3: 2^16.
void test_threads() {
  struct Shape {
    std::int64_t rows, n;
    Kind kind;
  };
  std::vector<int> counts = {2, 3, 8};
  std::vector<Shape> shapes = {{31000, 17, kScale4}, {175, 3001, kMasked}, {1, 530001, kSteps}, {2, 270001, kScale4}};
  if (check::kSanitized) {
    counts = {3};
    shapes = {{11600, 17, kScale4}, {66, 3001, kMasked}, {1, 265001, kSteps}, {2, 265001, kScale4}};
  }
  int turn = 0;
  for (const OpCase& op : kOps)
    for (const DTypeCase& type : kDTypes)
      for (const Shape& shape : shapes) {
        if (check::slow() && turn++ % 5) continue;
        const Job job(op, type, shape.rows, shape.n, shape.kind);
        sumexp::set_num_threads(1);
        const Bytes one = job.compute();
        if (shape.rows > 1)
          CHECK(one == job.row_by_row(), "%s %s: %lld rows of %lld, one by one", op.name, type.name,
                static_cast<long long>(shape.rows), static_cast<long long>(shape.n));
        for (const int threads : counts) {
          sumexp::set_num_threads(threads);
          CHECK(one == job.compute(), "%s %s: %lld rows of %lld on %d threads", op.name, type.name,
                static_cast<long long>(shape.rows), static_cast<long long>(shape.n), threads);
          if (!op.row_output && threads == counts.front())
            CHECK(one == job.compute(true), "%s %s: %lld rows of %lld in place", op.name, type.name,
                  static_cast<long long>(shape.rows), static_cast<long long>(shape.n));
        }
      }
  sumexp::set_num_threads(4);
  CHECK(sumexp::get_num_threads() == 4, "get_num_threads");
}

// Rows side by side that fill no vectors, some so long that a block of them is no longer kept: what lanes that are no rows come
// to is written nowhere.
void test_columns() {
  sumexp::set_num_threads(1);
  for (const OpCase& op : kOps)
    for (const DTypeCase& type : {kDTypes[2], kDTypes[3]})
      for (const std::int64_t n : {700, 33001})
        for (const std::int64_t rows : {3, 7, 13}) {
          if (check::slow() && n > 700 && rows != 13) continue;
          const Job job(op, type, rows, n, kScale4);
          CHECK(job.compute() == job.of_columns(), "%s %s: %lld rows of %lld side by side", op.name, type.name,
                static_cast<long long>(rows), static_cast<long long>(n));
        }
}

// A row of every length on up to 8 threads: the tree of a split row.
void test_split_rows() {
  std::vector<std::int64_t> lengths = {262144, 262145, 327680, 393217, 700001};
  std::vector<int> counts = {2, 3, 4, 5, 6, 7, 8};
  if (check::slow()) lengths = {262145, 393217}, counts = {3, 8};
  for (const DTypeCase& type : {kDTypes[2], kDTypes[3]})
    for (const std::int64_t n : lengths) {
      const Job job(kOps[1], type, 1, n, kScale4);
      sumexp::set_num_threads(1);
      const Bytes one = job.compute();
      for (const int threads : counts) {
        sumexp::set_num_threads(threads);
        CHECK(one == job.compute(), "log_softmax %s: a row of %lld on %d threads", type.name, static_cast<long long>(n),
              threads);
      }
    }
}

// Each of these would read what is not there, or was taken as if it were something else.
void expect(const Status& status, const char* message) {
  CHECK(!status.ok() && std::strstr(status.message, message), "got '%s', expected '%s'", status.message, message);
}
void test_families_without_arrays() {
  const std::int64_t shape[2] = {2, 0}, rows[2] = {2, 3}, strides[2] = {12, 4}, ids[4] = {0, 1, 3, 1};
  float x[6] = {};
  double number = -7;
  sumexp::CrossEntropyCall loss;
  loss.dtype = sumexp::DType::f32, loss.ndim = 2, loss.shape = shape;
  expect(sumexp::cross_entropy(loss), "target is missing");
  expect(sumexp::cross_entropy_denominator(loss, &number), "target is missing");
  loss.shape = rows, loss.logits = {x, strides};
  std::int64_t target[2] = {0, 9};
  const std::int64_t step[2] = {8, 0};
  loss.target = {target, step};
  expect(sumexp::cross_entropy_denominator(loss, &number), "target is 9 for row 1");
  CHECK(number == -7, "a denominator was written: %g", number);
  CHECK(sumexp::cross_entropy_saved_bytes(static_cast<sumexp::DType>(9), 10) == 0, "bytes of no dtype");
  expect(sumexp::sum_rows(x, static_cast<sumexp::DType>(9), 2, &number), "dtype is code 9");
  const sumexp::View out = {x, strides};
  expect(sumexp::elementwise(sumexp::LogDomain::softplus, sumexp::DType::f32, 2, rows, nullptr, &out), "in is missing");
  expect(sumexp::elementwise(sumexp::LogDomain::softplus, sumexp::DType::f32, 2, rows, &out, nullptr), "out is missing");
  std::int64_t offsets[5] = {-7, -7, -7, -7, -7};
  expect(sumexp::segment_offsets(nullptr, 2, 2, offsets), "ids is missing");
  expect(sumexp::segment_offsets(ids, 2, 2, nullptr), "offsets is missing");
  expect(sumexp::segment_offsets(ids, 2, -1, offsets), "segments is negative");
  expect(sumexp::segment_offsets(ids, 4, 4, offsets), "ids has 1 at 3 after 3");
  CHECK(offsets[0] == -7 && offsets[1] == -7, "offsets were written: %lld", static_cast<long long>(offsets[0]));
  sumexp::SampleCall draws;
  const std::uint64_t seed = 1;
  const std::int64_t one = 1, of_counts[2] = {24, 8};
  std::int64_t counts[6];
  draws.dtype = sumexp::DType::f32, draws.ndim = 2, draws.shape = rows, draws.axis = 1, draws.logits = {x, strides};
  draws.seed = {&seed, 0}, draws.top_k = {&one, 0};
  expect(sumexp::sample_counts(draws, counts, of_counts), "top_k is given; sample_counts has no filters");
  draws.top_k = {};
  CHECK(sumexp::sample_counts(draws, counts, of_counts).ok() && counts[0] + counts[1] + counts[2] == 1, "one draw");
  draws.replacement = true;
  expect(sumexp::sample_piece(draws, INT64_MAX, 1, x, nullptr), "chunk is 9223372036854775807");
  draws.min_p = {&number, 0}, number = 0.5;
  std::int16_t classes[2] = {-7, -7};
  expect(sumexp::sample_piece(draws, 0, 1, x, classes), "min_p is given; sample_piece has no filters");
  expect(sumexp::finish_pieces(draws, 1, x, classes), "min_p is given; finish_pieces has no filters");
  draws.min_p = {};
  expect(sumexp::finish_pieces(draws, 1, x, classes), "out is missing");
  draws.log_prob = &number;
  expect(sumexp::sample_piece(draws, 0, 1, x, classes), "log_prob is given; sample_piece has no filters");
  draws.log_prob = nullptr, draws.where = draws.logits;
  expect(sumexp::sample_piece(draws, 0, 1, x, classes), "where is given; rows in pieces have no mask");
  draws.where = {}, draws.replacement = false;
  expect(sumexp::sample_piece(draws, 0, 1, x, classes), "replacement is false; sample_piece");
  CHECK(classes[0] == -7 && x[0] == 0.0f, "a piece was written: %d %g", classes[0], static_cast<double>(x[0]));
  draws.order = static_cast<sumexp::FilterOrder>(7);
  expect(sumexp::sample(draws), "order is code 7, accepted: 0 to 2");
  sumexp::Filters filters;
  filters.order = draws.order;
  sumexp::FilterCut cut = {};
  expect(sumexp::filter_cut(sumexp::DType::f32, x, 6, filters, &cut), "order is code 7, accepted: 0 to 2");
  sumexp::MaskedCall masked;
  masked.ndim = 2, masked.shape = rows, masked.x = masked.out = out, masked.empty = static_cast<sumexp::Empty>(2);
  expect(sumexp::masked(masked), "empty is code 2, accepted: 0 and 1");
  // Sizes whose bytes 63 bits cannot count.
  const std::int64_t huge = std::int64_t{1} << 40;
  expect(sumexp::gumbel_noise({&seed, 0}, {}, huge, huge, &number), "rows, n: have more bytes");
  expect(sumexp::matrix(sumexp::Matrix::softmax_jacobian, sumexp::DType::f32, x, x, 2, huge),
         "rows, n: matrices have more bytes");
  sumexp::SegmentsCall segments;
  segments.elements = segments.features = huge, segments.segments = 1, segments.offsets = offsets;
  expect(sumexp::segments(segments), "elements, segments, features: have more bytes");
}

void test_callers_at_once() {
  sumexp::set_num_threads(3);
  const Job many(kOps[0], kDTypes[2], 1000, 257, kScale4), one(kOps[1], kDTypes[3], 1, 300001, kScale4),
      small(kOps[9], kDTypes[1], 3, 40, kNormal);
  const Bytes want[3] = {many.compute(), one.compute(), small.compute()};
  std::vector<std::thread> callers;
  std::vector<int> wrong(16, 0);
  for (int c = 0; c < 16; ++c)
    callers.emplace_back([&, c] {
      const Job* const jobs[3] = {&many, &one, &small};
      for (int i = 0; i < 12; ++i) {
        const int which = (c + i) % 3;
        const Job& job = *jobs[which];
        const void* const from[3] = {job.in[0].data(), job.in[1].data(), job.in[2].data()};
        Bytes out(want[which].size());
        const bool ok = run(Contiguous(job.op, job.type, job.rows, job.n, from, out.data()).call).ok();
        wrong[static_cast<std::size_t>(c)] += !ok || out != want[which];
      }
    });
  for (auto& caller : callers) caller.join();
  for (const int w : wrong) CHECK(w == 0, "16 callers at once: %d wrong results", w);
}

void test_fork() {
  // qemu-user aborts in a child that starts threads of its own (seen with 7.2)
  if (check::emulated()) return;
  sumexp::set_num_threads(3);
  const Job job(kOps[0], kDTypes[2], 800, 257, kScale4);
  const Bytes want = job.compute();  // the pool runs
  const pid_t child = fork();
  if (child == 0) _exit(job.compute() == want ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child: status %x", static_cast<unsigned>(status));
  CHECK(job.compute() == want, "the parent after fork");
}

}  // namespace

int main(int argc, char** argv) {
  if (!choose_isa(argc > 1 ? argv[1] : std::getenv("SUMEXP_ISA"))) return check::kSkipped;
  test_bad_calls();
  test_families_without_arrays();
  test_named_functions();
  sumexp::set_num_threads(1);
  Random random(2026);
  for (int i = 0; i < (check::slow() ? 500 : 3000); ++i) test_layout(random);
  test_threads();
  test_columns();
  test_split_rows();
  test_callers_at_once();
  test_fork();
  return check::finish();
}
