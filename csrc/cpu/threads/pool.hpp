// A small lazy thread pool: no OpenMP (a second runtime beside a framework's spins against it and hangs
// after fork), no change of floating-point modes in workers. Threads start at the first parallel call, sleep between calls,
// and keep off the caller's CPU (worker.hpp). After fork the child starts with a pool of its own.
#pragma once

#include <cstdint>

namespace sumexp::cpu {

using Task = void (*)(void* context, std::int64_t index);

// Calls task(context, i) for every i in [0, tasks), on up to `threads` threads, the caller's among them.
// Which thread runs which task is left open: results must not depend on it. A second caller that finds the
// pool busy runs its tasks alone. If no thread can be started the caller does the work. Throws
// std::bad_alloc, after all tasks have ended, when one of them did.
void parallel_for(std::int64_t tasks, int threads, Task task, void* context);

int default_threads();  // SUMEXP_NUM_THREADS, else the CPUs that this process may keep busy (machine.hpp)

}  // namespace sumexp::cpu
