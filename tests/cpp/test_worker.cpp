// Worker: a thread keeps off one CPU after another, and off none that it did not have.
#include "../../csrc/cpu/threads/worker.hpp"

#include "check.hpp"

namespace {

cpu_set_t allowed() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  return set;
}
bool same(const cpu_set_t& a, const cpu_set_t& b) { return CPU_EQUAL(&a, &b); }

}  // namespace

int main() {
  const cpu_set_t all = allowed();
  sumexp::cpu::Worker self(pthread_self());
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    self.avoid(cpu, all);
    cpu_set_t want = all;
    if (CPU_COUNT(&all) > 1) CPU_CLR(cpu, &want);
    CHECK(same(allowed(), want), "CPU %d is avoided, and no other", cpu);
    CHECK(CPU_COUNT(&all) == 1 || sched_getcpu() != cpu, "on CPU %d, which is avoided", cpu);
    if (!CPU_ISSET(cpu, &all)) continue;

    // Kept on one CPU, by its caller or by somebody else, it stays there.
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    self.avoid(cpu, one);
    CHECK(same(allowed(), one), "CPU %d alone, as the caller", cpu);
    self.avoid(-1, all);
    CHECK(same(allowed(), all), "CPU %d avoided, then none", cpu);
    sched_setaffinity(0, sizeof(one), &one);
    for (int turn = 0; turn < 2; ++turn) {
      self.avoid(turn ? -1 : cpu, all);
      CHECK(same(allowed(), one), "CPU %d: a thread that was kept on one CPU is set free", cpu);
    }
    sched_setaffinity(0, sizeof(all), &all);
  }
  return check::finish();
}
