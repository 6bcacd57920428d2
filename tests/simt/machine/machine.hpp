// The machine: runs a grid of threads, each a fiber, on one host thread. See ../README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda_names.hpp"

namespace simt {

inline constexpr int device_count = 2;
inline constexpr std::size_t fixed_beside_dynamic = 4096;  // bytes of shared memory that a kernel with dynamic ones declares

// The device that the machine pretends to be, and the seed of its scheduler. Tests change it freely.
struct Settings {
  int device = 0;  // the current one
  int cc = 90;     // major * 10 + minor; clusters need 90
  int sm_count = 4;
  std::size_t shared_optin = 227 * 1024;
  unsigned max_cluster = 8;  // blocks; 1: as on a part of a chip without room for clusters
  int resident = 3;          // clusters (blocks, without clusters) in flight at once
  std::uint64_t seed = 1;    // every launch draws its own schedule from (seed, launches so far)
};
Settings& settings();
void reseed(std::uint64_t seed);  // also forgets the launches so far: the same run again

// What the last launch found wrong: "" after a success.
const std::string& error();

// What the launches so far did.
struct Counters {
  std::uint64_t launches = 0, threads = 0, switches = 0;
  int device = -1;  // of the last launch
};
const Counters& counters();

struct Shape {
  dim3 grid, block;
  std::size_t dynamic_shared = 0;
  unsigned cluster = 1;
};

// Runs body(argument) once per thread. All of it has happened when this returns.
cudaError_t run_grid(const Shape& shape, void (*body)(void*), void* argument);

// -- for code that runs inside a kernel -----------------------------------------------------------

struct Position {
  dim3 thread, block, block_dim, grid_dim;
  int lane = 0, warp = 0, cluster_rank = 0, cluster_size = 1;
};
extern const Position* self;  // the running thread; nullptr outside kernels

struct Site {
  const char* op;
  const char* file;
  int line;
};

enum class Move { index, exclusive_or, down, ballot, none };

// One warp-wide operation: waits for all of `mask`, then `value` (bytes, 64 at most) holds what
// the lane that `move` and `argument` name put in. For ballot, value is one unsigned.
void warp_collective(Move move, unsigned mask, int argument, void* value, std::size_t bytes, Site site);
void block_barrier(Site site);
void cluster_barrier(Site site);
void yield();  // others may run here

void* dynamic_shared_memory();
void* static_shared_memory(const void* tag, std::size_t bytes, const char* name);
void* peer_shared_memory(void* mine, int rank);
void check_aligned(const void* p, std::size_t alignment, const char* op);

// Ends the launch with this error. The calling fiber is never continued.
[[noreturn]] void fail(cudaError_t code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace simt
