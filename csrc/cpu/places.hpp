// Where the threads of a pool run: one to a CPU.
//
// A kernel may wake a thread on the CPU of the thread that wakes it, while another CPU idles: Linux 6.18 on two CPUs does
// so for minutes on end, once they have been half busy. The two then take turns, and nothing is gained (measured: a softmax
// VJP of 2M floats on two threads 0.5 ms, as on one; moved apart 0.3 ms).
#pragma once

#include <sched.h>

namespace sumexp::cpu {

class Places {
 public:
  void clear() { CPU_ZERO(&taken_); }

  // The calling thread takes the CPU it runs on. If another thread has that, it moves to a free one of those it may use,
  // where there is one; it may use the same ones afterwards.
  void take() {
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE) return;
    if (CPU_ISSET(cpu, &taken_)) {
      cpu_set_t allowed, both, free;
      if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
      CPU_AND(&both, &allowed, &taken_);
      CPU_XOR(&free, &allowed, &both);
      if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof(free), &free) != 0) return;
      cpu = sched_getcpu();
      sched_setaffinity(0, sizeof(allowed), &allowed);
    }
    CPU_SET(cpu, &taken_);
  }

 private:
  cpu_set_t taken_;
};

}  // namespace sumexp::cpu
