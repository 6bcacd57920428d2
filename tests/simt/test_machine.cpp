// The machine runs a right kernel to the right bytes under every schedule, and catches each of the
// faults that toy.cuh can plant.
#include <cstdio>
#include <string>
#include <vector>

#include "machine/memory.hpp"
#include "toy.cuh"

namespace {

using toy::Fault;

int failures = 0;
void expect(bool ok, const char* what, const std::string& detail = "") {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s %s\n", what, detail.c_str());
}

struct Outcome {
  cudaError_t code;
  std::string error;
  bool right, intact;
  bool caught() const { return code != cudaSuccess || !right || !intact; }
};

float value(std::uint64_t seed, int i) {
  const std::uint64_t z = (seed * 1000003u + std::uint64_t(i)) * 0x9e3779b97f4a7c15u;
  return float(double(z >> 40) * (z & 1024 ? 1e-3 : 1e-1));
}

// The order that toy.cuh states, in plain loops.
float expected_part(const float* p, int n, int threads) {
  std::vector<float> v(std::size_t(threads), 0.f);
  const int whole = n / 4 * 4;
  for (int t = 0; t < threads; ++t) {
    for (int i = 4 * t; i < whole; i += 4 * threads) v[t] += p[i] + p[i + 1] + p[i + 2] + p[i + 3];
    if (whole + t < n) v[t] += p[whole + t];
  }
  float s = 0;
  for (int w = 0; w < threads / 32; ++w) {
    for (int half = 16; half; half /= 2)
      for (int l = 0; l < half; ++l) v[w * 32 + l] += v[w * 32 + l + half];
    s += v[w * 32];
  }
  return s;
}

template <Fault fault>
Outcome attempt(std::uint64_t seed, int rows = 3, int n = 1000, int threads = 256, int cluster = 1) {
  simt::reseed(seed);
  simt::Buffer<float> x(std::size_t(rows) * n, simt::Place::back, "x");
  simt::Buffer<float> sums(rows, simt::Place::back, "sums");
  simt::Buffer<float> total(1, simt::Place::back, "total");
  simt::Buffer<unsigned> done(1, simt::Place::front, "done");
  for (int i = 0; i < rows * n; ++i) x[i] = value(seed, i);
  done[0] = 0;
  Outcome o;
  o.code = toy::launch_sum_rows<fault>(x.data(), n, rows, n, threads, cluster, sums.data(), total.data(), done.data(), nullptr);
  o.error = simt::error();
  o.right = true;
  float all = 0;
  for (int r = 0; r < rows; ++r) {
    float s = 0;
    for (int k = 0; k < cluster; ++k) s += expected_part(&x[r * n + k * (n / cluster)], n / cluster, threads);
    o.right = o.right && std::memcmp(&sums[r], &s, sizeof s) == 0;
    all += s;
  }
  o.right = o.right && std::memcmp(&total[0], &all, sizeof all) == 0;
  o.intact = x.intact() && sums.intact() && total.intact() && done.intact();
  return o;
}

// A fault that shows by its nature must be caught by every schedule and named in the message; one
// that is a race must be caught by most.
template <Fault fault>
void bites(const char* name, const char* word, int at_least = 20, int rows = 3, int n = 1000, int threads = 256,
           int cluster = 1) {
  int caught = 0;
  std::string last;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const Outcome o = attempt<fault>(seed, rows, n, threads, cluster);
    caught += o.caught();
    if (!o.error.empty()) last = o.error;
  }
  std::printf("%-22s caught by %2d of 20 schedules  %s\n", name, caught, last.c_str());
  expect(caught >= at_least, name, "is not caught often enough");
  expect(last.find(word) != std::string::npos, name, "gives the message: " + last);
}

void right_kernels() {
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    for (int threads : {32, 64, 256})
      for (int cluster : {1, 2, 8})
        for (int n : {32, 64, 1024, 4096}) {
          const Outcome o = attempt<Fault::none>(seed, 5, n, threads, cluster);
          expect(o.code == cudaSuccess && o.right && o.intact, "a right kernel", o.error);
        }
}

void launches_are_checked() {
  simt::Buffer<float> x(64);
  unsigned done = 0;
  auto launch = [&](int rows, int threads, int cluster) {
    return toy::launch_sum_rows<Fault::none>(x.data(), 0, rows, 64, threads, cluster, x.data(), x.data(), &done, nullptr);
  };
  expect(launch(1, 2048, 1) == cudaErrorInvalidConfiguration, "2048 threads");
  expect(launch(0, 32, 1) == cudaErrorInvalidConfiguration, "an empty grid");
  simt::settings().cc = 80;
  expect(launch(2, 32, 2) == cudaErrorNotSupported, "clusters on sm_80");
  simt::settings().cc = 90;
}

}  // namespace

int main() {
  right_kernels();
  launches_are_checked();
  bites<Fault::no_barrier>("no_barrier", "", 19);
  bites<Fault::no_second_barrier>("no_second_barrier", "", 15);
  bites<Fault::lane_order>("lane_order", "", 15, 16);
  bites<Fault::tail>("tail", "past the end of x");
  bites<Fault::tail_store>("tail_store", "past the end of sums");
  bites<Fault::mask>("mask", "disagrees on the mask");
  bites<Fault::absent_lane>("absent_lane", "shfl_xor");
  bites<Fault::undefined_lane>("undefined_lane", "reads lane 16");
  bites<Fault::diverged_barrier>("diverged_barrier", "meet at one barrier");
  bites<Fault::early_exit>("early_exit", "left the kernel");
  bites<Fault::misaligned>("misaligned", "not a multiple of 16");
  bites<Fault::no_first_cluster_sync>("no_first_cluster_sync", "may not have started", 20, 3, 1024, 64, 4);
  bites<Fault::no_last_cluster_sync>("no_last_cluster_sync", "no longer there", 10, 3, 1024, 64, 4);
  bites<Fault::shared_overrun>("shared_overrun", "past the end of its shared partial");
  bites<Fault::torn_counter>("torn_counter", "", 4, 40, 64, 32);
  bites<Fault::torn_shared_counter>("torn_shared_counter", "", 20);
  const simt::Counters& c = simt::counters();
  std::printf("%llu launches, %llu threads, %llu switches: %s\n", (unsigned long long)c.launches, (unsigned long long)c.threads,
              (unsigned long long)c.switches, failures ? "FAILED" : "ok");
  return failures != 0;
}
