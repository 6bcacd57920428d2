// The machine's limits under the same roof: limit_NAME/bytes, bytes of one array, on the same threads.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

extern "C" {
void limits_copy(const char* in, char* out, std::int64_t bytes);
void limits_copy_nt(const char* in, char* out, std::int64_t bytes);
std::int64_t limits_read(const char* in, std::int64_t bytes);
double limits_exp_add(const char* in, std::int64_t bytes, int item_size);
void limits_triad(const char* a, const char* b, char* out, std::int64_t bytes);
void limits_triad_nt(const char* a, const char* b, char* out, std::int64_t bytes);
}

namespace bench {

namespace {

struct Arrays {
  char *a, *b, *out;
  std::int64_t bytes;
};

struct Limit {
  const char* name;
  int streams;  // arrays read and written
  void (*run)(const Arrays&);
};
const Limit kLimits[] = {
    {"limit_copy", 2, [](const Arrays& m) { limits_copy(m.a, m.out, m.bytes); }},
    {"limit_copy_nt", 2, [](const Arrays& m) { limits_copy_nt(m.a, m.out, m.bytes); }},
    {"limit_read", 1, [](const Arrays& m) { benchmark::DoNotOptimize(limits_read(m.a, m.bytes)); }},
    {"limit_exp_add_f32", 1, [](const Arrays& m) { benchmark::DoNotOptimize(limits_exp_add(m.a, m.bytes, 4)); }},
    {"limit_exp_add_f64", 1, [](const Arrays& m) { benchmark::DoNotOptimize(limits_exp_add(m.a, m.bytes, 8)); }},
    {"limit_triad", 3, [](const Arrays& m) { limits_triad(m.a, m.b, m.out, m.bytes); }},
    {"limit_triad_nt", 3, [](const Arrays& m) { limits_triad_nt(m.a, m.b, m.out, m.bytes); }},
};

// Numbers of moderate size whichever of float and double they are read as.
char* numbers(std::int64_t bytes, bool doubles) {
  char* data = static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
  for (std::int64_t i = 0; i < bytes; i += 8) {
    const double wide = static_cast<double>(i % 977) / 100 - 4;
    const float pair[2] = {static_cast<float>(wide), static_cast<float>(-wide)};
    if (doubles) {
      std::memcpy(data + i, &wide, 8);
    } else {
      std::memcpy(data + i, pair, 8);
    }
  }
  return data;
}

void measure(benchmark::State& state, const Limit& limit, std::int64_t bytes) {
  const bool doubles = std::strstr(limit.name, "f64") != nullptr;
  const Arrays arrays = {numbers(bytes, doubles), numbers(bytes, doubles), numbers(bytes, doubles), bytes};
  for (auto _ : state) {
    limit.run(arrays);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes * limit.streams);
  std::free(arrays.a), std::free(arrays.b), std::free(arrays.out);
}

}  // namespace

void register_limits() {
  for (const std::int64_t bytes : {std::int64_t(256) << 10, std::int64_t(64) << 20})
    for (const Limit& limit : kLimits)
      benchmark::RegisterBenchmark((std::string(limit.name) + "/" + std::to_string(bytes)).c_str(),
                                   [=](benchmark::State& state) { measure(state, limit, bytes); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
}

}  // namespace bench
