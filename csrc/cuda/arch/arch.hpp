// The one place that knows which chip this is. Kernels speak the vocabulary below and nothing
// else; it has two implementations with the same names and meanings:
//
//   nvidia.hpp           nvcc: intrinsics and PTX, __CUDA_ARCH__ decides inside
//   machine/arch.hpp     host compiler: the machine of tests/simt, which checks every rule
//
// Who am I        lane() warp() lane_count  threadIdx blockIdx blockDim gridDim  cluster_rank() cluster_size()
// Warp            shfl(v, lane) shfl_xor(v, bits) shfl_down(v, delta) ballot(p) any(p) warp_sync()
//                 warp_add(int), of the whole warp
//                 each takes a mask last (default: the whole warp); v is any trivially copyable
//                 type of 4, 8, 12, ... 64 bytes; every lane read must be in the mask
// Number          larger(a, b): a NaN loses
// Block           block_sync()  SUMEXP_SHARED(T, name, count)  dynamic_shared<T>()
// Cluster         cluster_sync() cluster_rank() cluster_size() dsmem(ptr, rank): from sm_90 on; before, a block by
//                 itself is its cluster
// Memory          load16(p) stream_load16(p) store16(p, v) stream_store16(p, v): 16 aligned bytes as a
//                 Pack<T>. "stream": used once, do not keep it in the cache
// Atomics         fence() atomic_add(p, v) -> what was there; p in global or in shared memory
// Host            launch(kernel, Launch{...}, args...) -> cudaError_t; query(Device&) -> cudaError_t
//                 can_cluster(kernel, Launch{...}) -> bool: can the current device run it in such clusters?
//                 get_device(id) set_device(id) synchronize(stream) device_count(n) -> cudaError_t
//                 device_at(address) error_name(e) error_text(e)
#pragma once

#include <cstddef>
#include <cstdint>

namespace sumexp::arch {

// 16 bytes of T: what one lane moves in one instruction.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / int(sizeof(T));
  T v[size];
};

inline constexpr int lane_count = 32;
inline constexpr unsigned whole_warp = 0xffffffffu;
inline constexpr int static_shared_limit = 4096;  // bytes that a kernel may declare beside dynamic ones

// What the selection of kernels looks at. `cc` is major * 10 + minor.
struct Device {
  int cc = 0;
  int sm_count = 0;
  int shared_optin = 0;  // largest dynamic shared memory of one block, bytes
};

}  // namespace sumexp::arch

#if defined(__CUDACC__)
#include "nvidia.hpp"
#elif defined(SUMEXP_SIMT)
#include "machine/arch.hpp"
#else
#error "csrc/cuda is compiled by nvcc, or by a host compiler for the machine of tests/simt (SUMEXP_SIMT)"
#endif
