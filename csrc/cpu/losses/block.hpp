// A task of cross-entropy: some rows of a call, by one thread.
#pragma once

#include "../kernels/losses.hpp"
#include "../threads/workspace.hpp"
#include "call_rows.hpp"

namespace sumexp::cpu {

constexpr int kMostRows = 64;  // that are laid out together

struct LossWork {
  const Rows& rows;
  const LossJob& job;
  const Kernels& table;
  const LossKernels& kernels;
  int item, wide;
  std::int64_t chunk, block;  // rows of a task, a power of two
  double denominator;
  bool nothing_left;     // a mean of nothing, and that is to be 0
  double* block_sums;    // a wide number for each block: hi, and lo
  std::int64_t at_once;  // rows that are copied, transposed, or only laid out together
  bool copies;           // rows are copied to contiguous ones of T
  bool copies_target;    // so are their probabilities
  bool by_table;         // rows go to the drivers of the table's operations
  bool tiles;            // rows are transposed
  std::int64_t saved;    // bytes of a row
};

// Task i: rows from i * work.block on.
void run_loss_block(const LossWork& work, std::int64_t i, Workspace& workspace);

}  // namespace sumexp::cpu
