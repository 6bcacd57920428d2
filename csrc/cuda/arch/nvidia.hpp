// arch.hpp's vocabulary on NVIDIA GPUs.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#define SUMEXP_DEVICE __device__ __forceinline__

// A kernel parameter that stays in constant memory however it is indexed.
#define SUMEXP_PARAMETER const __grid_constant__

// A statically sized array in shared memory.
#define SUMEXP_SHARED(T, name, count) __shared__ T name[count]

namespace sumexp::arch {

SUMEXP_DEVICE int lane() { return int(threadIdx.x & 31u); }
SUMEXP_DEVICE int warp() { return int(threadIdx.x >> 5); }

// -- warp ------------------------------------------------------------------------------------------

namespace detail {
template <class T>
struct Words {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 64, "shuffled values are whole 32-bit words");
  union {
    unsigned w[sizeof(T) / 4];
    T value;
  };
  SUMEXP_DEVICE Words() {}
};
template <class T, class Move>
SUMEXP_DEVICE T by_words(const T& v, Move move) {
  Words<T> a;
  a.value = v;
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 4); ++i) a.w[i] = move(a.w[i]);
  return a.value;
}
}  // namespace detail

template <class T>
SUMEXP_DEVICE T shfl(T v, int from, unsigned mask = whole_warp) {
  return detail::by_words(v, [=](unsigned w) { return __shfl_sync(mask, w, from); });
}
template <class T>
SUMEXP_DEVICE T shfl_xor(T v, int bits, unsigned mask = whole_warp) {
  return detail::by_words(v, [=](unsigned w) { return __shfl_xor_sync(mask, w, bits); });
}
template <class T>
SUMEXP_DEVICE T shfl_down(T v, int delta, unsigned mask = whole_warp) {
  return detail::by_words(v, [=](unsigned w) { return __shfl_down_sync(mask, w, unsigned(delta)); });
}
SUMEXP_DEVICE unsigned ballot(bool p, unsigned mask = whole_warp) { return __ballot_sync(mask, p); }
SUMEXP_DEVICE bool any(bool p, unsigned mask = whole_warp) { return __any_sync(mask, p); }
SUMEXP_DEVICE int warp_add(int v) { return __reduce_add_sync(whole_warp, v); }
SUMEXP_DEVICE void warp_sync(unsigned mask = whole_warp) { __syncwarp(mask); }

// The larger of two numbers; of a number and a NaN, the number.
SUMEXP_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
SUMEXP_DEVICE double larger(double a, double b) { return fmax(a, b); }

// -- block and cluster -----------------------------------------------------------------------------

SUMEXP_DEVICE void block_sync() { __syncthreads(); }

template <class T>
SUMEXP_DEVICE T* dynamic_shared() {
  extern __shared__ uint4 sumexp_dynamic_shared[];
  return reinterpret_cast<T*>(sumexp_dynamic_shared);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
SUMEXP_DEVICE int cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return int(r);
}
SUMEXP_DEVICE int cluster_size() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return int(r);
}
SUMEXP_DEVICE void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// The same shared variable in the block of rank `rank` of this cluster, as a generic address.
template <class T>
SUMEXP_DEVICE T* dsmem(T* p, int rank) {
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<std::uint64_t>(p)), "r"(rank));
  return reinterpret_cast<T*>(there);
}
#else
SUMEXP_DEVICE int cluster_rank() { return 0; }
SUMEXP_DEVICE int cluster_size() { return 1; }
SUMEXP_DEVICE void cluster_sync() { __syncthreads(); }
template <class T>
SUMEXP_DEVICE T* dsmem(T* p, int) {
  return p;
}
#endif

// -- memory ----------------------------------------------------------------------------------------

namespace detail {
template <class T>
SUMEXP_DEVICE Pack<T> as_pack(uint4 w) {
  Words<Pack<T>> a;
  a.w[0] = w.x, a.w[1] = w.y, a.w[2] = w.z, a.w[3] = w.w;
  return a.value;
}
template <class T>
SUMEXP_DEVICE uint4 as_words(const Pack<T>& v) {
  Words<Pack<T>> a;
  a.value = v;
  return make_uint4(a.w[0], a.w[1], a.w[2], a.w[3]);
}
}  // namespace detail

template <class T>
SUMEXP_DEVICE Pack<T> load16(const T* p) {
  return detail::as_pack<T>(*reinterpret_cast<const uint4*>(p));
}
template <class T>
SUMEXP_DEVICE Pack<T> stream_load16(const T* p) {
  return detail::as_pack<T>(__ldcs(reinterpret_cast<const uint4*>(p)));
}
template <class T>
SUMEXP_DEVICE void store16(T* p, const Pack<T>& v) {
  *reinterpret_cast<uint4*>(p) = detail::as_words(v);
}
template <class T>
SUMEXP_DEVICE void stream_store16(T* p, const Pack<T>& v) {
  __stcs(reinterpret_cast<uint4*>(p), detail::as_words(v));
}

SUMEXP_DEVICE void fence() { __threadfence(); }
SUMEXP_DEVICE unsigned atomic_add(unsigned* p, unsigned v) { return atomicAdd(p, v); }

// -- host ------------------------------------------------------------------------------------------

struct Launch {
  dim3 grid, block;
  std::size_t dynamic_shared = 0;
  unsigned cluster = 1;
  cudaStream_t stream = nullptr;
};

// An error is reported where it happens, not once more by the next call of the runtime.
inline cudaError_t reported(cudaError_t e) {
  if (e != cudaSuccess) cudaGetLastError();
  return e;
}

// What is known of kernels on devices, kept without a lock: a kernel that has lost its entry is only looked at once more.
class Known {
 public:
  std::atomic<std::uint64_t>& entry(std::uint64_t key) { return entries_[key * 0x9e3779b97f4a7c15u >> 54]; }
  // `more`: below 16. Addresses leave the upper bits free.
  static std::uint64_t key(const void* kernel, int device, unsigned more = 0) {
    return reinterpret_cast<std::uintptr_t>(kernel) ^ std::uint64_t(device + 1) << 52 ^ std::uint64_t(more) << 60;
  }

 private:
  std::atomic<std::uint64_t> entries_[1024] = {};
};

// Allows a kernel all the dynamic shared memory that the current device has beside the kernel's own. Always the same
// amount, and once: the attribute belongs to the kernel, so that a launch that set its own needs would take away what
// another thread's, or one in a graph, has asked for.
inline cudaError_t allow_shared(const void* kernel) {
  static Known allowed;
  int device = 0, optin = 0;
  cudaError_t e = cudaGetDevice(&device);
  const std::uint64_t key = Known::key(kernel, device);
  std::atomic<std::uint64_t>& entry = allowed.entry(key);
  if (e == cudaSuccess && entry.load(std::memory_order_relaxed) == key) return e;
  cudaFuncAttributes own = {};
  if (e == cudaSuccess) e = cudaFuncGetAttributes(&own, kernel);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (e == cudaSuccess)
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, optin - int(own.sharedSizeBytes));
  if (e == cudaSuccess) entry.store(key, std::memory_order_relaxed);
  return reported(e);
}

// A launch in the runtime's words; allows the kernel the shared memory that it takes.
class Config {
 public:
  Config(const void* kernel, const Launch& how) {
    if (how.dynamic_shared > 48 * 1024 - static_shared_limit) error_ = allow_shared(kernel);
    config_.gridDim = how.grid;
    config_.blockDim = how.block;
    config_.dynamicSmemBytes = how.dynamic_shared;
    config_.stream = how.stream;
    if (how.cluster <= 1) return;
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = how.cluster;
    attribute_.val.clusterDim.y = 1;
    attribute_.val.clusterDim.z = 1;
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
  }
  Config(const Config&) = delete;
  cudaError_t error() const { return error_; }
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaError_t error_ = cudaSuccess;
  cudaLaunchConfig_t config_ = {};
  cudaLaunchAttribute attribute_;
};

// Enqueues the kernel; neither synchronises nor allocates, so a graph can capture it.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const Launch& how, Args... args) {
  const Config config(reinterpret_cast<const void*>(kernel), how);
  if (config.error() != cudaSuccess) return config.error();
  return reported(cudaLaunchKernelEx(config.get(), kernel, static_cast<Params>(args)...));
}

// Whether the current device can run such a launch: code made of PTX from before sm_90 does not know of clusters, and a
// part of a chip (MIG, MPS) may have no room for one. A no is asked for again: the part may change.
template <class... Params>
bool can_cluster(void (*kernel)(Params...), const Launch& how) {
  static Known possible;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  int device = 0, clusters = 0;
  cudaError_t e = cudaGetDevice(&device);
  const std::uint64_t key = Known::key(function, device, how.cluster);
  std::atomic<std::uint64_t>& entry = possible.entry(key);
  if (e == cudaSuccess && entry.load(std::memory_order_relaxed) == key) return true;
  cudaFuncAttributes own = {};
  if (e == cudaSuccess) e = cudaFuncGetAttributes(&own, function);
  if (e != cudaSuccess || own.ptxVersion < 90) return reported(e), false;
  const Config config(function, how);
  e = config.error();
  if (e == cudaSuccess) e = reported(cudaOccupancyMaxActiveClusters(&clusters, function, config.get()));
  if (e != cudaSuccess || clusters < 1) return false;
  entry.store(key, std::memory_order_relaxed);
  return true;
}

inline const char* error_name(cudaError_t e) { return cudaGetErrorName(e); }
inline const char* error_text(cudaError_t e) { return cudaGetErrorString(e); }
inline cudaError_t get_device(int& id) { return reported(cudaGetDevice(&id)); }
inline cudaError_t set_device(int id) { return reported(cudaSetDevice(id)); }
inline cudaError_t synchronize(cudaStream_t stream) { return reported(cudaStreamSynchronize(stream)); }
inline cudaError_t device_count(int& count) { return reported(cudaGetDeviceCount(&count)); }
inline int device_at(const void* address) {
  cudaPointerAttributes a = {};
  const cudaError_t e = reported(cudaPointerGetAttributes(&a, address));
  return e == cudaSuccess && a.type != cudaMemoryTypeUnregistered ? a.device : 0;
}

// The current device. Attributes are cached by the runtime: this costs well under a microsecond.
inline cudaError_t query(Device& d) {
  int id = 0, major = 0, minor = 0;
  cudaError_t e = cudaGetDevice(&id);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d.sm_count, cudaDevAttrMultiProcessorCount, id);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d.shared_optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  d.cc = major * 10 + minor;
  return reported(e);
}

}  // namespace sumexp::arch
