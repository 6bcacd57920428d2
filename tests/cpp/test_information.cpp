// log_prob, entropy and kl_div: every array between pages that may not be touched, in several layouts; the bytes of an ordinary
// call of the portable kernels; and one number that all of these bytes have, on every machine.   usage: test_information [ISA]
#include <sumexp/information.hpp>

#include <sys/mman.h>
#include <unistd.h>
#include <csignal>

#include "cases.hpp"

using namespace cases;
using sumexp::LogitsRows;
using sumexp::View;

namespace {

using Bytes = std::vector<unsigned char>;

// Of all results, by the portable kernels, contiguous.
constexpr std::uint64_t kDigest = 0x954cac2ba5a78a49u;

char g_doing[160];
void on_fault(int) {
  if (write(1, "FAILED: touched memory outside of its arrays: ", 46) < 0 || write(1, g_doing, std::strlen(g_doing)) < 0)
    _exit(2);
  _exit(1);
}

// Memory between two pages that may not be touched.
class Guarded {
 public:
  Guarded() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* const base = mmap(nullptr, kBytes + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    first_ = static_cast<unsigned char*>(base) + page_;
    if (mprotect(first_, kBytes, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Guarded() { munmap(first_ - page_, kBytes + 2 * page_); }
  Guarded(const Guarded&) = delete;
  unsigned char* place(std::size_t bytes, bool at_end) {
    std::memset(first_, 0x5a, kBytes);
    return at_end ? first_ + kBytes - bytes : first_;
  }
  bool clean_but(const std::vector<unsigned char*>& elements, std::size_t size) {
    for (unsigned char* p : elements) std::memset(p, 0x5a, size);
    for (std::size_t i = 0; i < kBytes; ++i)
      if (first_[i] != 0x5a) return false;
    return true;
  }

 private:
  static constexpr std::size_t kBytes = 1 << 20;
  std::size_t page_;
  unsigned char* first_;
};

// Rows of `length` elements (logits, indices, or one a row) as a table; `columns`: rows lie side by side, with a gap.
struct Table {
  Bytes bytes;
  std::int64_t rows, length, size;
  Table(std::int64_t rows, std::int64_t length, std::int64_t size)
      : bytes(static_cast<std::size_t>(rows * length * size)), rows(rows), length(length), size(size) {}
  unsigned char* at(std::int64_t r, std::int64_t i) { return bytes.data() + (r * length + i) * size; }
};
struct Placed {
  unsigned char* data;
  std::int64_t strides[2];  // of rows, of elements
  std::int64_t rows, length, size;

  Placed(Guarded& arena, Table& table, bool columns, bool at_end, bool fill)
      : rows(table.rows), length(table.length), size(table.size) {
    const std::int64_t pitch = columns ? table.rows + 3 : table.length;
    strides[0] = columns ? size : pitch * size, strides[1] = columns ? pitch * size : size;
    const std::int64_t last = rows && length ? (rows - 1) * strides[0] + (length - 1) * strides[1] + size : 0;
    data = arena.place(static_cast<std::size_t>(last), at_end);
    if (fill)
      each([&](unsigned char* p, std::int64_t r, std::int64_t i) {
        std::memcpy(p, table.at(r, i), static_cast<std::size_t>(size));
      });
  }
  template <class Body>
  void each(Body body) const {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < length; ++i) body(data + r * strides[0] + i * strides[1], r, i);
  }
  View view() const { return {data, strides}; }
  std::vector<unsigned char*> elements() const {
    std::vector<unsigned char*> all;
    each([&](unsigned char* p, std::int64_t, std::int64_t) { all.push_back(p); });
    return all;
  }
};

constexpr std::int64_t kRows = 19, kPicks = 2;  // more than the rows of a vector
enum { kX, kY, kIndex, kOfPicks, kOfRow, kInputs };
enum { kLogProb, kEntropy, kGradient, kDivergence, kOfP, kOfQ, kOutputs };

struct Inputs {
  std::vector<Table> in;
  Inputs(const DTypeCase& type, std::int64_t n) {
    for (const std::int64_t length : {n, n, kPicks, kPicks, std::int64_t{1}})
      in.emplace_back(kRows, length, in.size() == kIndex ? 8 : type.size);
    Random random(static_cast<std::uint64_t>(n));
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (std::int64_t i = 0; i < n; ++i) {
        const double x = random.normal() * (r == 1 ? 12.0 : 1.0) - (n > 3000 && i < 2100 ? 250.0 : 0.0);
        put(type.dtype, in[kX].at(r, i), i == 3 && r == 0 ? -__builtin_inf() : x);
        put(type.dtype, in[kY].at(r, i), x + random.normal());
      }
      for (std::int64_t k = 0; k < kPicks; ++k) {
        const std::int64_t index = random.below(n);
        std::memcpy(in[kIndex].at(r, k), &index, 8);
        put(type.dtype, in[kOfPicks].at(r, k), random.normal());
      }
      put(type.dtype, in[kOfRow].at(r, 0), random.normal());
    }
  }
};

std::vector<Table> outputs(const DTypeCase& type, std::int64_t n) {
  std::vector<Table> out;
  for (const std::int64_t length : {kPicks, std::int64_t{1}, n, std::int64_t{1}, n, n})
    out.emplace_back(kRows, length, type.size);
  return out;
}

struct Arenas {
  Guarded in[kInputs], out[kOutputs];
};

// All functions, in arrays of this layout; what they write.
std::vector<Table> run(Arenas& arenas, const DTypeCase& type, std::int64_t n, Inputs& inputs, bool columns, bool at_end) {
  std::vector<Table> results = outputs(type, n);
  std::vector<Placed> in, out;
  for (int k = 0; k < kInputs; ++k)
    in.emplace_back(arenas.in[k], inputs.in[static_cast<std::size_t>(k)], columns, at_end, true);
  for (int k = 0; k < kOutputs; ++k)
    out.emplace_back(arenas.out[k], results[static_cast<std::size_t>(k)], columns, at_end, false);
  const std::int64_t shape[2] = {kRows, n};
  LogitsRows rows;
  rows.dtype = type.dtype, rows.ndim = 2, rows.shape = shape, rows.picks = kPicks;
  const auto check = [&](const Status& status) { CHECK(status.ok(), "%s: %s", g_doing, status.message); };
  rows.temperature = 0.75;
  check(log_prob_and_entropy(rows, in[kX].view(), in[kIndex].view(), out[kLogProb].view(), out[kEntropy].view()));
  check(log_prob_and_entropy_vjp(rows, in[kOfPicks].view(), in[kOfRow].view(), in[kX].view(), in[kIndex].view(),
                                 out[kGradient].view()));
  rows.temperature = 1.0;
  check(kl_div(rows, in[kX].view(), in[kY].view(), out[kDivergence].view()));
  check(kl_div_vjp(rows, in[kOfRow].view(), in[kX].view(), in[kY].view(), out[kOfP].view(), out[kOfQ].view()));
  for (int k = 0; k < kOutputs; ++k) {
    Table& table = results[static_cast<std::size_t>(k)];
    out[k].each([&](unsigned char* p, std::int64_t r, std::int64_t i) {
      std::memcpy(table.at(r, i), p, static_cast<std::size_t>(type.size));
    });
    CHECK(arenas.out[k].clean_but(out[k].elements(), static_cast<std::size_t>(type.size)), "%s: wrote beside result %d",
          g_doing, k);
  }
  return results;
}

void refusals() {
  float x[6] = {0, 1, 2, 3, 4, 5}, out[2] = {7, 7};
  std::int64_t index[2] = {0, 3};
  const std::int64_t shape[2] = {2, 3}, full[2] = {12, 4}, one[2] = {4, 0}, at[2] = {8, 0};
  LogitsRows rows;
  rows.ndim = 2, rows.shape = shape;
  const auto refused = [&](const Status& status, const char* message) {
    CHECK(!status.ok() && std::strstr(status.message, message), "got '%s', expected '%s'", status.message, message);
    CHECK(out[0] == 7 && out[1] == 7, "written in spite of '%s'", message);
  };
  const auto log_prob = [&] { return log_prob_and_entropy(rows, {x, full}, {index, at}, {out, one}, {}); };
  refused(log_prob(), "index is 3 for row 1, accepted: indices from 0 below 3");
  index[1] = 2;
  rows.temperature = 0;
  refused(log_prob(), "temperature is 0");
  rows.temperature = 1, rows.axis = 2;
  refused(log_prob(), "axis is 2");
  rows.axis = -1, rows.ndim = 0;
  refused(log_prob(), "ndim is 0");
  rows.ndim = 2;
  refused(log_prob_and_entropy(rows, {nullptr, full}, {index, at}, {out, one}, {}), "logits is missing");
  refused(log_prob_and_entropy(rows, {x, full}, {index, at}, {}, {out, one}), "log_prob is missing");
  refused(log_prob_and_entropy(rows, {x, full}, {index, nullptr}, {out, nullptr}, {}), "index has no strides");
  refused(log_prob_and_entropy(rows, {x, full}, {index, at}, {out, nullptr}, {}), "log_prob has no strides");
  refused(log_prob_and_entropy(rows, {x, full}, {}, {}, {out, nullptr}), "entropy has no strides");
  refused(log_prob_and_entropy_vjp(rows, {x, nullptr}, {}, {x, full}, {index, nullptr}, {out, full}), "index has no strides");
  refused(log_prob_and_entropy_vjp(rows, {}, {x, nullptr}, {x, full}, {}, {out, full}), "g_entropy has no strides");
  rows.temperature = 2;
  refused(kl_div(rows, {x, full}, {x, full}, {out, one}), "temperature is 2; kl_div takes none");
  rows.temperature = 1;
  CHECK(log_prob().ok() && out[0] < 0 && out[1] < 0, "refused what is accepted");
}

}  // namespace

int main(int argc, char** argv) {
  const char* const isa = argc > 1 ? argv[1] : std::getenv("SUMEXP_ISA");
  if (!choose_isa(isa)) return check::kSkipped;
  const std::string used = isa ? isa : sumexp::isa();
  std::signal(SIGSEGV, on_fault);
  std::signal(SIGBUS, on_fault);
  sumexp::set_num_threads(1);
  refusals();

  Arenas arenas;
  std::uint64_t digest = 0xcbf29ce484222325u;
  for (const DTypeCase& type : kDTypes)
    for (const std::int64_t n : {1, 2, 3, 5, 8, 9, 16, 17, 33, 65, 127, 257, 513, 2047, 2049, 5000}) {
      if (check::emulated() && n > 600) continue;
      Inputs inputs(type, n);
      std::snprintf(g_doing, sizeof(g_doing), "%s, rows of %lld", type.name, static_cast<long long>(n));
      sumexp::set_isa("portable");
      const std::vector<Table> want = run(arenas, type, n, inputs, false, true);
      sumexp::set_isa(used.c_str());
      for (const bool columns : {false, true})
        for (const bool at_end : {false, true}) {
          std::snprintf(g_doing, sizeof(g_doing), "%s, rows of %lld, %s, %s a guard page", type.name, static_cast<long long>(n),
                        columns ? "side by side" : "one after the other", at_end ? "before" : "after");
          const std::vector<Table> got = run(arenas, type, n, inputs, columns, at_end);
          for (std::size_t k = 0; k < kOutputs; ++k) CHECK(got[k].bytes == want[k].bytes, "%s: result %zu", g_doing, k);
        }
      for (const Table& table : want)
        for (const unsigned char byte : table.bytes) digest = (digest ^ byte) * 0x100000001b3u;
    }
  if (!check::emulated())
    CHECK(digest == kDigest, "the bytes of all results have the digest 0x%llx", static_cast<unsigned long long>(digest));
  return check::finish();
}
