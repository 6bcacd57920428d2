#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "machine.hpp"
#include "worker.hpp"

namespace sumexp::cpu {

namespace {

class Pool {
 public:
  void run(std::int64_t tasks, int threads, Task task, void* context) {
    std::unique_lock<std::mutex> caller(caller_mutex_, std::try_to_lock);
    if (!caller.owns_lock() || threads < 2) {
      for (std::int64_t i = 0; i < tasks; ++i) task(context, i);
      return;
    }
    start_workers(threads - 1);
    keep_off_the_callers_cpu();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task, context_ = context, tasks_ = tasks;
      failed_.store(false, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      wanted_ = threads - 1;
      ++round_;
    }
    for (int k = 1; k < threads; ++k) wake_.notify_one();
    take_tasks(task, context, tasks);
    for (int turn = 0; turn < kTurns && active_.load(std::memory_order_relaxed) > 0; ++turn) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // a worker that has not started on this round need not
    done_.wait(lock, [&] { return active_ == 0; });
    lock.unlock();
    if (failed_.load()) throw std::bad_alloc();
  }

 private:
  void take_tasks(Task task, void* context, std::int64_t tasks) noexcept {
    try {
      for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
    } catch (...) {
      failed_.store(true);
    }
  }

  // More workers than these are left where they are: telling each costs two system calls whenever the caller has moved.
  static constexpr std::size_t kFew = 4;
  // Turns of waiting for the last tasks before sleeping: some 20 microseconds, as long as waking takes.
  static constexpr int kTurns = 1000;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void keep_off_the_callers_cpu() {
    const int cpu = workers_.size() <= kFew ? sched_getcpu() : -1;
    cpu_set_t callers;
    if (cpu == avoided_ || sched_getaffinity(0, sizeof(callers), &callers) != 0) return;
    for (Worker& worker : workers_) worker.avoid(cpu, callers);
    avoided_ = cpu;
  }

  void start_workers(int count) {
    while (static_cast<int>(workers_.size()) < count) {
      try {
        workers_.reserve(workers_.size() + 1);  // what can fail, before there is a thread
        std::thread thread([this] { work(); });
        workers_.emplace_back(thread.native_handle());
        thread.detach();
        avoided_ = kUnknown;
      } catch (...) {
        return;  // fewer threads, same result
      }
    }
  }

  void work() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return round_ != seen && wanted_ > 0; });
      seen = round_;
      --wanted_, ++active_;
      const Task task = task_;
      void* context = context_;
      const std::int64_t tasks = tasks_;
      lock.unlock();
      take_tasks(task, context, tasks);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex caller_mutex_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<Worker> workers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::atomic<int> active_{0};  // changes under mutex_
  int wanted_ = 0;
  std::uint64_t round_ = 0;
  static constexpr int kUnknown = -2;
  int avoided_ = kUnknown;  // the CPU that all workers keep off; -1: none
};

// Deliberately leaked: workers may outlive static destruction, and a forked child must not touch the
// parent's mutexes, so it drops this pointer and makes a new pool.
std::atomic<Pool*> g_pool{nullptr};

Pool& pool() {
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current) return *current;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
  (void)registered;
  Pool* fresh = new Pool;
  if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void parallel_for(std::int64_t tasks, int threads, Task task, void* context) {
  if (threads < 2 || tasks < 2) {
    for (std::int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  pool().run(tasks, threads < tasks ? threads : static_cast<int>(tasks), task, context);
}

int default_threads() {
  const int given = static_cast<int>(environment_integer("SUMEXP_NUM_THREADS", 1, std::numeric_limits<int>::max(), 0));
  return given ? given : usable_cpus();
}

}  // namespace sumexp::cpu
