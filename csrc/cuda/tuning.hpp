// Which kernel serves which call: the thresholds, apart from the algorithms, and why they are what they are.
#pragma once

#include <cstdint>

#include "arch/arch.hpp"
#include "job.hpp"

namespace sumexp::cuda {

enum class Path : int { choose, warp, block, cluster, stream };

struct Choice {
  Path path;
  int warps;      // per block
  int cluster;    // blocks per cluster
  int lane_rows;  // warp: 1, 2, 4 or 8 of them in registers
};

// What the choice depends on, besides the device.
struct Row {
  std::int64_t rows, n, chunks;
  int lanes;        // elements of a lane row: 256, f64 64
  int item;         // bytes of a stored element
  int max_warps;    // that the registers allow (operations.cuh)
  int stage;        // bytes of shared memory a warp needs to hold its chunk, 0 when packed
  bool one_read;    // the operation can keep its row in registers
  bool row_output;  // nothing to write: streaming reads once too
  Access access;
};

// Warps of a block of the warp-per-row and streaming kernels, where rows do not lie side by side: small blocks leave
// the SM in small steps. The kernels' launch bounds count on it.
inline constexpr int kPackedWarps = 4;

// Thresholds by compute capability: the first row whose `cc` is not above the device's.
//
// None of these has been measured on a GPU yet; the reasons are the register and cache budgets:
//   columns_bytes  neighbouring rows that a block takes together: whole 32-byte sectors, twice over; 16-bit rows end
//                  at the block's warps, a sector or half of one
//   max_cluster    the largest portable cluster; none before sm_90
//   fill           clusters keep a row on few SMs: streaming has more of the chip when rows are fewer
//                  than this many per SM
struct Tuning {
  int cc;
  int columns_bytes, max_cluster;
  double fill;
};
inline constexpr Tuning kTunings[] = {
    {90, 64, 8, 0.5},
    {0, 64, 1, 0.5},
};

inline const Tuning& tuning_for(const arch::Device& device) {
  for (const Tuning& t : kTunings)
    if (device.cc >= t.cc) return t;
  return kTunings[0];
}

// Warps whose chunks fit in shared memory, 4 KB set aside for static variables.
inline int staged_warps(const arch::Device& device, const Row& row) {
  if (row.stage == 0) return row.max_warps;
  const int shared = device.shared_optin > 0 ? device.shared_optin : 99 * 1024;  // the least of sm_80 and newer
  const int fit = (shared - arch::static_shared_limit) / row.stage;
  return fit < row.max_warps ? fit : row.max_warps;
}
inline int columns_warps(const Tuning& t, const arch::Device& device, const Row& row) {
  const int fit = staged_warps(device, row);
  int warps = t.columns_bytes / row.item;
  while (warps > fit) warps /= 2;  // whole sectors
  return warps;
}

// `wanted`: Path::choose, or the path that a test asks for; a path that cannot serve the call is replaced
// by streaming, which serves any.
inline Choice choose(const arch::Device& device, const Row& row, Path wanted) {
  const Tuning& t = tuning_for(device);
  const int small = row.access == Access::columns ? columns_warps(t, device, row) : kPackedWarps;
  const bool whole_block = row.access != Access::columns;
  const int most = staged_warps(device, row);
  if (row.chunks == 1 && (wanted == Path::choose || wanted == Path::warp)) {
    const std::int64_t lane_rows = (row.n + row.lanes - 1) / row.lanes;
    return {Path::warp, small, 1, lane_rows <= 2 ? int(lane_rows) : lane_rows <= 4 ? 4 : 8};
  }
  if (row.chunks <= most && whole_block && (wanted == Path::choose || wanted == Path::block))
    return {Path::block, int(row.chunks), 1, 8};
  if (whole_block && t.max_cluster > 1 && (wanted == Path::choose || wanted == Path::cluster)) {
    int warps = 1, cluster = 2;  // powers of two: a block's chunks must be a node of the row's tree
    while (2 * warps <= most) warps *= 2;
    while (cluster < t.max_cluster && std::int64_t(cluster) * warps < row.chunks) cluster *= 2;
    const bool fits = std::int64_t(cluster) * warps >= row.chunks;
    const bool fills = double(row.rows) * cluster >= t.fill * device.sm_count;
    if (fits && (wanted == Path::cluster || (fills && row.one_read && !row.row_output)))
      return {Path::cluster, warps, cluster, 8};
  }
  return {Path::stream, small, 1, 8};
}

}  // namespace sumexp::cuda
