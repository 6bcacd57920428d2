// Rows that come in pieces: the bytes of one call, whatever the pieces, with each between pages that may not be touched; states
// are refused that are none.   usage: test_stream [ISA]
#include <sumexp/stream.hpp>

#include <cmath>
#include <memory>
#include <string>

#include "elements.hpp"
#include "guarded.hpp"

using guarded::Bytes;
using guarded::Matrix;
using sumexp::DType;
using sumexp::StreamCall;
using sumexp::SumState;
using sumexp::View;

namespace {

constexpr std::int64_t kRows = 3;

// One call on whole rows: op with its inputs x (and b), of the rows' bytes.
Bytes one_call(sumexp::Op op, DType dtype, std::int64_t size, std::int64_t n, const Bytes& x, const Bytes& b) {
  const bool full = op != sumexp::Op::logsumexp && op != sumexp::Op::weighted_logsumexp;
  Bytes out(static_cast<std::size_t>(kRows * (full ? n : 1) * size)), sign(out.size());
  const std::int64_t shape[2] = {kRows, n}, strides[2] = {n * size, size}, row[2] = {size, 0};
  sumexp::Call call;
  call.op = op, call.dtype = dtype, call.ndim = 2, call.shape = shape, call.axes = 2;
  call.in[0] = {const_cast<unsigned char*>(x.data()), strides};
  if (op == sumexp::Op::weighted_logsumexp) {
    call.in[1] = {const_cast<unsigned char*>(b.data()), strides};
    call.extra = {sign.data(), row};
  }
  call.out = {out.data(), full ? strides : row};
  const sumexp::Status status = sumexp::run(call);
  CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
  return out;
}

struct Piece {
  std::unique_ptr<Matrix> x, b, out;
  StreamCall call;
  std::int64_t shape[2];

  Piece(DType dtype, std::int64_t size, std::int64_t n, const Bytes& xs, const Bytes& bs, std::int64_t first,
        std::int64_t count, bool by_columns, bool at_end, bool weighted) {
    const auto part = [&](const Bytes& all) {
      auto made = std::make_unique<Matrix>(kRows, count, size, by_columns, at_end);
      for (std::int64_t r = 0; r < kRows; ++r)
        for (std::int64_t i = 0; i < count; ++i)
          std::memcpy(made->at(r, i), all.data() + (r * n + first + i) * size, static_cast<std::size_t>(size));
      return made;
    };
    x = part(xs), b = part(bs), out = std::make_unique<Matrix>(kRows, count, size, by_columns, at_end);
    shape[0] = kRows, shape[1] = count;
    call.dtype = dtype, call.ndim = 2, call.shape = shape, call.first = first;
    call.x = x->view();
    call.sums = sumexp::kSumApart | sumexp::kSumAll;
    if (weighted) call.b = b->view(), call.sums = sumexp::kSumWeighted;
  }
};

void test_pieces(check::Random& random, int code, std::int64_t n, bool by_columns, bool at_end) {
  const DType dtype = static_cast<DType>(code);
  const std::int64_t size = code < 2 ? 2 : code == 2 ? 4 : 8, chunk = code == 3 ? 512 : 2048;
  Bytes x(static_cast<std::size_t>(kRows * n * size)), b(x.size());
  for (std::int64_t i = 0; i < kRows * n; ++i) {
    elements::put(dtype, x.data() + i * size, random.below(50) ? random.normal() * 10.0 : -HUGE_VAL);
    elements::put(dtype, b.data() + i * size, random.normal());
  }
  std::snprintf(guarded::g_doing, sizeof(guarded::g_doing), "dtype %d, rows of %lld, %s", code, static_cast<long long>(n),
                by_columns ? "side by side" : "one after the other");
  for (const bool weighted : {false, true}) {
    std::vector<SumState> states;
    std::vector<std::unique_ptr<Piece>> pieces;
    for (std::int64_t first = 0; first < n;) {
      std::int64_t count = (1 + random.below(3)) * chunk;
      if (count > n - first) count = n - first;
      pieces.push_back(std::make_unique<Piece>(dtype, size, n, x, b, first, count, by_columns, at_end, weighted));
      std::vector<SumState> some(static_cast<std::size_t>(sumexp::count_states(dtype, first, count) * kRows));
      const sumexp::Status status = reduce_states(pieces.back()->call, some.data());
      CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
      states.insert(states.end(), some.begin(), some.end());
      first += count;
    }
    std::int64_t count = 0;
    sumexp::Status status = join_states(states.data(), static_cast<std::int64_t>(states.size()) / kRows, kRows, &count);
    CHECK(status.ok() && count == sumexp::count_states(dtype, 0, n), "%s: %lld states joined", guarded::g_doing,
          static_cast<long long>(count));
    Bytes out(static_cast<std::size_t>(kRows * size)), sign(out.size());
    status = finish_states(states.data(), count, kRows, dtype, out.data(), weighted ? sign.data() : nullptr);
    CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
    const auto op = weighted ? sumexp::Op::weighted_logsumexp : sumexp::Op::logsumexp;
    CHECK(out == one_call(op, dtype, size, n, x, b), "%s: other bytes than of one call", guarded::g_doing);
    for (const auto map : {sumexp::Op::softmax, sumexp::Op::log_softmax}) {
      if (weighted) continue;
      const Bytes want = one_call(map, dtype, size, n, x, b);
      for (const auto& piece : pieces) {
        status = map_states(map, states.data(), count, piece->call, piece->out->view());
        CHECK(status.ok() && piece->out->clean_around() && piece->x->clean_around(), "%s: %s", guarded::g_doing,
              status.message);
        bool same = true;
        for (std::int64_t r = 0; r < kRows; ++r)
          for (std::int64_t i = 0; i < piece->shape[1]; ++i)
            same &= check::equal_bytes(piece->out->at(r, i), want.data() + (r * n + piece->call.first + i) * size,
                                       static_cast<std::size_t>(size));
        CHECK(same, "%s: op %d of a piece", guarded::g_doing, static_cast<int>(map));
      }
    }
  }
}

void test_counts() {
  CHECK(sumexp::count_states(DType::f32, 0, 0) == 0 && sumexp::count_states(DType::f32, 5, -1) == 0, "of nothing");
  CHECK(sumexp::count_states(DType::f32, 0, 2048 * 1024) == 1, "of a whole tree");
  CHECK(sumexp::count_states(DType::f32, 2048, 2048 * 1023) == 10, "of all but its first chunk");
  CHECK(sumexp::count_states(DType::f64, 100, 200) == 1, "within a chunk");
  CHECK(sumexp::count_states(DType::f64, 1, (std::int64_t{1} << 61)) <= 128, "of many");
}

void test_bad_states() {
  const std::int64_t n = 6, stride = 4;
  float x[6] = {1, 2, 3, 4, 5, 6}, out = -7;
  StreamCall call;
  call.ndim = 1, call.shape = &n, call.x = {x, &stride};
  SumState states[2];
  CHECK(reduce_states(call, states).ok(), "a call that is spoilt next");
  call.first = 6;
  CHECK(reduce_states(call, states + 1).ok(), "and another");
  const auto refuses = [&](const char* naming, auto spoil) {
    SumState bad[2] = {states[0], states[1]};
    spoil(bad);
    const sumexp::Status status = finish_states(bad, 2, 1, DType::f32, &out, nullptr);
    CHECK(!status.ok() && std::strstr(status.message, naming) && out == -7, "'%s' does not name '%s'", status.message, naming);
    std::int64_t joined = -7;
    CHECK(!join_states(bad, 2, 1, &joined).ok() && joined == -7, "%s: joined", naming);
  };
  refuses("dtype", [](SumState* s) { s[0].dtype = 9; });
  refuses("sums", [](SumState* s) { s[1].sums = 0; });
  refuses("dtypes", [](SumState* s) { s[1].dtype = 3; });
  refuses("overlap", [](SumState* s) { s[1].first = 5; });
  refuses("elements", [](SumState* s) { s[1].count = 0; });
  refuses("elements", [](SumState* s) { s[1].count = INT64_MAX; });
  call.sums = 5;
  CHECK(std::strstr(reduce_states(call, states).message, "sums"), "sums of a call");
  call.sums = 1, call.b = call.x;
  CHECK(std::strstr(reduce_states(call, states).message, "b is given"), "weights of a call without them");
  CHECK(std::strstr(map_states(sumexp::Op::softmax, states, 1, call, {&out, &stride}).message, "b is given") && out == -7,
        "weights of a map");
  const std::int64_t large[3] = {std::int64_t{1} << 40, std::int64_t{1} << 40, 4}, strides[3] = {};
  StreamCall many;
  many.ndim = 3, many.shape = large, many.x = {x, strides};
  CHECK(std::strstr(reduce_states(many, states).message, "63 bits"), "more rows than 63 bits can count");
  call.b = {}, call.x.strides = nullptr;
  CHECK(std::strstr(reduce_states(call, states).message, "strides"), "strides of a call");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !sumexp::set_isa(argv[1]).ok()) return check::kSkipped;
  guarded::catch_faults();
  test_counts();
  test_bad_states();
  check::Random random(6);
  for (int code = 0; code < 4; ++code)
    for (const std::int64_t n : {1, 17, 511, 2048, 2049, 6500, 20000}) {
      if (check::emulated() && n > 3000) continue;
      for (const bool by_columns : {false, true})
        for (const bool at_end : {false, true}) test_pieces(random, code, n, by_columns, at_end);
    }
  return check::finish();
}
