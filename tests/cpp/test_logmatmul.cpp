// Products in the log domain and their derivatives: every array between pages that may not be touched, in both orders; the
// bytes of the portable kernels; and one number that all of these bytes have, on every machine.   usage: test_logmatmul [ISA]
#include <sumexp/log_matmul.hpp>

#include <cmath>
#include <memory>
#include <string>

#include "elements.hpp"
#include "guarded.hpp"

using guarded::Bytes;
using guarded::Matrix;
using sumexp::DType;
using sumexp::LogMatmul;
using sumexp::View;

namespace {

constexpr std::uint64_t kDigest = 0xce3977c787d2519bu;

struct Size {
  std::int64_t m, k, n;
};

Bytes values(check::Random& random, DType dtype, std::int64_t size, std::int64_t count, double scale, bool logits) {
  Bytes bytes(static_cast<std::size_t>(count * size));
  for (std::int64_t i = 0; i < count; ++i) {
    double x = random.normal() * scale;
    if (logits && random.below(16) == 0) x = -HUGE_VAL;
    if (logits && random.below(40) == 0) x -= 1500.0;
    elements::put(dtype, bytes.data() + i * size, x);
  }
  return bytes;
}

// All results: out, da, db, and the JVP.
std::vector<Bytes> run(DType dtype, std::int64_t size, Size s, const std::vector<Bytes>& in, bool by_columns, bool at_end) {
  const auto make = [&](std::int64_t rows, std::int64_t columns) {
    return std::make_unique<Matrix>(rows, columns, size, by_columns, at_end);
  };
  const auto a = make(s.m, s.k), b = make(s.k, s.n), g = make(s.m, s.n), ta = make(s.m, s.k), tb = make(s.k, s.n);
  a->fill(in[0]), b->fill(in[1]), g->fill(in[2]), ta->fill(in[3]), tb->fill(in[4]);
  const auto out = make(s.m, s.n), da = make(s.m, s.k), db = make(s.k, s.n), dout = make(s.m, s.n);
  LogMatmul call;
  call.dtype = dtype, call.m = s.m, call.k = s.k, call.n = s.n;
  call.a = a->view(), call.b = b->view(), call.out = out->view();
  sumexp::Status status = logmatmulexp(call);
  CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
  call.out = dout->view();
  status = logmatmulexp_jvp(call, ta->view(), tb->view());
  CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
  call.out = g->view();
  status = logmatmulexp_vjp(call, da->view(), db->view());
  CHECK(status.ok(), "%s: %s", guarded::g_doing, status.message);
  for (const auto* m : {&a, &b, &g, &ta, &tb, &out, &da, &db, &dout})
    CHECK((*m)->clean_around(), "%s: wrote beside its results", guarded::g_doing);
  CHECK(a->bytes() == in[0] && b->bytes() == in[1] && g->bytes() == in[2], "%s: an input has changed", guarded::g_doing);
  return {out->bytes(), da->bytes(), db->bytes(), dout->bytes()};
}

template <class Spoil>
void refuses(const char* naming, Spoil spoil) {
  float a[6] = {}, b[6] = {}, out[4] = {-7, -7, -7, -7};
  const std::int64_t a_strides[2] = {12, 4}, b_strides[2] = {8, 4};
  LogMatmul call;
  call.m = 2, call.k = 3, call.n = 2;
  call.a = {a, a_strides}, call.b = {b, b_strides}, call.out = {out, b_strides};
  spoil(call);
  const sumexp::Status status = logmatmulexp(call);
  CHECK(status.code == sumexp::Code::invalid_argument, "%s: code %d", naming, static_cast<int>(status.code));
  CHECK(std::strstr(status.message, naming), "message '%s' does not name '%s'", status.message, naming);
  for (const float v : out) CHECK(v == -7.0f, "%s: out was written", naming);
}

void test_bad_calls() {
  refuses("dtype", [](LogMatmul& c) { c.dtype = static_cast<DType>(4); });
  refuses("batch_dims", [](LogMatmul& c) { c.batch_dims = -1; });
  refuses("batch_shape", [](LogMatmul& c) { c.batch_dims = 1; });
  refuses("m is -1, accepted: ", [](LogMatmul& c) { c.m = -1; });
  refuses("shape", [](LogMatmul& c) { c.m = c.n = std::int64_t{1} << 40; });
  refuses("a is missing", [](LogMatmul& c) { c.a.data = nullptr; });
  refuses("b has no strides", [](LogMatmul& c) { c.b.strides = nullptr; });
  refuses("out", [](LogMatmul& c) { c.out.data = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  const char* isa = argc > 1 ? argv[1] : nullptr;
  if (isa && !sumexp::set_isa(isa).ok()) return check::kSkipped;
  const std::string used = isa ? isa : sumexp::isa();
  guarded::catch_faults();
  sumexp::set_num_threads(1);
  test_bad_calls();

  constexpr Size kSizes[] = {{1, 1, 1},   {1, 9, 1},   {2, 3, 17},  {5, 8, 16},    {13, 7, 33}, {12, 256, 8},
                             {7, 257, 5}, {129, 4, 3}, {3, 5, 130}, {30, 300, 31}, {14, 513, 2}};
  constexpr const char* kNames[] = {"f16", "bf16", "f32", "f64"};
  std::uint64_t digest = guarded::kHashStart;
  check::Random random(24);
  for (int code = 0; code < 4; ++code)
    for (const Size s : kSizes)
      for (const double scale : {3.0, 300.0}) {
        const DType dtype = static_cast<DType>(code);
        const std::int64_t size = code < 2 ? 2 : code == 2 ? 4 : 8;
        const auto of = [&](std::int64_t rows, std::int64_t columns, bool logits) {
          return values(random, dtype, size, rows * columns, logits ? scale : 1.0, logits);
        };
        const std::vector<Bytes> in = {of(s.m, s.k, true), of(s.k, s.n, true), of(s.m, s.n, false), of(s.m, s.k, false),
                                       of(s.k, s.n, false)};
        const auto say = [&](const char* more) {
          std::snprintf(guarded::g_doing, sizeof(guarded::g_doing), "%s %lld x %lld x %lld, scale %g%s", kNames[code],
                        static_cast<long long>(s.m), static_cast<long long>(s.k), static_cast<long long>(s.n), scale, more);
        };
        say(", portable");
        sumexp::set_isa("portable");
        const std::vector<Bytes> want = run(dtype, size, s, in, false, true);
        sumexp::set_isa(used.c_str());
        for (const bool by_columns : {false, true})
          for (const bool at_end : {false, true}) {
            say(by_columns ? ", by columns" : ", by rows");
            const std::vector<Bytes> got = run(dtype, size, s, in, by_columns, at_end);
            for (std::size_t r = 0; r < want.size(); ++r) CHECK(got[r] == want[r], "%s: result %zu", guarded::g_doing, r);
          }
        for (const Bytes& bytes : want) digest = guarded::hash(bytes, digest);
      }
  CHECK(digest == kDigest, "the bytes of all results have the digest 0x%llx", static_cast<unsigned long long>(digest));
  return check::finish();
}
