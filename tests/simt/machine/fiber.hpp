// A fiber: a stack of its own and a saved place to continue. Switching is a dozen instructions of
// assembly on x86-64 and aarch64 (ucontext makes a system call per switch) and ucontext elsewhere.
// AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif

#if !defined(SIMT_UCONTEXT) && !((defined(__x86_64__) || defined(__aarch64__)) && defined(__linux__))
#define SIMT_UCONTEXT 1
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // The next switch to this fiber calls entry(argument) on the given stack. `entry` never returns:
  // it ends with a last switch.
  void prepare(void* stack, std::size_t bytes, void (*entry)(void*), void* argument);

  // Saves this place in `from` and continues `to`. `last`: `from` will not be continued.
  static void swap(Fiber& from, Fiber& to, bool last = false);

  // First call of every entry function.
  static void entered();

 private:
#if defined(SIMT_UCONTEXT)
  ucontext_t context_;
#else
  void* sp_ = nullptr;
#endif
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace simt
