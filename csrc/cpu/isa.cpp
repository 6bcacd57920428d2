// The instruction set, chosen once; threads, and what is said of both.
#include "isa.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../include/sumexp/sumexp.hpp"
#include "status.hpp"
#include "threads/pool.hpp"

namespace sumexp {

using cpu::fail;

namespace {

#if defined(SUMEXP_HAVE_avx2) || defined(SUMEXP_HAVE_avx512)
// What the files of both are compiled with. F16C from CPUID: clang's __builtin_cpu_supports does not know it.
bool has_avx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// One that may be used; `usable` asks the CPU. In the order of SUMEXP_OF_ISAS, the best last.
struct Isa {
  const char* name;
  bool (*usable)();
};
constexpr bool (*kAlways)() = [] { return true; };
const Isa kIsas[] = {
    {"scalar", kAlways},
#if defined(SUMEXP_HAVE_scalar_fma)
    {"scalar", [] { return __builtin_cpu_supports("fma") != 0; }},
#endif
#if defined(SUMEXP_HAVE_avx2)
    {"avx2", has_avx2},
#endif
#if defined(SUMEXP_HAVE_avx512)
    {"avx512",
     [] {
       return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#if defined(SUMEXP_HAVE_neon)
    {"neon", kAlways},
#endif
};
constexpr int kCount = sizeof(kIsas) / sizeof(kIsas[0]);

std::atomic<int> g_isa{-1}, g_threads{0};

// `found` where nothing has been set while it was found; else what was.
int chosen_at_last(std::atomic<int>& choice, int none, int found) {
  return choice.compare_exchange_strong(none, found) ? found : none;
}

// The last that has this name, or, of null, any, and runs on this CPU; -1 for none. "portable": the scalar kernels for any CPU.
int find(const char* name) {
  if (name && std::strcmp(name, "portable") == 0) return 0;
  for (int i = kCount - 1; i >= 0; --i)
    if ((!name || std::strcmp(name, kIsas[i].name) == 0) && kIsas[i].usable()) return i;
  return -1;
}

std::string list_isas(bool usable_only) {
  std::string text = kIsas[0].name;
  for (int i = 1; i < kCount; ++i) {
    if ((usable_only && !kIsas[i].usable()) || std::strcmp(kIsas[i].name, kIsas[i - 1].name) == 0) continue;
    text += ',';
    text += kIsas[i].name;
  }
  return text;
}

// Elements that are worth a thread: some 15 microseconds. Waking one takes 10 of the caller's time on a virtual machine, and
// 20 to 60 until it runs: two threads on 2^17 elements are as fast as one, on 2^18 they take 0.8 of the time (Zen 4, 2026-11).
constexpr long long kThreadElements = 1 << 16;

}  // namespace

int cpu::isa_in_use() {
  int isa = g_isa.load(std::memory_order_relaxed);
  if (isa < 0) {  // SUMEXP_ISA, if it names a usable one; else the best
    const char* const wanted = std::getenv("SUMEXP_ISA");
    isa = wanted ? find(wanted) : -1;
    if (isa < 0) isa = find(nullptr);
    isa = chosen_at_last(g_isa, -1, isa);
  }
  return isa;
}

int cpu::threads_for(long long elements) {
  const long long worth = elements / kThreadElements;
  const int threads = get_num_threads();
  return worth < threads ? static_cast<int>(worth) : threads;
}

Status set_num_threads(int n) noexcept {
  if (n < 1) return fail(Code::invalid_argument, "n is %d, accepted: integers from 1", n);
  g_threads.store(n);
  return Status{};
}
int get_num_threads() noexcept {
  const int n = g_threads.load(std::memory_order_relaxed);
  return n == 0 ? chosen_at_last(g_threads, 0, cpu::default_threads()) : n;
}

const char* isa() noexcept { return kIsas[cpu::isa_in_use()].name; }
// Never destroyed, as other objects' destructors may ask.
const char* compiled_isas() noexcept {
  static const std::string& text = *new std::string(list_isas(false));
  return text.c_str();
}
const char* usable_isas() noexcept {
  static const std::string& text = *new std::string(list_isas(true));
  return text.c_str();
}
Status set_isa(const char* name) noexcept {
  const int isa = name ? find(name) : -1;
  if (isa < 0)
    return fail(Code::invalid_argument, "isa is '%.40s', accepted on this machine: %s", name ? name : "nullptr", usable_isas());
  g_isa.store(isa, std::memory_order_relaxed);
  return Status{};
}

}  // namespace sumexp
