// Scratch memory of one thread, reused from call to call, and the way a kernel hands parts of a row to the
// pool. Everything here is compiled once, outside the per-ISA files: only plain functions cross over.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sumexp::cpu {

class Workspace {
 public:
  ~Workspace();
  // Everything from take_bytes is gone.
  void reset() {
    if (blocks_[1].data) join();
    blocks_[0].used = 0;
  }
  // 64-byte aligned, valid until reset; throws std::bad_alloc.
  void* take_bytes(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    Block& first = blocks_[0];
    if (first.size - first.used < bytes) return take_more(bytes);
    void* const p = static_cast<char*>(first.data) + first.used;
    first.used += bytes;
    return p;
  }
  void* keep_bytes(std::size_t bytes);  // one block that survives reset; a second call replaces it

 private:
  void join();
  void* take_more(std::size_t bytes);

  struct Block {
    void* data = nullptr;
    std::size_t size = 0, used = 0;
  };
  static constexpr int kBlocks = 8;
  Block blocks_[kBlocks];
  Block kept_;
};

Workspace& thread_workspace();

// Runs body(context, i, workspace of the running thread) for i in [0, tasks).
using PartBody = void (*)(void* context, std::int64_t i, Workspace& workspace);
void run_parts(std::int64_t tasks, int threads, PartBody body, void* context);

}  // namespace sumexp::cpu
