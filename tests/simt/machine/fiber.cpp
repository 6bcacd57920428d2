#include "fiber.hpp"

#include <cstdint>

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
// Frames stay on the stack of their fiber.
extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=0"; }
#endif

#if !defined(SIMT_UCONTEXT)
// simt_switch(void** save, void* load): push what the ABI says a call preserves, change stacks, pop.
// simt_start: where a fresh fiber "returns" to; calls entry(argument) found in preserved registers.
extern "C" void simt_switch(void** save, void* load);
extern "C" void simt_start();
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch, . - simt_switch
.globl simt_start
.type simt_start, @function
simt_start:
  mov %r12, %rdi
  call *%r13
  ud2
.size simt_start, . - simt_start
.section .note.GNU-stack,"",@progbits
.text
)");
#else
asm(R"(
.text
.globl simt_switch
.type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, . - simt_switch
.globl simt_start
.type simt_start, %function
simt_start:
  mov x0, x19
  blr x20
  brk #1
.size simt_start, . - simt_start
.section .note.GNU-stack,"",%progbits
.text
)");
#endif
#endif

namespace simt {

#if defined(SIMT_UCONTEXT)
namespace {
void relay(unsigned a, unsigned b, unsigned c, unsigned d) {  // makecontext passes ints only
  auto join = [](unsigned lo, unsigned hi) {
    return reinterpret_cast<void*>(std::uintptr_t(lo) | (std::uintptr_t(hi) << 16 << 16));
  };
  reinterpret_cast<void (*)(void*)>(join(a, b))(join(c, d));
}
}  // namespace
#endif

void Fiber::prepare(void* stack, std::size_t bytes, void (*entry)(void*), void* argument) {
#if defined(SIMT_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  auto e = reinterpret_cast<std::uintptr_t>(entry), a = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&context_, reinterpret_cast<void (*)()>(relay), 4, unsigned(e), unsigned(e >> 16 >> 16), unsigned(a),
              unsigned(a >> 16 >> 16));
#else
  auto top = (reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  frame -= 3;  // leaves rsp % 16 == 0 at simt_start's call
  frame[0] = reinterpret_cast<void*>(simt_start);
  frame[1] = frame[2] = nullptr;
  frame -= 6;  // r15 r14 r13 r12 rbx rbp
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  frame[2] = reinterpret_cast<void*>(entry);
  frame[3] = argument;
#else
  frame -= 20;
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[0] = argument;                              // x19
  frame[1] = reinterpret_cast<void*>(entry);        // x20
  frame[11] = reinterpret_cast<void*>(simt_start);  // x30
#endif
  sp_ = frame;
#endif
}

void Fiber::swap(Fiber& from, Fiber& to) {
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  simt_switch(&from.sp_, to.sp_);
#endif
}

void Fiber::abandoned([[maybe_unused]] void* stack, [[maybe_unused]] std::size_t bytes) {
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(stack, bytes);
#endif
}

}  // namespace simt
