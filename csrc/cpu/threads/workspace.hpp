// Scratch memory of one thread, reused from call to call, and the way a kernel hands parts of a row to the
// pool. Everything here is compiled once, outside the per-ISA files: only plain functions cross over.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sumexp::cpu {

class Workspace {
 public:
  ~Workspace();
  void reset();                          // everything from take_bytes is gone
  void* take_bytes(std::size_t bytes);   // 64-byte aligned, valid until reset; throws std::bad_alloc
  void* keep_bytes(std::size_t bytes);   // one block that survives reset; a second call replaces it

 private:
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
