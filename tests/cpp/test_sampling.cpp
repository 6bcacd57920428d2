// Sampling: the published vectors of Philox, draws that are the same on every instruction set, rows between guard pages, and
// the binomial sampler's bounds.   usage: test_sampling [ISA]
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <sumexp/sampling.hpp>

#include "../../csrc/ops/binomial.hpp"
#include "check.hpp"

using namespace sumexp;

namespace {

void philox() {
  struct Vector {
    base::Bits128 counter;
    std::uint32_t key[2];
    base::Bits128 bits;
  };
  // philox4x32 10 of Random123's kat_vectors
  const Vector vectors[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       {0xffffffff, 0xffffffff},
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {0xa4093822, 0x299f31d0},
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const Vector& v : vectors) {
    const base::Bits128 got = base::philox4x32(v.counter, v.key[0], v.key[1]);
    for (int i = 0; i < 4; ++i) CHECK(got.word[i] == v.bits.word[i], "philox word %d: %08x", i, got.word[i]);
  }
  // The layout of the counter: the same numbers of the row's words.
  const base::RowRandom row = {0x299f31d0a4093822u, 0x85a308d3243f6a88u};
  const base::Bits128 got = row.at(static_cast<base::Purpose>(0), 0x734413198a2e, 0x370);
  CHECK(got.word[0] == vectors[2].bits.word[0], "the layout of the counter: %08x", got.word[0]);
}

void uniforms() {
  CHECK(base::open_uniform(0, 0) == 0x1p-129, "the least: %a", base::open_uniform(0, 0));
  CHECK(base::open_uniform(~0ull, ~0ull) == 1 - 0x1p-53, "the largest: %a", base::open_uniform(~0ull, ~0ull));
  CHECK(base::open_uniform(1ull << 63, 0) == 0.5, "one half: %a", base::open_uniform(1ull << 63, 0));
  check::Random random(1);
  for (int zeros = 0; zeros < 64; ++zeros) {
    const std::uint64_t high = zeros == 63 ? 1 : random.next() >> 1 >> zeros | 1ull << (63 - zeros), low = random.next();
    const double u = base::open_uniform(high, low);
    const long double exact = (static_cast<long double>(high) + static_cast<long double>(low) * 0x1p-64L) * 0x1p-64L;
    CHECK(std::fabs(static_cast<double>(u / exact - 1)) < 0x1p-51, "%d leading zeros: %a", zeros, u);
  }
  // decisions at the bounds of their bits
  const auto low = [](std::uint64_t bits) { return [bits] { return bits << 1; }; };
  CHECK(!base::happens(0, 0, low(0)), "never, with probability 0");
  CHECK(base::happens(0.5, (1ull << 63) - 2, low(0)) && !base::happens(0.5, 1ull << 63, low(0)), "one half");
  CHECK(base::happens(0x1p-126, 0, low(0)) && !base::happens(0x1p-126, 0, low(1)), "2^-126");
  CHECK(!base::happens(0x1p-127, 0, low(0)), "2^-127: never");
  CHECK(base::threshold_of(1e-30).probability() <= 1e-30 && base::threshold_of(1e-30).probability() > 1e-30 * (1 - 2e-8),
        "1e-30: %.17g", base::threshold_of(1e-30).probability());
}

// log f(k) / f(mode) against the product of f's ratios, in long double.
void binomial_mass() {
  for (double n : {20.0, 25.0, 1e3, 1e6, 1e13, 0x1p53})
    for (double p : {0.5, 0.45, 0.3, 1e-3, 1e-9, 1e-12}) {
      if (n * p < 10) continue;
      const SUMEXP_NS::BinomialMass f(n, p);
      const long double odds = static_cast<long double>(p) / (1 - static_cast<long double>(p));
      for (int side : {-1, 1}) {
        long double exact = 0;
        double k = f.mode();
        for (int i = 1; i <= 3000 && k + side >= 0 && k + side <= n; ++i) {
          const double lower = side > 0 ? k : k - 1;  // f(lower + 1) / f(lower)
          exact += side * std::log((static_cast<long double>(n) - lower) / (static_cast<long double>(lower) + 1) * odds);
          k += side;
          const long double error = std::fabs(f.log_ratio(k) - exact);
          if (!(error <= 2e-12L - 0x1p-49L * exact)) {
            CHECK(false, "n = %g, p = %g, k = mode %+d: off by %Lg of %Lg", n, p, side * i, error, exact);
            break;
          }
        }
        CHECK(true, "one side");
      }
    }
}

// Memory that ends at a page that may not be touched, and begins after one.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    size_ = (bytes + page_ - 1) / page_ * page_;
    char* const all = static_cast<char*>(mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED) std::abort();
    first_ = all + page_;
    if (mprotect(first_, size_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Guarded() { munmap(first_ - page_, size_ + 2 * page_); }
  Guarded(const Guarded&) = delete;
  char* at_end(std::size_t bytes) { return first_ + size_ - bytes; }
  char* at_start() { return first_; }

 private:
  std::size_t page_, size_;
  char* first_;
};

std::uint64_t hash(const void* data, std::size_t bytes, std::uint64_t h = 0xcbf29ce484222325u) {
  for (std::size_t i = 0; i < bytes; ++i) h = (h ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  return h;
}

// Everything of rows x n, with the row at the end and at the start of guarded memory: one hash, which no way changes.
std::uint64_t results(DType dtype, std::int64_t rows, std::int64_t n, bool at_end) {
  const std::size_t item = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  const std::size_t bytes = static_cast<std::size_t>(rows * n) * item, draws = 3;
  Guarded logits(bytes), out(static_cast<std::size_t>(rows) * draws * 8), counts(static_cast<std::size_t>(rows * n) * 8);
  char* const x = at_end ? logits.at_end(bytes) : logits.at_start();
  check::Random random(static_cast<std::uint64_t>(n));
  for (std::int64_t i = 0; i < rows * n; ++i) {
    const float value = static_cast<float>(random.normal() * 4);
    const double wide = value;
    const std::uint16_t half = static_cast<std::uint16_t>(check::bits_as<std::uint32_t>(value) >> 16);
    char* const to = x + static_cast<std::size_t>(i) * item;
    if (dtype == DType::f64) std::memcpy(to, &wide, 8);
    else if (dtype == DType::f32) std::memcpy(to, &value, 4);
    else std::memcpy(to, &half, 2);
  }
  const std::int64_t shape[2] = {rows, n}, strides[2] = {n * static_cast<std::int64_t>(item), static_cast<std::int64_t>(item)};
  const std::uint64_t seed = 17;
  const double temperature = 0.75, top_p = 0.9;
  const std::int64_t top_k = 50;
  std::vector<double> log_prob(static_cast<std::size_t>(rows) * draws), filtered(log_prob.size());
  SampleCall call;
  call.dtype = dtype, call.ndim = 2, call.shape = shape, call.axis = 1, call.logits = {x, strides};
  call.seed = {&seed, 0}, call.num_samples = static_cast<std::int64_t>(draws);
  call.out = reinterpret_cast<std::int64_t*>(out.at_end(static_cast<std::size_t>(rows) * draws * 8));
  call.log_prob = log_prob.data(), call.filtered_log_prob = filtered.data();
  std::uint64_t h = 0;
  const auto add = [&] {
    h = hash(call.out, static_cast<std::size_t>(rows) * draws * 8, h);
    h = hash(log_prob.data(), log_prob.size() * 8, hash(filtered.data(), filtered.size() * 8, h));
    for (std::size_t i = 0; i < static_cast<std::size_t>(rows) * draws; ++i)
      CHECK(call.out[i] >= 0 && call.out[i] < n, "index %lld of %lld", static_cast<long long>(call.out[i]),
            static_cast<long long>(n));
  };
  Status status = sample(call);
  CHECK(status.ok(), "sample: %s", status.message);
  add();
  call.temperature = {&temperature, 0}, call.top_k = {&top_k, 0}, call.top_p = {&top_p, 0};
  status = sample(call);
  CHECK(status.ok(), "sample with filters: %s", status.message);
  add();
  call.top_k = {}, call.top_p = {};
  if (n >= static_cast<std::int64_t>(draws)) {
    call.replacement = false;
    status = sample(call);
    CHECK(status.ok(), "sample without replacement: %s", status.message);
    add();
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t* const d = call.out + r * 3;
      CHECK(d[0] != d[1] && d[0] != d[2] && d[1] != d[2], "without replacement: a class twice");
    }
    call.replacement = true;
  }
  call.num_samples = 1000000007;
  call.out = nullptr, call.log_prob = call.filtered_log_prob = nullptr;
  const std::size_t count_bytes = static_cast<std::size_t>(rows * n) * 8;
  auto* const counted = reinterpret_cast<std::int64_t*>(counts.at_end(count_bytes));
  const std::int64_t count_strides[2] = {n * 8, 8};
  status = sample_counts(call, counted, count_strides);
  CHECK(status.ok(), "sample_counts: %s", status.message);
  for (std::int64_t r = 0; r < rows; ++r) {
    std::int64_t sum = 0;
    for (std::int64_t j = 0; j < n; ++j) sum += counted[r * n + j];
    CHECK(sum == call.num_samples, "counts of row %lld sum to %lld", static_cast<long long>(r), static_cast<long long>(sum));
  }
  h = hash(counted, count_bytes, h);
  std::vector<double> noise(static_cast<std::size_t>(n));
  status = gumbel_noise({&seed, 0}, {}, 1, n, noise.data());
  CHECK(status.ok(), "gumbel_noise: %s", status.message);
  return hash(noise.data(), noise.size() * 8, h);
}

// Of everything below, on every machine: a change of it is a change of the definition.
constexpr std::uint64_t kDigest = 0x2530d6100ff666efu;

void same_everywhere(const char* isa) {
  std::uint64_t all = 0;
  for (DType dtype : {DType::bf16, DType::f32, DType::f64})
    for (std::int64_t n : {1, 2, 15, 16, 17, 33, 511, 513, 2047, 2048, 2049, 6000}) {
      CHECK(set_isa("portable").ok(), "the portable kernels");
      const std::uint64_t expected = results(dtype, 3, n, true);
      CHECK(set_isa(isa).ok(), "%s", isa);
      CHECK(results(dtype, 3, n, true) == expected, "dtype %d, n = %lld", static_cast<int>(dtype), static_cast<long long>(n));
      CHECK(results(dtype, 3, n, false) == expected, "dtype %d, n = %lld, at the start of a page", static_cast<int>(dtype),
            static_cast<long long>(n));
      all = hash(&expected, 8, all);
    }
  CHECK(all == kDigest, "the digest is 0x%016llx", static_cast<unsigned long long>(all));
}

void refusals() {
  const float x[4] = {0, 1, 2, std::numeric_limits<float>::quiet_NaN()};
  const std::int64_t shape[2] = {2, 2}, strides[2] = {8, 4};
  const std::uint64_t seed = 1;
  std::int64_t out[2] = {-7, -7};
  SampleCall call;
  call.ndim = 2, call.shape = shape, call.axis = 1, call.logits = {const_cast<float*>(x), strides};
  call.out = out;
  const auto refused = [&](const char* part) {
    const Status status = sample(call);
    CHECK(status.code == Code::invalid_argument && std::strstr(status.message, part), "expected '%s', got '%s'", part,
          status.message);
  };
  refused("seed is missing");
  call.seed = {&seed, 0};
  refused("logits has a NaN in row 1,");
  call.axis = 2;
  refused("axis is 2");
  call.axis = -1;
  const double bad = -1;
  call.temperature = {&bad, 0};
  refused("temperature is -1");
  call.temperature = {}, call.top_p = {&bad, 0};
  refused("top_p is -1");
  call.top_p = {}, call.num_samples = -1;
  refused("num_samples is -1");
  call.num_samples = 1, call.out = nullptr;
  refused("out is missing");

  double logits[2] = {1, 2};
  FilterCut cut;
  const auto no_cut = [&](const void* from, std::int64_t n, FilterCut* to, const char* message) {
    const Status status = filter_cut(DType::f64, from, n, {}, to);
    CHECK(status.code == Code::invalid_argument && !std::strcmp(status.message, message), "expected '%s', got '%s'", message,
          status.message);
  };
  no_cut(logits, -1, &cut, "n is -1, accepted: 0 or more");
  no_cut(nullptr, 2, &cut, "logits is missing");
  no_cut(logits, 2, nullptr, "cut is missing");
}

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

void expect(const Status& status, const char* part, const char* what) {
  CHECK(*part ? status.code == Code::invalid_argument && std::strstr(status.message, part) : status.ok(),
        "%s: expected '%s', got '%s'", what, part, status.message);
}

// Two rows of four floats.
struct Pair {
  float x[2][4] = {{1, 2, 4, 3}, {0, -1, 0, 1}};
  const std::int64_t shape[2] = {2, 4}, strides[2] = {16, 4}, count_strides[2] = {32, 8};
  const std::uint64_t seed = 5;
  std::int64_t out[8] = {}, kept[2] = {77, 77}, cut_index[2] = {77, 77};
  double cut_logit[2] = {77, 77};
  SampleCall call(std::int64_t draws) {
    SampleCall call;
    call.ndim = 2, call.shape = shape, call.axis = 1, call.logits = {x, strides}, call.seed = {&seed, 0};
    call.num_samples = draws, call.out = out;
    return call;
  }
};

// What a call has for draws is nothing to counts, probabilities and pieces.
void other_results() {
  std::int64_t counts[2][8];
  double probabilities[2][8];
  const double cold = 1e-40;
  for (const PerRow<double> temperature : {PerRow<double>{}, PerRow<double>{&cold, 0}}) {
    Pair pair;
    for (int set = 0; set < 2; ++set) {
      SampleCall call = pair.call(1);
      call.temperature = temperature;
      if (!set) call.out = nullptr;
      expect(sample_counts(call, counts[set], pair.count_strides), "", "counts");
      expect(sample_probabilities(call, probabilities[set]), "", "probabilities");
    }
    CHECK(check::equal_bytes(counts[0], counts[1], sizeof counts[0]), "counts with out");
    CHECK(check::equal_bytes(probabilities[0], probabilities[1], sizeof probabilities[0]), "probabilities with out");
  }
  for (const float bad : {kNaN, -kInfinity}) {
    Pair pair;
    for (float& x : pair.x[1]) x = bad;
    const char* const message = bad != bad ? "logits has a NaN in row 1," : "logits has nothing to draw from in row 1,";
    const SampleCall call = pair.call(1);
    expect(sample_counts(call, counts[0], pair.count_strides), message, "counts with out");
    expect(sample_probabilities(call, probabilities[0]), message, "probabilities with out");
  }
}

// Of rows everything is told and asked for any number of draws, of short rows as of long ones.
void rows_told() {
  const int threads = get_num_threads();
  set_num_threads(3);  // so that few long rows are shared out
  const float four[4] = {0, 1, 0, -kInfinity};
  for (const std::int64_t n : {4, 512, 3000, 300000})
    for (const std::int64_t rows : {1, 2, 40})
      for (const std::int64_t draws : {0, 1, 2}) {
        if (n * rows > 4000000) continue;
        std::vector<float> x(static_cast<std::size_t>(rows * n));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = four[i % 4];
        const std::int64_t shape[2] = {rows, n}, strides[2] = {4 * n, 4};
        const std::uint64_t seed = 5;
        const auto size = static_cast<std::size_t>(rows);
        std::vector<std::int64_t> out(2 * size), kept(size, 77), cut_index(size, 77);
        std::vector<double> cut_logit(size, 77);
        SampleCall call;
        call.ndim = 2, call.shape = shape, call.axis = 1, call.logits = {x.data(), strides}, call.seed = {&seed, 0};
        call.num_samples = draws, call.out = draws ? out.data() : nullptr;
        for (const bool cuts : {true, false}) {
          if (cuts) call.cut_logit = cut_logit.data(), call.cut_index = cut_index.data();
          else call.cut_logit = nullptr, call.cut_index = nullptr, call.kept = kept.data();
          expect(sample(call), "", "rows told");
        }
        for (std::size_t r = 0; r < size; ++r)
          CHECK(kept[r] == n / 4 * 3 && cut_logit[r] == -kInfinity && cut_index[r] == -1,
                "n = %lld, %lld draws: kept %lld, cut %g, %lld", static_cast<long long>(n), static_cast<long long>(draws),
                static_cast<long long>(kept[r]), cut_logit[r], static_cast<long long>(cut_index[r]));
        for (const bool replacement : {true, false}) {
          call.replacement = replacement;
          x.back() = kNaN;
          expect(sample(call), "has a NaN", "a row with NaN");
          x.back() = kInfinity;
          expect(sample(call), "has +inf", "a row with +inf");
          x.back() = -kInfinity;
        }
      }
  set_num_threads(threads);
  Pair pair;
  const double zero = 0;
  const std::int64_t two = 2;
  SampleCall call = pair.call(0);
  call.kept = pair.kept, call.cut_logit = pair.cut_logit, call.cut_index = pair.cut_index, call.top_k = {&two, 0};
  expect(sample(call), "", "no draws, top_k");
  CHECK(pair.kept[0] == 2 && pair.cut_logit[0] == 3 && pair.cut_index[0] == 3 && pair.cut_logit[1] == 0 && !pair.cut_index[1],
        "no draws, top_k: %lld, %g, %lld", static_cast<long long>(pair.kept[0]), pair.cut_logit[0],
        static_cast<long long>(pair.cut_index[0]));
  call.temperature = {&zero, 0};
  expect(sample(call), "", "no draws, temperature 0");
  CHECK(pair.kept[0] == 1 && pair.cut_logit[0] == 4 && pair.cut_index[0] == 2, "no draws, temperature 0");
}

// Without replacement each draw takes the largest that is left; what is told is of the first.
void coldest() {
  Pair pair;
  const double zero = 0;
  double log_prob[8];
  const std::int64_t one = 1;
  SampleCall call = pair.call(4);
  call.temperature = {&zero, 0}, call.replacement = false, call.kept = pair.kept, call.filtered_log_prob = log_prob;
  call.cut_logit = pair.cut_logit, call.cut_index = pair.cut_index;
  for (const bool filtered : {false, true}) {
    if (filtered) call.top_k = {&one, 0};
    expect(sample(call), "", "temperature 0 without replacement");
    const std::int64_t order[8] = {2, 3, 1, 0, 3, 0, 2, 1};
    CHECK(check::equal_bytes(pair.out, order, sizeof order), "temperature 0 without replacement: the order");
    for (int i = 0; i < 8; ++i) CHECK(log_prob[i] == (i % 4 ? -kInfinity : 0), "filtered_log_prob of draw %d", i);
    CHECK(pair.kept[1] == 1 && pair.cut_logit[1] == 1 && pair.cut_index[1] == 3, "what is told of temperature 0");
  }
}

// Pieces have no temperature 0, and quotients that are numbers.
void temperatures_in_pieces() {
  Pair pair;
  SampleCall call = pair.call(2);
  std::vector<std::uint64_t> states(static_cast<std::size_t>(2 * piece_state_bytes(call.dtype) / 8));
  std::int16_t classes[4];
  const auto piece = [&] { return sample_piece(call, 0, 1, states.data(), classes); };
  const auto finish = [&] { return finish_pieces(call, 1, states.data(), classes); };
  double heat[2] = {1, 0};
  call.temperature = {heat, 1};
  expect(piece(), "temperature is 0 for row 1", "sample_piece");
  expect(finish(), "temperature is 0 for row 1", "finish_pieces");
  heat[0] = 1e-50;
  expect(piece(), "temperature is 1e-50 for row 0", "sample_piece");
  heat[0] = 0.5, heat[1] = 1e-40;
  expect(piece(), "temperature is 1e-40 for row 1", "sample_piece");
  pair.x[1][3] = kInfinity;
  expect(piece(), "", "sample_piece");
  expect(finish(), "logits has +inf in row 1 ", "finish_pieces");
  call.num_samples = 0, call.out = nullptr;
  expect(finish(), "logits has +inf in row 1 ", "finish_pieces without draws");
  // a quotient of -inf is drawn as seldom as in sample
  call = pair.call(2), heat[1] = 0.5, call.temperature = {heat, 1};
  pair.x[1][0] = 1, pair.x[1][1] = -3e38f, pair.x[1][2] = 2, pair.x[1][3] = -kInfinity;
  expect(sample(call), "", "sample");
  const std::vector<std::int64_t> drawn(pair.out, pair.out + 4);
  expect(piece(), "", "sample_piece");
  expect(finish(), "", "finish_pieces");
  CHECK(check::equal_bytes(pair.out, drawn.data(), 32), "draws of pieces with a quotient of -inf");
}

}  // namespace

int main(int argc, char** argv) {
  const char* const isa_name = argc > 1 ? argv[1] : isa();
  if (!set_isa(isa_name).ok()) return check::kSkipped;
  philox();
  uniforms();
  binomial_mass();
  same_everywhere(isa_name);
  refusals();
  other_results();
  rows_told();
  coldest();
  temperatures_in_pieces();
  return check::finish();
}
