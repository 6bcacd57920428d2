// The workspace of the streaming kernels: a state a chunk, what merging them needs, finished rows, and their maxima.
#pragma once

#include "job.hpp"
#include "operations.cuh"

namespace sumexp::SUMEXP_NS {

inline constexpr int kMergeThreads = 256, kFan = 8, kBoard = 128;

// States beyond those that fit in shared memory: what merge_rows needs per row.
SUMEXP_FN constexpr std::int64_t scratch_states(std::int64_t chunks) {
  std::int64_t total = 0;
  for (std::int64_t n = (chunks + kFan - 1) / kFan; n > kBoard; n = (n + kFan - 1) / kFan) total += n;
  return total;
}

inline constexpr std::size_t kAlign = 256;
constexpr std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

template <class Finish>
struct Workspace {
  typename Finish::State *states, *scratch;
  typename Finish::Row* rows;
  typename Finish::T* tops;  // of rows whose quotients may overflow (reduce_apart)
  std::size_t bytes;

  Workspace(const Job& job, void* at) {
    const std::size_t n = std::size_t(job.rows);
    const std::size_t a = aligned(n * std::size_t(job.chunks) * sizeof(*states));
    const std::size_t b = aligned(n * std::size_t(scratch_states(job.chunks)) * sizeof(*states));
    auto* p = static_cast<char*>(at);
    states = reinterpret_cast<typename Finish::State*>(p);
    scratch = reinterpret_cast<typename Finish::State*>(p + a);
    rows = reinterpret_cast<typename Finish::Row*>(p + a + b);
    const std::size_t c = aligned(n * sizeof(*rows));
    tops = reinterpret_cast<typename Finish::T*>(p + a + b + c);
    bytes = a + b + c + (job.overflow ? aligned(n * sizeof(*tops)) : 0);
  }
};

}  // namespace sumexp::SUMEXP_NS
