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

// One block as large as all that the last call used: later calls find everything in it.
void Workspace::join() {
  std::size_t total = 0;
  for (Block& block : blocks_) {
    total += block.used;
    std::free(block.data);
    block = Block{};
  }
  blocks_[0].data = allocate(total);
  blocks_[0].size = total;
}

void* Workspace::take_more(std::size_t bytes) {
  for (Block& block : blocks_) {
    if (!block.data) {
      block.data = allocate(bytes);
      block.size = bytes;
    }
    if (block.size - block.used < bytes) continue;
    void* const p = static_cast<char*>(block.data) + block.used;
    block.used += bytes;
    return p;
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

// Nothing that is destroyed: destructors of static and thread_local objects may call after this thread's own have run. What
// they take then is leaked.
thread_local struct {
  alignas(Workspace) unsigned char place[sizeof(Workspace)];
  Workspace* made;
} t_workspace;

Workspace& thread_workspace() {
  struct Last {
    ~Last() {
      t_workspace.made->~Workspace();
      t_workspace.made = nullptr;
    }
  };
  if (!t_workspace.made) {
    t_workspace.made = new (t_workspace.place) Workspace;
    thread_local const Last last;
  }
  return *t_workspace.made;
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
