// One number for every operation and dtype: a hash over the results of some hundred rows. digests.txt holds the
// numbers that every instruction set, on every machine, has to reproduce.
//
//   test_digest digests.txt [ISA]      compares
//   test_digest --write digests.txt    writes the file: after a change of the definition, and only then
//   test_digest --detail [ISA]         prints one line a row; diff the output of two machines to find the row
#include <algorithm>

#include "cases.hpp"

using namespace cases;

namespace {

// A multiply and a shift for every 8 bytes (xxHash's finaliser and primes).
class Hash {
 public:
  void add(const unsigned char* bytes, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) {
      std::uint64_t word = 0;
      for (std::size_t j = 0; j < 8 && i + j < count; ++j) word |= std::uint64_t(bytes[i + j]) << (8 * j);
      value_ = (value_ ^ word) * 0x9e3779b185ebca87u;
      value_ ^= value_ >> 29;
    }
    value_ = (value_ ^ count) * 0xc2b2ae3d27d4eb4fu;
    value_ ^= value_ >> 32;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0;
};

struct Row {
  std::int64_t n;
  Kind kind;
};

// Every n up to 130, steps to 2,100; all kinds at the edges of groups, lane rows, chunks and 2 to 16 chunks; and
// a few long rows: 65,537 f32 and 300,001 f64 are 33 and 586 chunks.
std::vector<Row> rows() {
  std::vector<Row> list;
  int turn = 0;
  const auto add = [&](std::int64_t n, int kinds) {
    for (int k = 0; k < kinds; ++k) list.push_back({n, static_cast<Kind>(turn++ % kKinds)});
  };
  for (std::int64_t n = 0; n <= 130; ++n) add(n, n <= 64 ? 4 : 2);
  for (std::int64_t n = 131; n <= 2100; n += 37) add(n, 2);
  for (const std::int64_t edge : {1, 8, 16, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 8192})
    for (std::int64_t n = edge - 1; n <= edge + 1; ++n) add(n, kKinds);
  for (const Kind kind : {kNormal, kSteps, kCrossing, kMasked}) list.push_back({10007, kind});
  for (const Kind kind : {kScale4, kCrossing}) list.push_back({65537, kind});
  for (const Kind kind : {kNormal, kSteps}) list.push_back({300001, kind});
  return list;
}

std::uint64_t digest(const OpCase& op, const DTypeCase& type, bool detail) {
  Hash all;
  int index = 0;
  for (const Row& row : rows()) {
    if (row.n == 0 && op.has_index()) {
      ++index;
      continue;
    }
    Random random(static_cast<std::uint64_t>(row.n) * 1000 + row.kind);
    const std::int64_t batch = row.n <= 64 ? 3 : 1;
    const void* in[3];
    Bytes inputs[3];
    for (int k = 0; k < op.inputs; ++k) {
      inputs[k] = make_input(random, op, k, row.kind, type, batch, row.n);
      in[k] = inputs[k].data();
    }
    const std::size_t results = static_cast<std::size_t>(batch * (op.row_output ? 1 : row.n) * type.size);
    Bytes out(results + 1), extra(static_cast<std::size_t>(batch * type.size)),
        mask(static_cast<std::size_t>(batch * row.n) + 1);
    Contiguous c(op, type, batch, row.n, in, out.data(), op.extra ? extra.data() : nullptr);
    if (op.temperature && index % 5 == 0) c.call.temperature = 0.7;
    if (op.where && index % 7 == 0) {
      for (auto& m : mask) m = random.below(4) != 0;
      c.call.where = {mask.data(), c.mask};
    }
    const Status status = run(c.call);
    CHECK(status.ok(), "%s %s n=%lld: %s", op.name, type.name, static_cast<long long>(row.n), status.message);
    Hash one;
    one.add(out.data(), results);
    if (op.extra) one.add(extra.data(), extra.size());
    const std::uint64_t value = one.value();
    all.add(reinterpret_cast<const unsigned char*>(&value), sizeof(value));
    if (detail)
      std::printf("%s %s row %d n=%lld kind=%d %016llx\n", op.name, type.name, index, static_cast<long long>(row.n), row.kind,
                  static_cast<unsigned long long>(value));
    ++index;
  }
  return all.value();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  const bool write = first == "--write", detail = first == "--detail";
  const char* path = write ? (argc > 2 ? argv[2] : nullptr) : detail ? "" : argc > 1 ? argv[1] : nullptr;
  if (!path) {
    std::printf("usage: test_digest digests.txt [ISA] | --write digests.txt | --detail [ISA]\n");
    return 2;
  }
  const char* isa = !write && argc > 2 ? argv[2] : std::getenv("SUMEXP_ISA");
  if (!choose_isa(isa)) return check::kSkipped;

  // Emulated, the portable kernels show with floats and doubles that they depend on no machine: 16 bits are read as floats.
  const bool few = !write && !detail && check::emulated() && isa && !std::strcmp(isa, "scalar");
  std::vector<std::string> lines;
  for (const OpCase& op : kOps)
    for (const DTypeCase& type : kDTypes) {
      if (few && type.size == 2) continue;
      char line[80];
      std::snprintf(line, sizeof(line), "%s %s %016llx", op.name, type.name,
                    static_cast<unsigned long long>(digest(op, type, detail)));
      lines.push_back(line);
      if (detail) std::printf("%s\n", line);
    }
  if (detail) return 0;

  std::FILE* file = std::fopen(path, write ? "w" : "r");
  if (!file) {
    std::printf("%s: cannot be opened\n", path);
    return 2;
  }
  if (write) {
    std::fprintf(file, "# Written by test_digest --write: operation, dtype, hash of its results. The same on every machine.\n");
    for (const std::string& line : lines) std::fprintf(file, "%s\n", line.c_str());
  } else {
    std::vector<std::string> wanted;
    for (char line[160]; std::fgets(line, sizeof(line), file);)
      if (line[0] != '#') wanted.push_back(std::string(line, std::strcspn(line, "\n")));
    const std::size_t all = lines.size() * (few ? 2 : 1);
    CHECK(wanted.size() == all, "%s: %zu lines, expected %zu", path, wanted.size(), all);
    for (const std::string& line : lines)
      CHECK(std::find(wanted.begin(), wanted.end(), line) != wanted.end(), "%s: got %s", isa ? isa : sumexp::isa(),
            line.c_str());
  }
  std::fclose(file);
  return check::finish();
}
