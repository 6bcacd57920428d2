// Places: threads of one round go to CPUs of their own, as far as there are any, and keep the right to all of them.
#include <thread>
#include <vector>

#include "../../csrc/cpu/places.hpp"
#include "check.hpp"

namespace {

using sumexp::cpu::Places;

cpu_set_t allowed() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  return set;
}

// A thread that is kept on one CPU meets its own place again.
void test_no_free_cpu() {
  const cpu_set_t before = allowed();
  const int cpu = sched_getcpu();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof(one), &one);
  Places places;
  places.clear();
  for (int i = 0; i < 3; ++i) places.take();
  const cpu_set_t after = allowed();
  CHECK(CPU_EQUAL(&after, &one) && sched_getcpu() == cpu, "a thread that may use one CPU has left it");
  sched_setaffinity(0, sizeof(before), &before);
}

void test_moves() {
  const cpu_set_t before = allowed();
  for (int round = 0; round < 20; ++round) {
    Places places;
    places.clear();
    cpu_set_t seen;
    CPU_ZERO(&seen);
    for (int i = 0; i < CPU_COUNT(&before); ++i) {  // one thread, in turn for as many as there are CPUs
      places.take();
      const int cpu = sched_getcpu();
      // It may be moved by the system between the two calls, which a hundred takes do not all meet.
      static int moved = 0;
      if (CPU_ISSET(cpu, &seen)) ++moved;
      CHECK(moved < 3, "CPU %d twice", cpu);
      CPU_SET(cpu, &seen);
      const cpu_set_t now = allowed();
      CHECK(CPU_EQUAL(&now, &before), "a thread that has moved may use other CPUs than before");
    }
    places.take();  // all are taken
  }
}

}  // namespace

int main() {
  test_no_free_cpu();
  test_moves();
  return check::finish();
}
