// A fiber: a stack of its own and a saved place to continue. Switching is a dozen instructions of
// assembly on x86-64 and aarch64 (ucontext makes a system call per switch) and ucontext elsewhere.
// AddressSanitizer watches the frames of every stack, and is not told of switches, which took it two thirds of the tests' time:
// nothing unwinds a stack here. (Where a launch fails it says once that it ignores a request.)
#pragma once

#include <cstddef>

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

  // Saves this place in `from` and continues `to`.
  static void swap(Fiber& from, Fiber& to);

  // Of a stack that is to be used again: whoever ran on it may have frames there, and will not be continued.
  static void abandoned(void* stack, std::size_t bytes);

 private:
#if defined(SIMT_UCONTEXT)
  ucontext_t context_;
#else
  void* sp_ = nullptr;
#endif
};

}  // namespace simt
