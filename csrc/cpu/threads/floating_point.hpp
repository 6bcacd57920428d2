// Round to nearest, gradual underflow, no traps: what the definition is written for. A caller may have set something else
// (torch.set_flush_denormal, a library built with -ffast-math), and so may whoever started the threads: for the time of a
// call the control register has its default, and afterwards what it had. Sticky exception flags stay, old and new.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sumexp::cpu {

class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : saved_(read()) {
    if ((saved_ & kControl) != kDefault) write((saved_ & ~kControl) | kDefault);
  }
  ~DefaultFloatingPoint() {
    if ((saved_ & kControl) != kDefault) write((read() & ~kControl) | (saved_ & kControl));
  }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  static constexpr Register kControl = 0xffc0, kDefault = 0x1f80;  // MXCSR; the low six bits are the flags
  static Register read() { return _mm_getcsr(); }
  static void write(Register r) { _mm_setcsr(r); }
#elif defined(__aarch64__)
  using Register = std::uint64_t;
  static constexpr Register kControl = ~Register{0}, kDefault = 0;  // FPCR; the flags are in FPSR
  static Register read() {
    Register r;
    asm volatile("mrs %0, fpcr" : "=r"(r));
    return r;
  }
  static void write(Register r) { asm volatile("msr fpcr, %0" : : "r"(r)); }
#else
  using Register = unsigned;
  static constexpr Register kControl = 0, kDefault = 0;
  static Register read() { return 0; }
  static void write(Register) {}
#endif

  Register saved_;
};

}  // namespace sumexp::cpu
