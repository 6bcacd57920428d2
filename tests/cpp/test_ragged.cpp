// Masked rows and segments (sumexp/ragged.hpp) on one instruction set: the bytes of plain rows, nothing read or written beside
// what a row has, padding on pages that may not be touched, refusals that name the argument.   usage: test_ragged [ISA]
#include <sumexp/ragged.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"

using namespace sumexp;

namespace {

// Two pages, the second of which may not be touched.
class Edge {
 public:
  explicit Edge(std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    usable_ = bytes ? (bytes + page - 1) / page * page : page;  // qemu refuses mprotect of nothing
    void* base =
        mmap(nullptr, usable_ + (std::size_t{64} << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) std::abort();
    begin_ = static_cast<char*>(base);
    if (mprotect(begin_, usable_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Edge() { munmap(begin_, usable_ + (std::size_t{64} << 20)); }
  Edge(const Edge&) = delete;
  // `bytes` bytes right before what may not be touched.
  char* last(std::size_t bytes) { return begin_ + usable_ - bytes; }

 private:
  char* begin_;
  std::size_t usable_;
};

template <class T>
std::vector<T> normals(std::uint64_t seed, std::int64_t count) {
  check::Random random(seed);
  std::vector<T> x(static_cast<std::size_t>(count));
  for (T& value : x) value = static_cast<T>(4.0 * random.normal());
  return x;
}
template <class T>
constexpr DType kType = sizeof(T) == 4 ? DType::f32 : DType::f64;
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr std::int64_t kItem = sizeof(T);

constexpr Op kForward[] = {Op::softmax, Op::log_softmax, Op::logsumexp};

// A row of n elements through run.
template <class T>
std::vector<T> plain(Op op, const T* x, std::int64_t n) {
  std::vector<T> y(static_cast<std::size_t>(op == Op::logsumexp ? 1 : n));
  const std::int64_t shape[] = {n}, strides[] = {kItem<T>};
  Call call;
  call.op = op, call.dtype = kType<T>, call.ndim = 1, call.shape = shape, call.axes = 1;
  call.in[0] = {const_cast<T*>(x), strides};
  call.out = {y.data(), strides};
  CHECK(run(call).ok(), "a plain row");
  return y;
}

// Rows whose lengths end where memory does: what lies behind is neither read nor, of logsumexp, there at all.
template <class T>
void padding(std::int64_t n, std::int64_t length, bool with_sink, bool with_mask) {
  Edge edge(static_cast<std::size_t>(length * kItem<T>)), mask_edge(static_cast<std::size_t>(length));
  const std::vector<T> x = normals<T>(static_cast<std::uint64_t>(n * 1000 + length), length);
  char* const at = edge.last(static_cast<std::size_t>(length * kItem<T>));
  check::copy(at, x.data(), x.size() * sizeof(T));
  char* const mask = mask_edge.last(static_cast<std::size_t>(length));
  std::fill(mask, mask + length, char(1));
  const std::int64_t shape[] = {1, n}, strides[] = {0, kItem<T>}, bytes[] = {0, 1}, none[] = {0, 0};
  std::int64_t lengths = length;
  T sink = -kInfinity<T>;
  for (const Op op : kForward) {
    std::vector<T> y(static_cast<std::size_t>(n + 2), T(7));
    MaskedCall call;
    call.op = op, call.dtype = kType<T>, call.ndim = 2, call.shape = shape;
    call.x = {at, strides}, call.lengths = {&lengths, none}, call.out = {y.data() + 1, strides};
    if (with_sink) call.sink = {&sink, none};
    if (with_mask) call.where = {mask, bytes};
    const Status status = masked(call);
    CHECK(status.ok(), "%s", status.message);
    const std::vector<T> alone = plain(op, x.data(), length);
    if (op == Op::logsumexp) {
      CHECK(check::same(y[1], alone[0]), "logsumexp of %lld of %lld", static_cast<long long>(length),
            static_cast<long long>(n));
      continue;
    }
    CHECK(check::equal_bytes(y.data() + 1, alone.data(), alone.size() * sizeof(T)), "op %d: %lld of %lld", static_cast<int>(op),
          static_cast<long long>(length), static_cast<long long>(n));
    const T absent = op == Op::softmax ? T(0) : -kInfinity<T>;
    CHECK(std::all_of(y.begin() + 1 + length, y.end() - 1, [=](T v) { return v == absent; }), "op %d: padding",
          static_cast<int>(op));
    CHECK(y.front() == T(7) && y.back() == T(7), "op %d: wrote beside its result", static_cast<int>(op));

    // its VJP: x and g end there
    Edge g_edge(static_cast<std::size_t>(length * kItem<T>));
    const std::vector<T> g = normals<T>(5, length);
    char* const g_at = g_edge.last(static_cast<std::size_t>(length * kItem<T>));
    check::copy(g_at, g.data(), g.size() * sizeof(T));
    call.g = {g_at, strides};
    std::fill(y.begin(), y.end(), T(7));
    CHECK(masked(call).ok(), "a VJP");
    std::vector<T> dx(static_cast<std::size_t>(length));
    Call back;
    const std::int64_t row[] = {length}, step[] = {kItem<T>};
    back.op = op == Op::softmax ? Op::softmax_vjp : Op::log_softmax_vjp;
    back.dtype = kType<T>, back.ndim = 1, back.shape = row, back.axes = 1;
    back.in[0] = {const_cast<T*>(g.data()), step}, back.in[1] = {const_cast<T*>(alone.data()), step};
    back.out = {dx.data(), step};
    CHECK(run(back).ok(), "a plain VJP");
    CHECK(check::equal_bytes(y.data() + 1, dx.data(), dx.size() * sizeof(T)), "op %d: VJP of %lld of %lld",
          static_cast<int>(op), static_cast<long long>(length), static_cast<long long>(n));
    CHECK(std::all_of(y.begin() + 1 + length, y.end() - 1, [](T v) { return v == T(0); }), "op %d: padding of a VJP",
          static_cast<int>(op));
  }
}

// Segments of these lengths, of an array that ends where memory does, into another.
template <class T>
void segments_of(const std::vector<std::int64_t>& lengths, std::int64_t features) {
  std::vector<std::int64_t> offsets = {0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  const std::int64_t elements = offsets.back(), count = elements * features,
                     segments = static_cast<std::int64_t>(lengths.size());
  const std::vector<T> x = normals<T>(static_cast<std::uint64_t>(count), count);
  const std::size_t bytes = x.size() * sizeof(T);
  Edge in(bytes), out(std::max(bytes, static_cast<std::size_t>(segments * features * kItem<T>)));
  check::copy(in.last(bytes), x.data(), bytes);
  const std::int64_t strides[] = {features * kItem<T>, kItem<T>};
  for (const Op op : kForward) {
    const bool row = op == Op::logsumexp;
    T* const y = reinterpret_cast<T*>(out.last(row ? static_cast<std::size_t>(segments * features * kItem<T>) : bytes));
    SegmentsCall call;
    call.op = op, call.dtype = kType<T>, call.elements = elements, call.features = features, call.segments = segments;
    call.offsets = offsets.data();
    call.in[0] = {in.last(bytes), strides}, call.out = {y, strides};
    const Status status = sumexp::segments(call);
    CHECK(status.ok(), "%s", status.message);
    for (std::int64_t s = 0; s < segments; ++s)
      for (std::int64_t f = 0; f < features; ++f) {
        const std::int64_t first = offsets[static_cast<std::size_t>(s)], n = lengths[static_cast<std::size_t>(s)];
        std::vector<T> alone(static_cast<std::size_t>(n)), made(row ? 1 : static_cast<std::size_t>(n));
        for (std::int64_t i = 0; i < n; ++i)
          alone[static_cast<std::size_t>(i)] = x[static_cast<std::size_t>((first + i) * features + f)];
        for (std::size_t i = 0; i < made.size(); ++i)
          made[i] = row ? y[s * features + f] : y[(first + static_cast<std::int64_t>(i)) * features + f];
        const std::vector<T> expected = plain(op, alone.data(), n);
        CHECK(check::equal_bytes(made.data(), expected.data(), made.size() * sizeof(T)), "op %d: segment %lld of %lld elements",
              static_cast<int>(op), static_cast<long long>(s), static_cast<long long>(n));
      }
  }
}

template <class T>
void all() {
  for (const std::int64_t n : {1, 5, 16, 33, 300, 2048, 5000})
    for (const std::int64_t length : {std::int64_t{0}, std::int64_t{1}, n / 3, n - 1, n})
      for (const bool sink : {false, true})
        for (const bool mask : {false, true}) padding<T>(n, length, sink, mask);
  std::vector<std::int64_t> lengths;
  check::Random random(3);
  for (int i = 0; i < 100; ++i) lengths.push_back(random.below(i % 10 == 0 ? 200 : 40));
  for (const std::int64_t features : {1, 3, 16}) {
    segments_of<T>(lengths, features);
    segments_of<T>({}, features);
    segments_of<T>({0, 0}, features);
    segments_of<T>({600, 1, 2049, 0, 513}, features);
  }
}

// Gradients of bias and sink that no element adds to are zeros, as far as they have numbers.
void sums_of_nothing() {
  struct Case {
    std::int64_t shape[4], bias[4], sink[4];  // shapes
    int ndim;
  };
  constexpr Case kCases[] = {
      {{0, 5}, {1, 5}, {1, 1}, 2},
      {{17, 0}, {17, 1}, {17, 1}, 2},
      {{17, 0}, {1, 1}, {1, 1}, 2},
      {{0, 33, 5}, {1, 33, 5}, {1, 33, 1}, 3},
      {{0, 33, 5}, {0, 33, 1}, {1, 1, 1}, 3},
      {{3, 1, 0, 9}, {3, 1, 1, 9}, {3, 1, 1, 1}, 4},
      {{3, 1, 0, 9}, {1, 1, 0, 9}, {3, 1, 1, 1}, 4},
  };
  for (const Case& c : kCases)
    for (const Op op : kForward)
      for (const bool placed : {false, true}) {  // arrays without elements may have no address
        float nothing[17] = {}, bias[165] = {}, sink[33] = {}, dbias[166], dsink[34];
        std::fill(dbias, dbias + 166, 7.0f), std::fill(dsink, dsink + 34, 7.0f);
        std::int64_t strides[4], of_g[4], of_bias[4], of_sink[4], count = 1, sinks = 1, step = 4, of_row = 4;
        for (int d = c.ndim - 1; d >= 0; --d) {
          strides[d] = step, step *= c.shape[d];
          of_g[d] = op != Op::logsumexp ? strides[d] : d == c.ndim - 1 ? 0 : of_row;
          of_row *= d == c.ndim - 1 ? 1 : c.shape[d];
          of_bias[d] = c.bias[d] == 1 ? 0 : 4 * count, count *= c.bias[d];
          of_sink[d] = c.sink[d] == 1 ? 0 : 4 * sinks, sinks *= c.sink[d];
        }
        const bool no_rows = c.shape[0] == 0 || c.ndim > 2;
        MaskedCall call;
        call.op = op, call.ndim = c.ndim, call.shape = c.shape;
        call.x = call.out = {placed ? nothing : nullptr, strides};
        call.g = {placed || !no_rows ? nothing : nullptr, of_g};
        call.bias = {bias, of_bias}, call.sink = {sink, of_sink}, call.dbias = {dbias, of_bias}, call.dsink = {dsink, of_sink};
        const Status status = masked(call);
        CHECK(status.ok(), "%s", status.message);
        const int number = static_cast<int>(&c - kCases);
        CHECK(std::all_of(dbias, dbias + count, [](float v) { return v == 0; }) && dbias[count] == 7, "dbias of case %d",
              number);
        CHECK(std::all_of(dsink, dsink + sinks, [](float v) { return v == 0; }) && dsink[sinks] == 7, "dsink of case %d",
              number);
      }
}

// The message names the argument, what was given and what is accepted; nothing is written.
void refusals() {
  float x[6] = {}, y[6] = {7, 7, 7, 7, 7, 7};
  const std::int64_t shape[] = {2, 3}, strides[] = {12, 4}, steps[] = {8, 0};
  std::int64_t lengths[] = {3, 4}, offsets[] = {0, 2, 1, 2}, ids[] = {0, 1, 0}, made[3];
  MaskedCall good;
  good.ndim = 2, good.shape = shape, good.x = {x, strides}, good.out = {y, strides};
  const auto refused = [&](const Status& status, const char* text) {
    CHECK(!status.ok() && std::string(status.message).find(text) != std::string::npos, "'%s' is not in '%s'", text,
          status.message);
    CHECK(y[0] == 7 && y[5] == 7, "something was written: %s", text);
  };
  const auto with = [&](auto change) {
    MaskedCall call = good;
    change(call);
    return masked(call);
  };
  refused(with([&](MaskedCall& c) { c.lengths = {lengths, steps}; }), "lengths has 4 for row 1, accepted: 0 to 3");
  refused(with([](MaskedCall& c) { c.op = Op::softmax_vjp; }), "op is code 3, accepted: softmax, log_softmax and logsumexp");
  refused(with([](MaskedCall& c) { c.axis = 2; }), "axis is 2 for ndim = 2");
  refused(with([](MaskedCall& c) { c.temperature = 0; }), "temperature is 0");
  refused(with([](MaskedCall& c) { c.softcap = -1; }), "softcap is -1");
  refused(with([](MaskedCall& c) { c.dtype = static_cast<DType>(9); }), "dtype is code 9");
  refused(with([](MaskedCall& c) { c.out.data = nullptr; }), "out is missing");
  refused(with([](MaskedCall& c) { c.x.data = nullptr; }), "x is missing");
  const std::int64_t no_elements[] = {2, 0};
  refused(with([&](MaskedCall& c) { c.op = Op::logsumexp, c.shape = no_elements, c.out.data = nullptr; }), "out is missing");
  refused(with([&](MaskedCall& c) { c.op = Op::logsumexp, c.shape = no_elements, c.g = {nullptr, steps}; }), "g is missing");
  refused(with([&](MaskedCall& c) { c.dbias = {x, strides}; }), "dbias is given without g");
  refused(with([&](MaskedCall& c) { c.dsink = {x, steps}; }), "dsink is given without g");
  refused(with([&](MaskedCall& c) { c.g = {nullptr, strides}; }), "g is missing");
  const std::int64_t shape3[] = {2, 3, 1}, strides3[] = {12, 4, 4}, steps3[] = {8, 0, 0};  // lengths of batches
  std::int64_t bad[] = {1, 2};
  refused(with([&](MaskedCall& c) {
            c.ndim = 3, c.shape = shape3, c.x.strides = c.out.strides = strides3, c.lengths = {bad, steps3};
          }),
          "lengths has 2 for row 3, accepted: 0 to 1");
  SegmentsCall call;
  call.elements = 2, call.segments = 3, call.offsets = offsets, call.in[0] = {x, strides}, call.out = {y, strides};
  refused(segments(call), "offsets has 1 at 2 after 2, accepted: offsets that do not fall");
  call.op = Op::weighted_logsumexp;
  refused(segments(call), "op is code 10");
  refused(segment_offsets(ids, 3, 2, made), "ids has 0 at 2 after 1, accepted: ids that do not fall (sort them)");
  CHECK(segment_offsets(ids, 2, 2, made).ok() && made[0] == 0 && made[1] == 1 && made[2] == 2, "offsets of ids");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !set_isa(argv[1]).ok()) return check::kSkipped;
  all<float>();
  all<double>();
  sums_of_nothing();
  refusals();
  return check::finish();
}
