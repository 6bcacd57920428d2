// A toy kernel in the manner of csrc/cuda, with faults to plant: it proves that the machine runs
// what is right and catches what is wrong.
//
// sums[r] = sum of x[r, 0..n) in one fixed order: thread t adds x[t], x[t + threads], ...; 32 lanes
// fold by halves; the warps' sums add up in order; then the cluster's blocks in order of rank, and
// total = the sums in order, by whichever block finishes last.
#pragma once

#include "arch/arch.hpp"

namespace toy {

namespace arch = sumexp::arch;

enum class Fault {
  none,
  no_barrier,             // warps' sums read before they are all written
  no_second_barrier,      // shared memory written again while somebody still reads it
  lane_order,             // the fold runs 1, 2, .. 16 instead of 16, 8, .. 1
  tail,                   // the last vector load passes the end of the row
  tail_store,             // one element written past the end
  mask,                   // odd lanes name another mask
  absent_lane,            // the mask names lanes that do not come
  undefined_lane,         // a shuffle reads a lane outside its mask
  diverged_barrier,       // half of the block waits at another barrier
  early_exit,             // one warp leaves before the barrier
  misaligned,             // a vector load off by one element
  no_first_cluster_sync,  // a neighbour's shared memory read before it started
  no_last_cluster_sync,   // a block leaves while others read its shared memory
  shared_overrun,         // writes behind a shared array
  torn_counter,           // no atomic: the last block is not recognised
  torn_shared_counter,    // the same in shared memory: threads of a block are lost
};

template <Fault fault>
SUMEXP_DEVICE float fold_warp(float v) {
  for (int k = 0; k < 5; ++k) {
    const int bits = fault == Fault::lane_order ? 1 << k : 16 >> k;
    unsigned mask = arch::whole_warp;
    if (fault == Fault::mask && (arch::lane() & 1)) mask = 0xfffffffeu;
    v += arch::shfl_xor(v, bits, mask);
  }
  return v;
}

// x: (rows, n) f32, rows 16-byte aligned; grid.x = rows * cluster; cluster c of a row takes the n / c
// elements of its rank (n a multiple of the cluster size when that is not 1)
template <Fault fault>
__global__ void __launch_bounds__(256)
    sum_rows(const float* x, long long stride, int n, float* sums, float* total, unsigned* done) {
  SUMEXP_SHARED(float, partial, 8);
  SUMEXP_SHARED(float, of_block, 1);
  SUMEXP_SHARED(unsigned, is_last, 1);
  SUMEXP_SHARED(unsigned, counted, 1);
  const int ranks = arch::cluster_size(), rank = arch::cluster_rank();
  const int row = int(blockIdx.x) / ranks, rows = int(gridDim.x) / ranks;
  const int threads = int(blockDim.x), t = int(threadIdx.x);
  const int mine = n / ranks;
  const float* p = x + row * stride + rank * mine;

  float v = 0;
  const int whole = mine / 4 * 4;
  for (int i = 4 * t; i < whole + (fault == Fault::tail); i += 4 * threads) {
    const arch::Pack<float> a = arch::load16(p + i + (fault == Fault::misaligned));
    v += a.v[0] + a.v[1] + a.v[2] + a.v[3];
  }
  if (whole + t < mine) v += p[whole + t];
  if (fault == Fault::early_exit && arch::warp() == 1) return;
  if (fault == Fault::absent_lane && arch::lane() >= 16) {
    arch::block_sync();
    return;
  }
  v = fold_warp<fault>(v);
  if (fault == Fault::undefined_lane && arch::lane() < 16) v = arch::shfl_down(v, 1, 0xffffu);

  if (t == 0) counted[0] = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the second pass writes what the first has read
    if (arch::lane() == 0) partial[arch::warp() + (fault == Fault::shared_overrun ? 8 : 0)] = v * float(1 + pass);
    if (fault == Fault::diverged_barrier && arch::warp() == 0) arch::block_sync();
    else if (fault != Fault::no_barrier) arch::block_sync();
    float s = 0;
    for (int w = 0; w < threads / 32; ++w) s += partial[w];
    if (pass == 0 && fault == Fault::torn_shared_counter) {
      const unsigned before = counted[0];
      arch::fence();
      counted[0] = before + 1;
    } else if (pass == 0) {
      arch::atomic_add(counted, 1u);
    }
    if (fault != Fault::no_second_barrier) arch::block_sync();
    if (pass == 0) v = fault == Fault::no_barrier || fault == Fault::no_second_barrier ? arch::shfl(s, 0) : v;
    if (pass == 1 && t == 0) of_block[0] = counted[0] == unsigned(threads) ? s * 0.5f : -1;
  }

  if (fault != Fault::no_first_cluster_sync) arch::cluster_sync();
  if (rank == 0 && t == 0) {
    float s = 0;
    for (int r = 0; r < ranks; ++r) s += *arch::dsmem(of_block, r);
    sums[row + (fault == Fault::tail_store && row == rows - 1)] = s;
    arch::fence();
    unsigned before = 0;
    if (fault == Fault::torn_counter) {
      before = *done;
      arch::fence();
      *done = before + 1;
    } else {
      before = arch::atomic_add(done, 1u);
    }
    is_last[0] = before + 1 == unsigned(rows);
  }
  if (fault != Fault::no_last_cluster_sync) arch::cluster_sync();
  if (rank == 0 && t == 0 && is_last[0]) {
    arch::fence();
    float s = 0;
    for (int r = 0; r < rows; ++r) s += sums[r];
    *total = s;
  }
}

template <Fault fault>
cudaError_t launch_sum_rows(const float* x, long long stride, int rows, int n, int threads, int cluster, float* sums,
                            float* total, unsigned* done, cudaStream_t stream) {
  arch::Launch how;
  how.grid = dim3(unsigned(rows * cluster));
  how.block = dim3(unsigned(threads));
  how.cluster = unsigned(cluster);
  how.stream = stream;
  return arch::launch(sum_rows<fault>, how, x, stride, n, sums, total, done);
}

}  // namespace toy
