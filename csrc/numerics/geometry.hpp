// The fixed order in which a row is summed. It depends on the element type and on n, on nothing else.
//
//   lane      element i of a chunk belongs to lane i mod kLanes
//   lane row  kLanes consecutive elements: 1 KB of float, 512 bytes of double
//   chunk     kLaneRows lane rows
//   group     kGroup consecutive lanes, 64 bytes; lane l is member l mod kGroup of column l / kGroup
//
// 1. Inside a chunk every lane sums its (at most 8) elements in order, in T.
// 2. The columns of a chunk fold as a binary tree over neighbours, in T: (0+1)+(2+3), ...
// 3. The members of the one group that is left widen to W and fold by halves: j += j + 8, + 4, + 2, + 1.
// 4. Chunks merge as a binary tree over their index (MergeTree).
//
// An element that is absent adds +0, which changes no bit, so tails need no rule of their own.
#pragma once

#include "wide.hpp"

namespace sumexp::SUMEXP_NS {

template <class T>
struct Geometry {
  static constexpr int kGroup = 64 / sizeof(T);  // 16, 8
  static constexpr int kLanes = sizeof(T) == 4 ? 256 : 64;
  static constexpr int kColumns = kLanes / kGroup;  // 16, 8
  static constexpr int kLaneRows = 8;
  static constexpr int kChunk = kLanes * kLaneRows;  // 2048, 512
};

template <class T>
SUMEXP_FN std::int64_t chunk_count(std::int64_t n) {
  return (n + Geometry<T>::kChunk - 1) / Geometry<T>::kChunk;
}

// The tree over chunks, built like a binary counter: level k holds the merged state of 2^k chunks.
// States are pushed in order; `push(state, k)` adds the state of an aligned block of 2^k chunks, which is
// how a row split over threads or CUDA blocks keeps the same tree.
template <class State>
class MergeTree {
 public:
  SUMEXP_FN void push(State state, int level = 0) {
    while ((filled_ >> level) & 1) {
      state = merge(stack_[level], state);
      filled_ &= ~(std::uint64_t(1) << level);
      ++level;
    }
    stack_[level] = state;
    filled_ |= std::uint64_t(1) << level;
  }
  // The root: `last`, which may be the state of an incomplete block, after everything that was pushed.
  SUMEXP_FN State finish(State last) const {
    for (int level = 0; level < kLevels; ++level)
      if ((filled_ >> level) & 1) last = merge(stack_[level], last);
    return last;
  }
  SUMEXP_FN void clear() { filled_ = 0; }

 private:
  static constexpr int kLevels = 32;  // 2^32 chunks
  State stack_[kLevels];
  std::uint64_t filled_ = 0;
};

}  // namespace sumexp::SUMEXP_NS
