// What the machine remembers while a grid runs: threads in warps in blocks in clusters.
#pragma once

#include <map>
#include <random>
#include <vector>

#include "fiber.hpp"
#include "machine.hpp"
#include "memory.hpp"

namespace simt {

struct Warp;
struct Block;
struct Cluster;

enum class Waits { no, for_warp, for_block, for_cluster, gone };

struct Thread {
  Position at;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Fiber fiber;
  Region stack;
  // While waiting: for what, and what was brought along.
  Waits waits = Waits::no;
  Site site = {};
  Move move = Move::none;
  unsigned mask = 0;
  int argument = 0;
  std::size_t bytes = 0;
  alignas(16) unsigned char value[64];
};

struct Warp {
  Thread* lanes[32] = {};
  int size = 0;
  // A bit per lane: can run; waits for other lanes; has left the kernel.
  unsigned ready = 0, waiting = 0, gone = 0;
  std::size_t place = 0;  // in Machine::ready, when ready != 0
};

struct Block {
  Cluster* cluster = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Region dynamic, fixed;  // shared memory: asked for at the launch; declared in the kernel
  unsigned arrived = 0, gone = 0;
};

struct Cluster {
  std::vector<Block> blocks;
  unsigned arrived = 0, gone = 0, syncs = 0;
  bool busy = false;
};

// A statically declared shared variable has one offset in every block of a launch.
struct SharedVariable {
  std::size_t offset, bytes;
  const char* name;
};

struct Machine {
  Settings settings;
  Counters counters;
  std::uint64_t launches_of_seed = 0;
  std::string error;
  cudaError_t code = cudaSuccess;
  std::uint64_t random_state = 1;

  Shape shape;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  Fiber scheduler;
  Thread* running = nullptr;
  std::vector<Cluster> clusters;
  std::vector<Region> stacks;  // for reuse
  std::vector<Warp*> ready;    // warps with a lane that can run
  Warp* favourite = nullptr;
  std::map<const void*, SharedVariable> variables;
  std::size_t fixed_used = 0;

  std::uint64_t random() {  // splitmix64
    std::uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) { return std::uint64_t((unsigned __int128)(random()) * n >> 64); }
};
inline Machine& machine() {
  static auto* m = new Machine;  // outlives static destructors
  return *m;
}

// scheduler.cpp
void make_ready(Thread& t);
void switch_away(Thread& t);  // to any thread that can run; returns when t, made ready, is that
// Text that may still be in use when a fiber is abandoned: it lives in a ring of static buffers.
const char* words(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* who(const Thread& t);   // "thread (3,0,0) of block (1,0,0)"
const char* what(const Thread& t);  // "waits at shfl_xor (fold.cuh:40, mask 0xffffffff)"
[[noreturn]] void fail_as(const Thread& t, cudaError_t code, const char* text);

// collectives.cpp
void draw_fence(Block& b, const SharedVariable& v);          // a few bytes behind a shared variable that
bool fence_stands(const Block& b, const SharedVariable& v);  // nobody may write
void leave(Thread& t);                                       // t returned from the kernel: is anybody waiting for it?

// memory.cpp
void install_fault_handler();
void* running_stack_top();  // nullptr outside kernels

}  // namespace simt
