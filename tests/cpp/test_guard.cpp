// Rows placed right before and right after pages that may not be touched: a kernel that reads or writes one
// element too far dies here, and says where. Results must also be those of an ordinary call, and what lies
// around them unharmed.   usage: test_guard [ISA]
#include <sys/mman.h>
#include <unistd.h>
#include <csignal>

#include "cases.hpp"

using namespace cases;

namespace {

// What is being tried, for the signal handler.
char g_doing[200];

void on_fault(int) {
  const char head[] = "FAILED: touched memory outside of its arrays: ";
  if (write(1, head, sizeof(head) - 1) < 0 || write(1, g_doing, strlen(g_doing)) < 0 || write(1, "\n", 1) < 0) _exit(2);
  _exit(1);
}

// Memory with a guard page on either side.
class Arena {
 public:
  explicit Arena(std::size_t bytes) {
    page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page_ - 1) / page_ * page_;
    void* base = mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    begin_ = static_cast<unsigned char*>(base) + page_;
    if (mprotect(begin_, size_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Arena() { munmap(begin_ - page_, size_ + 2 * page_); }
  Arena(const Arena&) = delete;

  // `bytes` bytes, `shift` bytes away from the lower (shift >= 0) or the upper guard page (~shift).
  unsigned char* place(std::size_t bytes, int shift) {
    return shift >= 0 ? begin_ + shift : begin_ + size_ - bytes - static_cast<std::size_t>(~shift);
  }
  void paint() { std::memset(begin_, 0x5a, size_); }
  // Nothing but [at, at + bytes) has changed since paint.
  bool clean_around(const unsigned char* at, std::size_t bytes) const {
    return painted(begin_, at) && painted(at + bytes, begin_ + size_);
  }

 private:
  static bool painted(const unsigned char* from, const unsigned char* to) {  // the first byte is, and each is the one before it
    return from == to || (*from == 0x5a && std::memcmp(from, from + 1, static_cast<std::size_t>(to - from) - 1) == 0);
  }

  unsigned char* begin_;
  std::size_t page_, size_;
};

struct Arenas {
  Arena in[3], where, out, extra;
  explicit Arenas(std::size_t bytes) : in{Arena(bytes), Arena(bytes), Arena(bytes)}, where(bytes), out(bytes), extra(bytes) {}
};

struct Inputs {
  Bytes in[3], where, out, extra;  // out, extra: the results of an ordinary call
};

Inputs make(const OpCase& op, const DTypeCase& type, std::int64_t rows, std::int64_t n, bool masked, double temperature) {
  Inputs inputs;
  Random random(static_cast<std::uint64_t>(n) * 64 + static_cast<std::uint64_t>(rows));
  const void* in[3];
  for (int k = 0; k < op.inputs; ++k) {
    inputs.in[k] = make_input(random, op, k, kScale4, type, rows, n);
    in[k] = inputs.in[k].data();
  }
  inputs.where.resize(static_cast<std::size_t>(rows * n) + 1);
  for (auto& m : inputs.where) m = random.below(4) != 0;
  inputs.out.resize(static_cast<std::size_t>(rows * (op.row_output ? 1 : n) * type.size));
  inputs.extra.resize(static_cast<std::size_t>(rows * type.size));
  Contiguous c(op, type, rows, n, in, inputs.out.data(), op.extra ? inputs.extra.data() : nullptr);
  if (masked) c.call.where = {inputs.where.data(), c.mask};
  c.call.temperature = temperature;
  const Status status = run(c.call);
  CHECK(status.ok(), "%s: %s", op.name, status.message);
  return inputs;
}

// One row, every operand `shift` bytes from a guard page.
void one_row(Arenas& arenas, const OpCase& op, const DTypeCase& type, std::int64_t n, int shift, bool in_place, bool masked,
             double temperature) {
  std::snprintf(g_doing, sizeof(g_doing), "%s %s n=%lld, %d bytes %s a guard page%s%s", op.name, type.name,
                static_cast<long long>(n), shift < 0 ? ~shift : shift, shift < 0 ? "before" : "after",
                in_place ? ", in place" : "", masked ? ", masked" : "");
  const Inputs inputs = make(op, type, 1, n, masked, temperature);
  const void* in[3];
  unsigned char* first = nullptr;
  for (int k = 0; k < op.inputs; ++k) {
    const std::size_t bytes = inputs.in[k].size() - 1;
    unsigned char* at = arenas.in[k].place(bytes, shift);
    if (k == 0) arenas.in[0].paint(), first = at;
    check::copy(at, inputs.in[k].data(), bytes);
    in[k] = at;
  }
  unsigned char* where = arenas.where.place(static_cast<std::size_t>(n), shift);
  check::copy(where, inputs.where.data(), static_cast<std::size_t>(n));
  const std::size_t bytes = inputs.out.size();
  arenas.out.paint();
  unsigned char* out = in_place ? first : arenas.out.place(bytes, shift);
  unsigned char* extra = arenas.extra.place(inputs.extra.size(), shift);
  Contiguous c(op, type, 1, n, in, out, op.extra ? extra : nullptr);
  if (masked) c.call.where = {where, c.mask};
  c.call.temperature = temperature;
  const Status status = run(c.call);
  CHECK(status.ok(), "%s: %s", g_doing, status.message);
  CHECK(check::equal_bytes(out, inputs.out.data(), bytes), "%s: other bytes than elsewhere", g_doing);
  CHECK((in_place ? arenas.in[0] : arenas.out).clean_around(out, bytes), "%s: wrote beside its result", g_doing);
  if (op.extra)
    CHECK(check::equal_bytes(extra, inputs.extra.data(), inputs.extra.size()), "%s: another second result", g_doing);
}

// The axis is not the last one: `columns` rows of n side by side, or elements `step` apart, or running backwards.
void one_layout(Arenas& arenas, const OpCase& op, const DTypeCase& type, std::int64_t columns, std::int64_t n,
                std::int64_t step, bool backwards, bool at_end) {
  std::snprintf(g_doing, sizeof(g_doing), "%s %s: %lld rows of %lld, elements %lld apart%s, %s a guard page", op.name,
                type.name, static_cast<long long>(columns), static_cast<long long>(n), static_cast<long long>(step),
                backwards ? ", backwards" : "", at_end ? "before" : "after");
  const Inputs inputs = make(op, type, columns, n, op.where, 1.0);
  // element i of row r lies at (i * step + r) items
  const auto span = [&](std::int64_t rows, std::int64_t length, std::int64_t size) {
    return static_cast<std::size_t>((rows && length ? (length - 1) * step + rows : 0) * size);
  };
  const auto offset = [&](std::int64_t r, std::int64_t i, std::int64_t length, std::int64_t size) {
    return ((backwards ? length - 1 - i : i) * step + r) * size;
  };
  Call call;
  std::int64_t shape[2] = {n, columns}, full[2], row[2], index[2] = {0, 8}, bytes_strides[2];
  full[0] = (backwards ? -step : step) * type.size, full[1] = type.size;
  row[0] = 0, row[1] = type.size;
  bytes_strides[0] = backwards ? -step : step, bytes_strides[1] = 1;
  call.op = op.op, call.dtype = type.dtype, call.ndim = 2, call.shape = shape, call.axes = 1;
  const auto lay = [&](Arena& arena, const Bytes& from, std::int64_t length, std::int64_t size) {
    const std::size_t bytes = length == 1 ? static_cast<std::size_t>(columns * size) : span(columns, length, size);
    unsigned char* at = arena.place(bytes, at_end ? ~0 : 0);
    for (std::int64_t r = 0; r < columns; ++r)
      for (std::int64_t i = 0; i < length; ++i)
        check::copy(at + offset(r, i, length, size), from.data() + (r * length + i) * size, static_cast<std::size_t>(size));
    return at;
  };
  const std::int64_t first = backwards && n ? (n - 1) * step : 0;  // where element 0 lies
  for (int k = 0; k < op.inputs; ++k) {
    const bool one = k == op.row_input;
    unsigned char* at = lay(arenas.in[k], inputs.in[k], one ? 1 : n, item_of(op, type, k));
    call.in[k] = {one ? at : at + first * type.size, op.is_index(k) ? index : one ? row : full};
  }
  if (op.where) call.where = {lay(arenas.where, inputs.where, n, 1) + first, bytes_strides};
  arenas.out.paint();
  const std::int64_t length = op.row_output ? 1 : n;
  const std::size_t bytes = op.row_output ? static_cast<std::size_t>(columns * type.size) : span(columns, n, type.size);
  unsigned char* out = arenas.out.place(bytes, at_end ? ~0 : 0);
  call.out = {op.row_output ? out : out + first * type.size, op.row_output ? row : full};
  unsigned char* extra = arenas.extra.place(inputs.extra.size(), at_end ? ~0 : 0);
  if (op.extra) call.extra = {extra, row};
  const Status status = run(call);
  CHECK(status.ok(), "%s: %s", g_doing, status.message);
  for (std::int64_t r = 0; r < columns; ++r)
    for (std::int64_t i = 0; i < length; ++i) {
      const bool equal =
          check::equal_bytes(out + (op.row_output ? r * type.size : offset(r, i, n, type.size)),
                             inputs.out.data() + (r * length + i) * type.size, static_cast<std::size_t>(type.size));
      CHECK(equal, "%s: row %lld, element %lld", g_doing, static_cast<long long>(r), static_cast<long long>(i));
      if (!equal) return;
    }
  if (op.extra)
    CHECK(check::equal_bytes(extra, inputs.extra.data(), inputs.extra.size()), "%s: another second result", g_doing);
  // gaps between rows belong to the caller
  std::int64_t painted = 0;
  for (std::size_t i = 0; i < bytes; ++i) painted += out[i] == 0x5a;
  if (!op.row_output && n > 1) CHECK(painted >= (n - 1) * (step - columns) * type.size, "%s: wrote between its rows", g_doing);
  CHECK(arenas.out.clean_around(out, bytes), "%s: wrote beside its result", g_doing);
}

// Results so large that they are written around the cache, at every alignment of the first row.
void large_results(const DTypeCase& type) {
  const std::int64_t n = type.size == 8 ? 517 : 2053, rows = (std::int64_t(25) << 20) / (n * type.size) + 1;
  const std::size_t bytes = static_cast<std::size_t>(rows * n * type.size);
  Arena in_arena(bytes + 64), other_arena(bytes + 64), out_arena(bytes + 64);
  for (const OpCase& op : kOps) {
    if (op.op != Op::softmax && op.op != Op::log_softmax && op.op != Op::softmax_vjp) continue;
    Random random(11);
    const Bytes pattern[2] = {make_input(random, op.role[0], kScale4, type, n + 63),
                              op.inputs > 1 ? make_input(random, op.role[1], kNormal, type, n + 63) : Bytes()};
    for (const int shift : {~0, 0, static_cast<int>(type.size), 24, ~40}) {
      std::snprintf(g_doing, sizeof(g_doing), "%s %s: %lld rows of %lld, shift %d", op.name, type.name,
                    static_cast<long long>(rows), static_cast<long long>(n), shift);
      unsigned char* in[2] = {in_arena.place(bytes, shift), other_arena.place(bytes, shift)};
      unsigned char* out = out_arena.place(bytes, shift);
      for (int k = 0; k < op.inputs; ++k)
        for (std::int64_t r = 0; r < rows; ++r)
          check::copy(in[k] + r * n * type.size, pattern[k].data() + r % 63 * type.size,
                      static_cast<std::size_t>(n * type.size));
      const void* const from[2] = {in[0], in[1]};
      const Status status = run(Contiguous(op, type, rows, n, from, out).call);
      CHECK(status.ok(), "%s: %s", g_doing, status.message);
      Bytes want[63];
      for (std::int64_t r = 0; r < rows; ++r) {
        Bytes& alone = want[r % 63];
        if (alone.empty()) {
          alone.resize(static_cast<std::size_t>(n * type.size));
          const void* const row[2] = {in[0] + r * n * type.size, in[1] + r * n * type.size};
          run(Contiguous(op, type, 1, n, row, alone.data()).call);
        }
        CHECK(check::equal_bytes(out + r * n * type.size, alone.data(), alone.size()), "%s: row %lld", g_doing,
              static_cast<long long>(r));
      }
    }
  }
}

std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> list;
  if (check::slow()) return {0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 257, 511, 513, 2047, 2048, 2049};
  for (std::int64_t n = 0; n <= 70; ++n) list.push_back(n);
  for (const std::int64_t edge : {128, 256, 512, 1024, 1536, 2048})
    for (const std::int64_t d : {-9, -1, 0, 1, 7}) list.push_back(edge + d);
  list.insert(list.end(), {100, 200, 333, 777, 1999, 2100, 4100, 5000});
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  if (!choose_isa(argc > 1 ? argv[1] : std::getenv("SUMEXP_ISA"))) return check::kSkipped;
  std::signal(SIGSEGV, on_fault);
  std::signal(SIGBUS, on_fault);
  sumexp::set_num_threads(1);

  const int step = check::slow() ? 7 : 1;
  Arenas arenas(64 << 10);
  for (const OpCase& op : kOps)
    for (const DTypeCase& type : kDTypes) {
      const bool can_replace = !op.row_output;
      for (const std::int64_t n : lengths()) {
        if (n == 0 && op.has_index()) continue;
        one_row(arenas, op, type, n, ~0, false, false, 1.0);
        one_row(arenas, op, type, n, 0, false, false, 1.0);
        if (can_replace) one_row(arenas, op, type, n, ~0, true, false, 1.0);
        if (can_replace) one_row(arenas, op, type, n, 0, true, false, 1.0);
        if (op.where) one_row(arenas, op, type, n, ~0, false, true, 1.0);
        if (op.temperature) one_row(arenas, op, type, n, ~0, false, false, 0.7);
      }
      // every alignment, also between elements
      for (int shift = 1; shift < 64; shift += step)
        for (const std::int64_t n : {1, 5, 16, 37, 130, 300}) {
          one_row(arenas, op, type, n, shift, can_replace && shift % 2, false, 1.0);
          one_row(arenas, op, type, n, ~shift, false, false, 1.0);
        }
      int turn = 0;
      for (const std::int64_t columns : {1, 2, 3, 4, 7, 8, 9, 16, 17, 33})
        for (const std::int64_t n : {1, 2, 3, 5, 8, 15, 16, 17, 33, 100}) {
          if (turn++ % step) continue;
          for (const std::int64_t gap : {0, 5})
            for (const bool at_end : {false, true})
              one_layout(arenas, op, type, columns, n, columns + gap, gap != 0 && at_end, at_end);
        }
    }
  // long rows side by side: of some chunks, and too long for a buffer
  Arenas large(8 << 20);
  for (const OpCase& op : kOps)
    for (const DTypeCase& type : kDTypes)
      for (const auto& [columns, n] : {std::pair<int, int>{17, 1100}, {33, 2100}, {40, 5000}, {18, 33'001}}) {
        if (check::slow() && n > 2100) continue;
        for (const bool at_end : {false, true})
          one_layout(large, op, type, columns, n, columns + (at_end ? 5 : 0), at_end, at_end);
      }
  for (const DTypeCase& type : kDTypes)
    if (type.size >= 4) large_results(type);
  return check::finish();
}
