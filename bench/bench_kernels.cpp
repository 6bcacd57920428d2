// Every operation x direction x dtype x instruction set x driver, under Google Benchmark:
//
//   sumexp_bench [--threads=N] [--benchmark_filter=softmax_forward_f32] [--benchmark_out=FILE] ...
//
// Names are op_direction_dtype_isa/rows/n/driver. bytes_per_second is by the byte model of operations.hpp;
// the limits of bench_limits.cpp, in the same model, stand beside them. Before a kernel is timed, sampled
// rows of its result are compared with the long double oracle; one that fails is not timed.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <string>

#include "oracle.hpp"

namespace bench {

void register_limits();
extern "C" void limits_threads(int threads);

namespace {

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char[], Free>;
Buffer buffer(std::int64_t bytes) {
  void* p = std::aligned_alloc(64, static_cast<std::size_t>((bytes + 63) / 64 * 64));
  if (!p) throw std::bad_alloc();
  std::memset(p, 0, static_cast<std::size_t>(bytes));  // its pages are there when timing starts
  return Buffer(static_cast<char*>(p));
}

// The arrays of one benchmark, filled, and its call.
class Case {
 public:
  Case(const Operation& operation, const Format& format, const Shape& shape)
      : operation_(operation), format_(format), shape_(shape) {
    dims_[0] = shape.first_axis ? shape.n : shape.rows;
    dims_[1] = shape.first_axis ? shape.rows : shape.n;
    full_[0] = dims_[1] * shape.apart * format.size, full_[1] = shape.apart * format.size;
    // one value a row: length 1 along the reduced axis
    per_row_[0] = shape.first_axis ? 0 : format.size, per_row_[1] = shape.first_axis ? format.size : 0;
    call_.op = operation.op, call_.dtype = format.dtype, call_.ndim = 2, call_.shape = dims_;
    call_.axes = shape.first_axis ? 1 : 2;
    for (int k = 0; k < 3 && operation.in[k] != Role::none; ++k) {
      const bool row = k == operation.row_input;
      in_[k] = fill(operation.in[k], row ? shape.rows : full_count(), static_cast<unsigned>(k));
      call_.in[k] = {in_[k].get(), row ? per_row_ : full_};
    }
    out_ = buffer((operation.row_output ? shape.rows : full_count()) * format.size);
    call_.out = {out_.get(), operation.row_output ? per_row_ : full_};
  }

  const sumexp::Call& call() const { return call_; }

  // Empty where the sampled rows are within bounds; else what is wrong.
  std::string validate() const {
    const sumexp::Status status = sumexp::run(call_);
    if (!status.ok()) return status.message;
    for (std::int64_t r : {std::int64_t(0), shape_.rows / 2, shape_.rows - 1}) {
      std::vector<Real> in[3];
      for (int k = 0; k < 3 && in_[k]; ++k) in[k] = row_of(in_[k].get(), r, k == operation_.row_input);
      const Expected want = expect(operation_, format_, in);
      const std::vector<Real> got = row_of(out_.get(), r, operation_.row_output);
      for (std::size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(got[i] - want.value[i]) <= want.allowed[i])) {
          char text[200];
          std::snprintf(text, sizeof text, "row %lld, element %zu: %.17Lg, expected %.17Lg: %.3Lg of what is allowed",
                        static_cast<long long>(r), i, got[i], want.value[i],
                        std::fabs(got[i] - want.value[i]) / want.allowed[i]);
          return text;
        }
      if (shape_.rows == 1) break;
    }
    return "";
  }

 private:
  std::int64_t full_count() const { return shape_.rows * shape_.n * shape_.apart; }
  // Logits and cotangents are normal numbers, with outliers planted so that rows are not all flat:
  // a far larger one (a confident row), and equal maxima.
  Buffer fill(Role role, std::int64_t count, unsigned seed) {
    Buffer data = buffer(count * format_.size);
    if (role == Role::probability || role == Role::log_probability) {
      const Buffer x = fill(Role::logits, count, 9);
      sumexp::Call forward;
      forward.op = role == Role::probability ? Op::softmax : Op::log_softmax;
      forward.dtype = format_.dtype, forward.ndim = 2, forward.shape = dims_, forward.axes = call_.axes;
      forward.in[0] = {x.get(), full_}, forward.out = {data.get(), full_};
      sumexp::run(forward);
      return data;
    }
    std::mt19937 random(seed + 1);
    std::normal_distribution<float> normal;
    constexpr int kTable = 1 << 16;  // drawing each number would take longer than every measurement
    static const std::vector<double> table = [&] {
      std::vector<double> made(kTable + 7);
      for (double& x : made) x = static_cast<double>(normal(random));
      return made;
    }();
    const double scale = role == Role::logits ? 4 : 1;
    for (std::int64_t i = 0; i < count; ++i) {
      double value = scale * table[static_cast<std::size_t>((i * 7 + seed * 1000 + i / 4001) % kTable)];
      if (role == Role::logits && i % 4099 < 2) value = 20;
      if (role == Role::logits && i % 8191 == 100) value = 45;
      put(format_.dtype, data.get() + i * format_.size, value);
    }
    return data;
  }

  std::vector<Real> row_of(const char* data, std::int64_t r, bool one) const {
    std::vector<Real> row(static_cast<std::size_t>(one ? 1 : shape_.n));
    const std::int64_t start = one || shape_.first_axis ? r : r * shape_.n * shape_.apart;
    const std::int64_t step = shape_.first_axis ? shape_.rows : shape_.apart;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::int64_t at = start + static_cast<std::int64_t>(i) * step;
      row[i] = static_cast<Real>(get(format_.dtype, data + at * format_.size));
    }
    return row;
  }

  const Operation operation_;
  const Format format_;
  const Shape shape_;
  std::int64_t dims_[2], full_[2], per_row_[2];
  Buffer in_[3], out_;
  sumexp::Call call_;
};

void measure(benchmark::State& state, const Operation& operation, const Format& format, const Shape& shape,
             const std::string& isa) {
  // Google Benchmark enters here several times for one name: the arrays and the verdict are kept.
  static std::unique_ptr<Case> current;
  static std::string current_name, verdict;
  const std::string name = std::string(operation.name) + format.name + isa + shape.driver + std::to_string(shape.rows) + "/" +
                           std::to_string(shape.n);
  sumexp::set_isa(isa.c_str());
  if (name != current_name) {
    current.reset();
    current = std::make_unique<Case>(operation, format, shape);
    verdict = current->validate();
    current_name = name;
  }
  if (!verdict.empty()) {
    state.SkipWithError(verdict.c_str());
    return;
  }
  for (auto _ : state) {
    sumexp::run(current->call());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * moved_bytes(operation, format, shape));
  state.SetItemsProcessed(state.iterations() * shape.rows * shape.n);
}

void register_kernels(int threads) {
  std::stringstream isas(sumexp::usable_isas());
  for (std::string isa; std::getline(isas, isa, ',');)
    for (const Operation& operation : kOperations)
      for (const Format& format : kFormats)
        for (const Shape& shape : kShapes) {
          if (threads == 1 && std::strcmp(shape.driver, "split") == 0) continue;
          const std::string name = std::string(operation.name) + "_" + format.name + "_" + isa + "/" +
                                   std::to_string(shape.rows) + "/" + std::to_string(shape.n) + "/" + shape.driver;
          benchmark::RegisterBenchmark(name.c_str(),
                                       [=](benchmark::State& state) { measure(state, operation, format, shape, isa); })
              ->UseRealTime()
              ->Unit(benchmark::kMicrosecond);
        }
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  int threads = sumexp::get_num_threads();
  for (int i = 1; i < argc; ++i)
    if (std::strncmp(argv[i], "--threads=", 10) == 0) {
      threads = std::atoi(argv[i] + 10);
      for (int j = i--; j < argc; ++j) argv[j] = argv[j + 1];
      --argc;
    }
  if (!sumexp::set_num_threads(threads).ok()) {
    std::fprintf(stderr, "--threads is %d, accepted: integers from 1\n", threads);
    return 2;
  }
  bench::limits_threads(threads);
  benchmark::AddCustomContext("sumexp", sumexp::version());
  benchmark::AddCustomContext("threads", std::to_string(threads));
  bench::register_limits();
  bench::register_kernels(threads);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
