#include "memory.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "state.hpp"

namespace simt {
namespace {

std::size_t page() {
  static const std::size_t size = std::size_t(sysconf(_SC_PAGESIZE));
  return size;
}

struct Named {
  std::size_t bytes;
  std::string name;
};
std::map<std::uintptr_t, Named>& regions() {  // by begin()
  static auto* all = new std::map<std::uintptr_t, Named>;
  return *all;
}

void* fault_address = nullptr;

[[noreturn]] void land() { fail(cudaErrorIllegalAddress, "touched %s", describe_address(fault_address)); }

// A fault inside a kernel: continue that fiber in land(), at the top of its own stack (nothing on
// it is needed again). A fault anywhere else is not ours: back to the default action.
void on_fault(int signal, siginfo_t* info, void* context) {
  void* top = running_stack_top();
  if (top == nullptr) {
    ::signal(signal, SIG_DFL);
    return;
  }
  fault_address = info->si_addr;
  auto* uc = static_cast<ucontext_t*>(context);
#if defined(__x86_64__) && defined(__linux__)
  uc->uc_mcontext.gregs[REG_RSP] = greg_t(reinterpret_cast<std::uintptr_t>(top) - 64 - 8);
  uc->uc_mcontext.gregs[REG_RIP] = greg_t(reinterpret_cast<std::uintptr_t>(&land));
#elif defined(__aarch64__) && defined(__linux__)
  uc->uc_mcontext.sp = reinterpret_cast<std::uintptr_t>(top) - 64;
  uc->uc_mcontext.pc = reinterpret_cast<std::uintptr_t>(&land);
#else
  (void)uc;
  ::signal(signal, SIG_DFL);
#endif
}

}  // namespace

void install_fault_handler() {
  static bool done = false;
  if (done) return;
  done = true;
  stack_t old = {};
  sigaltstack(nullptr, &old);
  if (old.ss_flags & SS_DISABLE) {
    static unsigned char* stack = new unsigned char[65536];
    stack_t mine = {};
    mine.ss_sp = stack;
    mine.ss_size = 65536;
    sigaltstack(&mine, nullptr);
  }
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

Region::Region(std::size_t bytes, const char* name) {
  bytes_ = (bytes + page() - 1) / page() * page();
  void* all = mmap(nullptr, bytes_ + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) {
    std::perror("simt: mmap");
    std::abort();
  }
  base_ = static_cast<unsigned char*>(all) + page();
  allow();
  regions()[reinterpret_cast<std::uintptr_t>(base_)] = {bytes_, name};
}

Region::~Region() {
  if (base_ == nullptr) return;
  regions().erase(reinterpret_cast<std::uintptr_t>(base_));
  munmap(base_ - page(), bytes_ + 2 * page());
}

void Region::forbid() { mprotect(base_, bytes_, PROT_NONE); }
void Region::allow() { mprotect(base_, bytes_, PROT_READ | PROT_WRITE); }

const char* describe_address(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (const auto& [begin, region] : regions()) {
    const auto end = begin + region.bytes;
    if (at < begin - page() || at >= end + page()) continue;
    if (at >= end) return words("byte %zu past the end of %s", std::size_t(at - end), region.name.c_str());
    if (at < begin) return words("byte %zu before the start of %s", std::size_t(begin - at), region.name.c_str());
    return words("%s, which is no longer there", region.name.c_str());
  }
  return words("address %p, which is in no buffer", address);
}

}  // namespace simt
