// A thread of the pool that keeps off the CPU of the pool's caller.
//
// Linux may queue a thread that wakes behind the one that wakes it, while another CPU idles. It then runs 1.5 to 3.5 ms later,
// at a tick, when the caller has done all by itself. (Seen on a virtual machine of two CPUs, Linux 6.18, with a program of
// nothing but the two threads: calls of 0.1 to 5 ms on two threads as slow as on one, through whole runs of the benchmark.)
#pragma once

#include <pthread.h>
#include <sched.h>

namespace sumexp::cpu {

class Worker {
 public:
  explicit Worker(pthread_t thread) : thread_(thread) { CPU_ZERO(&told_); }

  // From now on the thread runs where it and its caller may both run, `callers` for the latter, but not on `cpu` if there is
  // another.
  void avoid(int cpu, const cpu_set_t& callers) {
    cpu_set_t now;
    if (pthread_getaffinity_np(thread_, sizeof(now), &now) != 0) return;
    if (!CPU_EQUAL(&now, &told_)) own_ = now;  // what it began with, or what somebody else has said since
    CPU_AND(&now, &own_, &callers);
    if (CPU_COUNT(&now) == 0) return;
    if (cpu >= 0 && cpu < CPU_SETSIZE && CPU_COUNT(&now) > 1) CPU_CLR(cpu, &now);
    if (pthread_setaffinity_np(thread_, sizeof(now), &now) == 0) told_ = now;
  }

 private:
  pthread_t thread_;
  cpu_set_t own_, told_;
};

}  // namespace sumexp::cpu
