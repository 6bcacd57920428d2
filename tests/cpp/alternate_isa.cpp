// Linked with --wrap=isa_in_use: with SUMEXP_ALTERNATE in the environment, whoever looks for the instruction set in use finds
// another than at the last look, as if set_isa was called meanwhile. What belongs together has to come of one look.
#include <atomic>
#include <cstdlib>

extern "C" int __real__ZN6sumexp3cpu10isa_in_useEv();
extern "C" int __wrap__ZN6sumexp3cpu10isa_in_useEv();

int __wrap__ZN6sumexp3cpu10isa_in_useEv() {
  static const bool alternate = std::getenv("SUMEXP_ALTERNATE") != nullptr;
  static std::atomic<unsigned> looks{0};
  return alternate && looks++ % 2 == 0 ? 0 : __real__ZN6sumexp3cpu10isa_in_useEv();
}
