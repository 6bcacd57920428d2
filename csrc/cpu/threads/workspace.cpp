#include "workspace.hpp"

#include <cstdlib>
#include <new>

#include "floating_point.hpp"
#include "pool.hpp"

namespace sumexp::cpu {

namespace {

void* allocate(std::size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return p;
}

}  // namespace

Workspace::~Workspace() {
  for (Block& block : blocks_) std::free(block.data);
  std::free(kept_.data);
}

void Workspace::reset() {
  // one block as large as all that the last call used: later calls find everything in it
  std::size_t total = 0;
  for (const Block& block : blocks_) total += block.used;
  blocks_[0].used = 0;
  if (!blocks_[1].data) return;
  for (Block& block : blocks_) {
    std::free(block.data);
    block = Block{};
  }
  blocks_[0].data = allocate(total);
  blocks_[0].size = total;
}

void* Workspace::take_bytes(std::size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  for (Block& block : blocks_) {
    if (!block.data) {
      block.data = allocate(bytes);
      block.size = bytes;
    }
    if (block.size - block.used >= bytes) {
      void* p = static_cast<char*>(block.data) + block.used;
      block.used += bytes;
      return p;
    }
  }
  throw std::bad_alloc();
}

void* Workspace::keep_bytes(std::size_t bytes) {
  if (kept_.size < bytes) {
    std::free(kept_.data);
    kept_ = Block{};
    kept_.data = allocate(bytes);
    kept_.size = bytes;
  }
  return kept_.data;
}

Workspace& thread_workspace() {
  thread_local Workspace workspace;
  return workspace;
}

void run_parts(std::int64_t tasks, int threads, PartBody body, void* context) {
  struct Parts {
    PartBody body;
    void* context;
  } parts = {body, context};
  parallel_for(
      tasks, threads,
      [](void* p, std::int64_t i) {
        const DefaultFloatingPoint mode;
        const Parts& parts = *static_cast<Parts*>(p);
        parts.body(parts.context, i, thread_workspace());
      },
      &parts);
}

}  // namespace sumexp::cpu
