// The log domain between guard pages, and the same bytes on every instruction set: test_log_domain ISA.
#include <sumexp/log_domain.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace sumexp;

namespace {

int failures = 0;
void expect(bool ok, const char* what, int n) {
  if (ok) return;
  std::printf("failed: %s, n = %d\n", what, n);
  ++failures;
}

// n doubles that end where memory ends.
struct Guarded {
  char* base;
  std::size_t bytes;
  double* data;
  explicit Guarded(int n) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    bytes = (static_cast<std::size_t>(n) * 8 + page - 1) / page * page + 2 * page;
    base = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base, page, PROT_NONE);
    mprotect(base + bytes - page, page, PROT_NONE);
    data = reinterpret_cast<double*>(base + bytes - page) - n;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base, bytes); }
};

void fill(double* to, int n, unsigned seed) {
  for (int i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    to[i] = (static_cast<double>(seed >> 8) / (1 << 24) - 0.5) * (i % 97 == 5 ? 2000 : 8);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* const isa = argc > 1 ? argv[1] : "portable";
  if (!set_isa(isa).ok()) return 77;
  for (int n : {1, 2, 7, 8, 9, 31, 33, 255, 256, 257, 600, 1025}) {
    Guarded in[4] = {Guarded(n), Guarded(n), Guarded(n), Guarded(n)}, out[2] = {Guarded(n), Guarded(n)};
    for (int k = 0; k < 4; ++k) fill(in[k].data, n, 7u + static_cast<unsigned>(k));
    const std::int64_t shape[1] = {n}, strides[1] = {8};
    std::vector<double> portable(static_cast<std::size_t>(n));
    // Runs on the portable kernels, then on those asked for: the same bytes.
    const auto same = [&](const char* what, auto run) {
      set_isa("portable");
      expect(run().ok(), what, n);
      std::memcpy(portable.data(), out[0].data, sizeof(double) * portable.size());
      set_isa(isa);
      expect(run().ok(), what, n);
      expect(std::memcmp(portable.data(), out[0].data, sizeof(double) * portable.size()) == 0, what, n);
    };
    const View views[4] = {{in[0].data, strides}, {in[1].data, strides}, {in[2].data, strides}, {in[3].data, strides}};
    const View results[2] = {{out[0].data, strides}, {out[1].data, strides}};
    for (int op = 0; op < kLogDomainOps; ++op)
      same("elementwise", [&] { return elementwise(static_cast<LogDomain>(op), DType::f64, 1, shape, views, results); });
    for (int options = 0; options < 4; ++options) {
      Running call;
      call.dtype = DType::f64, call.ndim = 1, call.shape = shape;
      call.reverse = options & 1, call.exclusive = options & 2;
      same("logcumsumexp", [&] { return logcumsumexp(call, views[0], results[0]); });
      same("logcumsumexp_vjp", [&] { return logcumsumexp_vjp(call, views[1], views[0], results[0]); });
      same("logcumsumexp_jvp", [&] { return logcumsumexp_jvp(call, views[1], views[0], results[0]); });
    }
    WeightedRows rows;
    rows.dtype = DType::f64, rows.shape = shape, rows.x = views[0], rows.b = views[1];
    double one = 1.0, value = 0.0;
    const View g{&one, nullptr};
    same("weighted_logsumexp_vjp", [&] { return weighted_logsumexp_vjp(rows, g, results[0], results[1]); });
    expect(logmeanexp(rows, View{}, View{&value, nullptr}, View{}).ok() && value == value, "logmeanexp", n);
    expect(!logmeanexp(rows, View{}, View{}, View{}).ok(), "logmeanexp without a result", n);
    expect(!elementwise(static_cast<LogDomain>(99), DType::f64, 1, shape, views, results).ok(), "no such op", n);
  }
  if (!failures) std::printf("log domain: %s agrees with portable, between guard pages\n", isa);
  return failures != 0;
}
