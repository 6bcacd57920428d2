// cuda::sample and its like against the CPU's functions, row by row: every draw, count, log-probability and cut, == on bytes.
// A row that the CPU refuses gives -1.
//   usage: test_simt_sampling [seed] [dtype]
#include <sumexp/cuda.hpp>
#include <sumexp/sampling.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "numerics/formats.hpp"

namespace {

using namespace sumexp;
using sumexp::gpu::bf16;
using sumexp::gpu::f16;

// Rows of every kind.
constexpr int kKinds = 12;
double logit(int kind, std::int64_t i, std::int64_t n, bool wide) {
  const double inf = HUGE_VAL;
  switch (kind) {
    case 0: return 3 * normal();
    case 1: return std::floor(3 * normal());      // ties
    case 2: return i % 3 == 0 ? -inf : normal();  // excluded elements
    case 3: return i == n - 1 ? NAN : normal();
    case 4: return i == n / 2 ? inf : normal();
    case 5: return -inf;
    case 6: return i == n / 2 ? 40 : normal();                                       // one far above all others
    case 7: return (wide ? 1e13 : 7e4) + std::floor(4 * normal()) * (wide ? 1 : 8);  // subtracted from each other before exp
    case 8: return i % 2 ? -0.0 : 0.0;
    case 9: return (uniform() - 0.5) * (wide ? 1e300 : 6e4);
    case 10: return i == n / 3 ? 1 : -inf;   // a single one
    default: return i < n / 2 ? -500 : 1.5;  // half that hardly counts
  }
}

template <class T>
struct Buffer : simt::Buffer<T> {
  explicit Buffer(std::int64_t n, const char* name, simt::Place place = simt::Place::back, std::size_t skip = 0)
      : simt::Buffer<T>(std::size_t(n), place, name, skip) {}
  T& at(std::int64_t i) const { return (*this)[std::size_t(i)]; }
};

enum class Layout { packed, misaligned, steps, columns };
constexpr const char* kLayouts[] = {"packed", "misaligned", "steps", "columns"};

// Rows of one kind and layout, the options of each its own.
template <class S>
struct Rows {
  std::int64_t rows, n, step, pitch;
  bool masked;
  Buffer<S> x;
  Buffer<unsigned char> where;
  Buffer<double> temperature, top_p, min_p;
  Buffer<std::int64_t> top_k, stream;
  Buffer<std::uint64_t> seed;
  std::int64_t shape[2], strides[2], mask_strides[2];
  std::string name;

  static std::int64_t step_of(Layout l, std::int64_t rows) { return l == Layout::steps ? 3 : l == Layout::columns ? rows : 1; }
  static std::int64_t pitch_of(Layout l, std::int64_t n) {
    return l == Layout::columns ? 1 : l == Layout::packed ? (n + 15) / 16 * 16 : l == Layout::steps ? 3 * n + 1 : n + 1;
  }
  Rows(std::int64_t rows, std::int64_t n, int kind, Layout layout, bool masked)
      : rows(rows),
        n(n),
        step(step_of(layout, rows)),
        pitch(pitch_of(layout, n)),
        masked(masked),
        x((n ? (n - 1) * step : 0) + (rows - 1) * pitch + 1, "logits",
          layout == Layout::packed ? simt::Place::front : simt::Place::back, layout == Layout::misaligned ? 1 : 0),
        where(rows * n, "where"),
        temperature(rows, "temperature"),
        top_p(rows, "top_p"),
        min_p(rows, "min_p"),
        top_k(rows, "top_k"),
        stream(rows, "stream"),
        seed(rows, "seed"),
        shape{rows, n},
        strides{pitch * std::int64_t(sizeof(S)), step * std::int64_t(sizeof(S))},
        mask_strides{n, 1} {
    constexpr bool wide = sizeof(S) == 8;
    const double temperatures[] = {1, 0.7, 0, 1e-40, 3, HUGE_VAL, wide ? 1e-305 : 3e-38, 3.5e38};
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < n; ++i) {
        x.at(r * pitch + i * step) = Type<S>::from(logit(kind, i, n, wide));
        where.at(r * n + i) = uniform() < 0.6;
      }
      temperature.at(r) = temperatures[r % 8];
      top_k.at(r) = r % 3 ? 1 + std::int64_t(uniform() * double(n)) : n + 1;
      top_p.at(r) = r % 2 ? uniform() + 1e-9 : 1;
      min_p.at(r) = r % 4 == 3 ? uniform() * 0.1 : 0;
      stream.at(r) = std::int64_t(uniform() * 1e18);
      seed.at(r) = std::uint64_t(uniform() * 1e18);
    }
    char text[120];
    std::snprintf(text, sizeof text, "%s kind %d n %lld %s%s", Type<S>::name, kind, static_cast<long long>(n),
                  kLayouts[int(layout)], masked ? " masked" : "");
    name = text;
  }
  SampleCall call() const {
    SampleCall call;
    call.dtype = Type<S>::dtype;
    call.ndim = 2, call.shape = shape, call.axis = 1;
    call.logits = {x.data(), strides};
    if (masked) call.where = {where.data(), mask_strides};
    call.seed = {seed.data(), 1};
    return call;
  }
  // The call of one row alone.
  SampleCall row(const SampleCall& call, std::int64_t r, std::int64_t& number) const {
    SampleCall one = call;
    one.ndim = 1, one.shape = shape + 1, one.axis = 0;
    one.logits = {x.data() + r * pitch, strides + 1};
    if (call.where.data) one.where = {where.data() + r * n, mask_strides + 1};
    const auto move = [&](auto& option) { option.data = option.data ? option.data + r * option.step : nullptr; };
    move(one.seed), move(one.stream), move(one.temperature), move(one.top_k), move(one.top_p), move(one.min_p);
    number = r;
    if (!one.stream.data) one.stream = {&number, 0};
    return one;
  }
};

void check(bool good, const std::string& name, const char* what, std::int64_t row, double got, double want) {
  ++checks;
  if (good || ++failures > 40) return;
  std::printf("FAILED %s: %s of row %lld: %.17g, accepted: %.17g; %s\n", name.c_str(), what, static_cast<long long>(row), got,
              want, simt::error().c_str());
}
bool same(double a, double b) { return std::memcmp(&a, &b, 8) == 0 || (std::isnan(a) && std::isnan(b)); }

// call(target) with the workspace that it wants.
template <class Function>
Status on_machine(Function function) {
  cuda::Target target;
  Status status = function(target);
  if (status.code != Code::needs_workspace) return status;
  Buffer<char> workspace(std::int64_t(target.workspace_bytes + 15) / 16 * 16, "the workspace");
  target.workspace = workspace.data();
  status = function(target);
  if (!workspace.intact()) check(false, "workspace", "bytes beside it", 0, 0, 0);
  return status;
}

struct What {
  bool heated, filtered, streams, info, replacement;
  FilterOrder order;
};

template <class S>
void draws(const Rows<S>& of, std::int64_t count, const What& what) {
  SampleCall call = of.call();
  call.num_samples = count, call.replacement = what.replacement, call.order = what.order;
  if (what.heated) call.temperature = {of.temperature.data(), 1};
  if (what.streams) call.stream = {of.stream.data(), 1};
  if (what.filtered) {
    call.top_k = {of.top_k.data(), 1}, call.top_p = {of.top_p.data(), 1}, call.min_p = {of.min_p.data(), 1};
  }
  Buffer<std::int64_t> out(of.rows * count, "out"), kept(of.rows, "kept"), cut_index(of.rows, "cut_index");
  Buffer<double> log_prob(of.rows * count, "log_prob"), filtered(of.rows * count, "filtered"), cut_logit(of.rows, "cut_logit");
  call.out = out.data();
  if (what.info) {
    call.log_prob = log_prob.data(), call.filtered_log_prob = filtered.data();
    call.kept = kept.data(), call.cut_logit = cut_logit.data(), call.cut_index = cut_index.data();
  }
  char text[120];
  std::snprintf(text, sizeof text, ", %lld draws, heated %d filtered %d order %d replacement %d info %d",
                static_cast<long long>(count), what.heated, what.filtered, int(what.order), what.replacement, what.info);
  const std::string name = of.name + text;
  const Status status = on_machine([&](cuda::Target& target) { return cuda::sample(call, target); });
  check(status.ok(), name + ": " + status.message, "status", 0, 1, 0);
  if (!status.ok()) return;
  check(out.intact() && kept.intact() && cut_index.intact() && log_prob.intact() && filtered.intact() && cut_logit.intact(),
        name, "bytes beside results", 0, 0, 0);
  for (std::int64_t r = 0; r < of.rows; ++r) {
    const auto size = static_cast<std::size_t>(count);
    std::vector<std::int64_t> want(size, -1);
    std::vector<double> lp(size, NAN), flp(size, NAN);
    std::int64_t number, want_kept = 0, index = -1;
    double logit = NAN;
    std::int64_t made = -1;
    // Without replacement as many draws as there are classes.
    for (std::int64_t wanted = count; wanted >= 0; wanted = what.replacement ? -1 : wanted - 1) {
      SampleCall one = of.row(call, r, number);
      one.num_samples = wanted;
      one.out = want.data();
      if (what.info)
        one.log_prob = lp.data(), one.filtered_log_prob = flp.data(), one.kept = &want_kept, one.cut_logit = &logit,
        one.cut_index = &index;
      if (sample(one).ok()) {
        made = wanted;
        break;
      }
    }
    for (std::int64_t d = 0; d < count; ++d) {
      const auto i = static_cast<std::size_t>(d);
      const double given = double(out.at(r * count + d));
      check(d < made ? out.at(r * count + d) == want[i] : given == -1, name, "draw", r, given, d < made ? double(want[i]) : -1);
      if (!what.info) continue;
      check(same(log_prob.at(r * count + d), d < made ? lp[i] : NAN), name, "log_prob", r, log_prob.at(r * count + d), lp[i]);
      check(same(filtered.at(r * count + d), d < made ? flp[i] : NAN), name, "filtered_log_prob", r, filtered.at(r * count + d),
            flp[i]);
    }
    if (!what.info) continue;
    check(kept.at(r) == (made >= 0 ? want_kept : 0), name, "kept", r, double(kept.at(r)), double(want_kept));
    check(same(cut_logit.at(r), made >= 0 ? logit : NAN), name, "cut_logit", r, cut_logit.at(r), logit);
    check(cut_index.at(r) == (made >= 0 ? index : -1), name, "cut_index", r, double(cut_index.at(r)), double(index));
  }
}

template <class S>
void counts(const Rows<S>& of, std::int64_t count, bool heated, bool columns) {
  SampleCall call = of.call();
  call.num_samples = count;
  call.where = {};
  if (heated) call.temperature = {of.temperature.data(), 1};
  Buffer<std::int64_t> out(of.rows * of.n, "counts");
  const std::int64_t strides[] = {columns ? 8 : 8 * of.n, columns ? 8 * of.rows : 8};
  const Status status =
      on_machine([&](cuda::Target& target) { return cuda::sample_counts(call, out.data(), strides, target); });
  const std::string name = of.name + ", counts of " + std::to_string(count) + (heated ? " heated" : "");
  check(status.ok() && out.intact(), name + ": " + status.message, "status", 0, 1, 0);
  if (!status.ok()) return;
  std::vector<std::int64_t> want(static_cast<std::size_t>(of.n + 1));
  const std::int64_t one_stride[] = {8};
  for (std::int64_t r = 0; r < of.rows; ++r) {
    std::int64_t number;
    SampleCall one = of.row(call, r, number);
    const bool good = sample_counts(one, want.data(), one_stride).ok();
    for (std::int64_t i = 0; i < of.n; ++i) {
      const std::int64_t got = out.at((r * strides[0] + i * strides[1]) / 8),
                         wanted = good ? want[static_cast<std::size_t>(i)] : -1;
      check(got == wanted, name, "count", r, double(got), double(wanted));
    }
  }
}

// A row in pieces of so many chunks, and its draws: those of the whole row.
template <class S>
void pieces(const Rows<S>& of, std::int64_t count, std::int64_t chunks_a_piece) {
  const std::int64_t chunk = chunk_classes(Type<S>::dtype), chunks = (of.n + chunk - 1) / chunk;
  const std::int64_t state = piece_state_bytes(Type<S>::dtype);
  Buffer<std::uint64_t> states(of.rows * chunks * state / 8, "states");
  Buffer<std::int16_t> classes(of.rows * chunks * count, "classes");
  Buffer<std::int64_t> out(of.rows * count, "out");
  SampleCall call = of.call();
  call.where = {}, call.num_samples = count;
  const std::string name = of.name + ", in pieces of " + std::to_string(chunks_a_piece);
  for (std::int64_t c = 0; c < chunks; c += chunks_a_piece) {
    SampleCall piece = call;
    const std::int64_t left = of.n - c * chunk, most = chunks_a_piece * chunk;
    const std::int64_t shape[] = {of.rows, left < most ? left : most};
    piece.shape = shape;
    piece.logits.data = of.x.data() + c * chunk * of.step;
    const Status status = on_machine(
        [&](cuda::Target& target) { return cuda::sample_piece(piece, c, chunks, states.data(), classes.data(), target); });
    check(status.ok(), name + ": " + status.message, "status of a piece", 0, 1, 0);
  }
  call.out = out.data();
  const Status status = on_machine(
      [&](cuda::Target& target) { return cuda::finish_pieces(call, chunks, states.data(), classes.data(), target); });
  check(status.ok() && out.intact() && states.intact() && classes.intact(), name + ": " + status.message, "status", 0, 1, 0);
  for (std::int64_t r = 0; r < of.rows; ++r) {
    std::vector<std::int64_t> want(static_cast<std::size_t>(count), -1);
    std::int64_t number;
    SampleCall one = of.row(call, r, number);
    one.out = want.data();
    const bool good = sample(one).ok();
    for (std::int64_t d = 0; d < count; ++d) {
      const std::int64_t wanted = good ? want[static_cast<std::size_t>(d)] : -1;
      check(out.at(r * count + d) == wanted, name, "draw", r, double(out.at(r * count + d)), double(wanted));
    }
  }
}

// Temperatures that rows in pieces do not have.
void cold_pieces() {
  Rows<float> of(4, 50, 0, Layout::packed, false);
  const double cold[] = {0, 1, 1e-50, 1e-40};
  for (std::int64_t r = 0; r < 4; ++r) of.temperature.at(r) = cold[r];
  Buffer<std::uint64_t> states(4 * piece_state_bytes(DType::f32) / 8, "states");
  Buffer<std::int16_t> classes(8, "classes");
  Buffer<std::int64_t> out(8, "out");
  SampleCall call = of.call();
  call.out = out.data(), call.num_samples = 2, call.temperature = {of.temperature.data(), 1};
  const Status piece = on_machine(
                   [&](cuda::Target&target) { return cuda::sample_piece(call, 0, 1, states.data(), classes.data(), target); }),
               finish = on_machine(
                   [&](cuda::Target&target) { return cuda::finish_pieces(call, 1, states.data(), classes.data(), target); });
  check(piece.ok() && finish.ok(), "cold pieces", "status", 0, 1, 0);
  for (std::int64_t d = 0; d < 8; ++d)
    check((out.at(d) >= 0) == (d / 2 == 1), "cold pieces", "draw", d / 2, double(out.at(d)), -1);
}

void noise() {
  for (const std::int64_t n : {1, 3, 1000, 5000})
    for (const bool streams : {false, true}) {
      constexpr std::int64_t kRows = 3;
      Buffer<std::uint64_t> seed(kRows, "seed");
      Buffer<std::int64_t> stream(kRows, "stream");
      for (std::int64_t r = 0; r < kRows; ++r) seed.at(r) = std::uint64_t(7 + r), stream.at(r) = 1000 - r;
      Buffer<double> out(kRows * n, "noise");
      std::vector<double> want(static_cast<std::size_t>(kRows * n));
      const PerRow<std::int64_t> streams_of = {streams ? stream.data() : nullptr, 1};
      const Status status = on_machine([&](cuda::Target& target) {
        return cuda::gumbel_noise({seed.data(), 1}, streams_of, kRows, n, out.data(), target);
      });
      check(status.ok() && gumbel_noise({seed.data(), 1}, streams_of, kRows, n, want.data()).ok() && out.intact(), "noise",
            status.message, 0, 1, 0);
      check(std::memcmp(want.data(), out.data(), want.size() * 8) == 0, "noise", "bytes", n, 0, 0);
    }
}

// Options that are out of range on the device, and what the host refuses.
void refused() {
  Rows<float> of(4, 50, 0, Layout::packed, false);
  const double odd[] = {-1, NAN, 1, -HUGE_VAL};
  for (std::int64_t r = 0; r < 4; ++r) of.temperature.at(r) = odd[r];
  SampleCall call = of.call();
  Buffer<std::int64_t> out(4, "out");
  call.out = out.data(), call.temperature = {of.temperature.data(), 1};
  const auto run = [&] { return on_machine([&](cuda::Target& target) { return cuda::sample(call, target); }); };
  check(run().ok() && out.at(0) == -1 && out.at(1) == -1 && out.at(2) >= 0 && out.at(3) == -1, "temperatures", "draws", 0, 0,
        0);
  const auto says = [](const Status& status, const char* message) {
    check(std::strstr(status.message, message) != nullptr, message, status.message, 0, 0, 0);
  };
  call.num_samples = -1;
  says(run(), "num_samples is -1");
  call.num_samples = 1, call.axis = 2;
  says(run(), "axis is 2");
  call.axis = 1, call.order = FilterOrder(9);
  says(run(), "order is code 9");
  call.order = FilterOrder::vllm, call.shape = nullptr;
  says(run(), "shape is missing");
  const std::int64_t negative[] = {4, -1}, huge[] = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  call.shape = negative;
  says(run(), "shape: dimension 1 is -1");
  call.shape = huge;
  says(run(), "shape has more bytes");
  call = of.call(), call.out = out.data(), call.logits.strides = nullptr;
  says(run(), "logits has no strides");
  call.logits = {};
  says(run(), "logits is missing");

  call = of.call(), call.out = out.data();
  char states[4] = {};
  std::int16_t classes[4] = {};
  const auto piece = [&](std::int64_t chunk) {
    return on_machine([&](cuda::Target& target) { return cuda::sample_piece(call, chunk, 1, states, classes, target); });
  };
  const auto finish = [&](std::int64_t chunks) {
    return on_machine([&](cuda::Target& target) { return cuda::finish_pieces(call, chunks, states, classes, target); });
  };
  const auto counts = [&](const std::int64_t* strides) {
    return on_machine([&](cuda::Target& target) { return cuda::sample_counts(call, out.data(), strides, target); });
  };
  const std::int64_t strides[] = {400, 8};
  says(piece(std::numeric_limits<std::int64_t>::max()), "chunk is 9223372036854775807");
  says(finish(2), "chunks is 2, accepted: 1");
  says(counts(nullptr), "counts has no strides");
  call.top_k = {out.data(), 0};
  says(piece(0), "top_k is given; sample_piece has no filters");
  says(finish(1), "top_k is given; finish_pieces has no filters");
  says(counts(strides), "top_k is given; sample_counts has no filters");
  call.top_k = {}, call.where = call.logits;
  says(piece(0), "where is given");
  call.where = {}, call.out = nullptr;
  says(finish(1), "out is missing");
  says(on_machine([&](cuda::Target& target) {
         return cuda::gumbel_noise(call.seed, call.stream, huge[0], huge[1], of.temperature.data(), target);
       }),
       "rows, n: have more bytes");
  call.seed.data = nullptr;
  says(run(), "seed is missing");
}

template <class S>
void all_of(std::uint64_t seed) {
  std::uint64_t k = seed;
  constexpr FilterOrder kOrders[] = {FilterOrder::vllm, FilterOrder::hf, FilterOrder::llama_cpp};
  for (const std::int64_t n : {0, 1, 2, 17, 300, 511, 2048, 2049, 5000})
    for (int kind = 0; kind < kKinds; ++kind, ++k) {
      const Rows<S> of(n < 1000 ? 8 : 4, n, kind, Layout(k % 4), k % 3 == 0);
      const FilterOrder order = kOrders[k / 2 % 3];
      draws(of, 1, {false, false, k % 2 == 0, false, true, order});
      draws(of, 5, {true, false, k % 2 == 1, true, true, order});
      draws(of, 0, {k % 2 == 0, k % 3 == 0, false, true, k % 5 != 0, order});
      draws(of, k % 3 ? 1 : 4, {true, true, true, k % 4 < 2, k % 5 != 0, order});
      draws(of, n < 20 ? 9 : 6, {k % 2 == 0, false, false, k % 4 == 1, false, order});
      counts(of, k % 2 ? 100000 : 7, k % 3 == 0, k % 4 == 2);
      pieces(of, 3, 1 + std::int64_t(k % 2));
    }
  const std::int64_t chunk = sizeof(S) == 8 ? 512 : 2048;
  const Rows<S> long_rows(2, 19 * chunk + 5, 0, Layout::packed, false), tied(1, 3 * chunk, 1, Layout::packed, false);
  draws(long_rows, 3, {false, false, false, true, true, FilterOrder::vllm});
  draws(long_rows, 40, {true, true, true, true, true, FilterOrder::vllm});
  draws(long_rows, 8, {true, false, false, true, false, FilterOrder::vllm});
  counts(long_rows, 10'000'000'000'000, false, false);
  pieces(long_rows, 2, 5);
  draws(tied, 20000, {false, false, false, false, true, FilterOrder::vllm});  // more than a block takes
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const std::string only = argc > 2 ? argv[2] : "";
  random_state += seed;
  simt::reseed(seed);
  noise();
  refused();
  cold_pieces();
  if (only.empty() || only == "f32") all_of<float>(seed);
  if (only.empty() || only == "f64") all_of<double>(seed);
  if (only.empty() || only == "f16") all_of<f16>(seed);
  if (only.empty() || only == "bf16") all_of<bf16>(seed);
  std::printf("%d checks: %s\n", checks, failures ? "FAILED" : "ok");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
