// csrc/cuda/arch/arch.hpp's vocabulary on the machine. Included by it, never directly.
#pragma once

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "machine.hpp"

#define SUMEXP_DEVICE inline
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SUMEXP_PARAMETER const

#define threadIdx (::simt::self->thread)
#define blockIdx (::simt::self->block)
#define blockDim (::simt::self->block_dim)
#define gridDim (::simt::self->grid_dim)

#define SUMEXP_SHARED(T, name, count) \
  static const char name##_tag = 0;   \
  T* const name = static_cast<T*>(::simt::static_shared_memory(&name##_tag, sizeof(T) * (count), #name))

// The caller's place, as the two last parameters of every operation that waits.
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace sumexp::arch {

static_assert(::simt::fixed_beside_dynamic == static_shared_limit);

inline int lane() { return ::simt::self->lane; }
inline int warp() { return ::simt::self->warp; }

namespace detail {
template <class T>
T shuffle(::simt::Move move, T v, int argument, unsigned mask, ::simt::Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0 && sizeof(T) <= 64);
  ::simt::warp_collective(move, mask, argument, &v, sizeof v, site);
  return v;
}
inline unsigned vote(bool p, unsigned mask, ::simt::Site site) {
  unsigned votes = 0;
  ::simt::warp_collective(::simt::Move::ballot, mask, p, &votes, sizeof votes, site);
  return votes;
}
}  // namespace detail

template <class T>
T shfl(T v, int from, unsigned mask = whole_warp, SIMT_HERE) {
  return detail::shuffle(::simt::Move::index, v, from, mask, {"shfl", file, line});
}
template <class T>
T shfl_xor(T v, int bits, unsigned mask = whole_warp, SIMT_HERE) {
  return detail::shuffle(::simt::Move::exclusive_or, v, bits, mask, {"shfl_xor", file, line});
}
template <class T>
T shfl_down(T v, int delta, unsigned mask = whole_warp, SIMT_HERE) {
  return detail::shuffle(::simt::Move::down, v, delta, mask, {"shfl_down", file, line});
}
inline unsigned ballot(bool p, unsigned mask = whole_warp, SIMT_HERE) { return detail::vote(p, mask, {"ballot", file, line}); }
inline bool any(bool p, unsigned mask = whole_warp, SIMT_HERE) { return detail::vote(p, mask, {"any", file, line}) != 0; }
inline int warp_add(int v, SIMT_HERE) {
  for (int bit = 16; bit > 0; bit /= 2)
    v += detail::shuffle(::simt::Move::exclusive_or, v, bit, whole_warp, {"warp_add", file, line});
  return v;
}
inline void warp_sync(unsigned mask = whole_warp, SIMT_HERE) {
  unsigned nothing = 0;
  ::simt::warp_collective(::simt::Move::none, mask, 0, &nothing, sizeof nothing, {"warp_sync", file, line});
}

inline float larger(float a, float b) { return b != b || a > b ? a : b; }
inline double larger(double a, double b) { return b != b || a > b ? a : b; }

inline void block_sync(SIMT_HERE) { ::simt::block_barrier({"block_sync", file, line}); }
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(::simt::dynamic_shared_memory());
}

inline int cluster_rank() { return ::simt::self->cluster_rank; }
inline int cluster_size() { return ::simt::self->cluster_size; }
inline void cluster_sync(SIMT_HERE) { ::simt::cluster_barrier({"cluster_sync", file, line}); }
template <class T>
T* dsmem(T* p, int rank) {
  return static_cast<T*>(::simt::peer_shared_memory(const_cast<std::remove_const_t<T>*>(p), rank));
}

template <class T>
Pack<T> load16(const T* p) {
  ::simt::check_aligned(p, 16, "load16");
  Pack<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
Pack<T> stream_load16(const T* p) {
  ::simt::check_aligned(p, 16, "stream_load16");
  Pack<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
void store16(T* p, const Pack<T>& v) {
  ::simt::check_aligned(p, 16, "store16");
  std::memcpy(p, &v, sizeof v);
}
template <class T>
void stream_store16(T* p, const Pack<T>& v) {
  ::simt::check_aligned(p, 16, "stream_store16");
  std::memcpy(p, &v, sizeof v);
}

inline void fence() { ::simt::yield(); }
inline unsigned atomic_add(unsigned* p, unsigned v) {
  ::simt::yield();
  const unsigned old = *p;
  *p = old + v;
  ::simt::yield();
  return old;
}

struct Launch {
  dim3 grid, block;
  std::size_t dynamic_shared = 0;
  unsigned cluster = 1;
  cudaStream_t stream = nullptr;
};

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const Launch& how, Args... args) {
  struct Bound {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  } bound{kernel, {static_cast<Params>(args)...}};
  auto body = [](void* p) {
    auto& b = *static_cast<Bound*>(p);
    std::apply(b.kernel, b.args);
  };
  return ::simt::run_grid({how.grid, how.block, how.dynamic_shared, how.cluster}, body, &bound);
}

template <class... Params>
bool can_cluster(void (*)(Params...), const Launch& how) {
  return how.cluster <= ::simt::settings().max_cluster;
}

// Every launch is over when it returns. The devices are alike; which is current is all that tells them apart.
inline const char* error_name(cudaError_t) { return "on the machine"; }
inline const char* error_text(cudaError_t) { return ::simt::error().c_str(); }
inline cudaError_t get_device(int& id) { return id = ::simt::settings().device, cudaSuccess; }
inline cudaError_t set_device(int id) {
  if (id < 0 || id >= ::simt::device_count) return cudaErrorInvalidDevice;
  return ::simt::settings().device = id, cudaSuccess;
}
inline cudaError_t synchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t device_count(int& count) { return count = ::simt::device_count, cudaSuccess; }
inline int device_at(const void*) { return 0; }

inline cudaError_t query(Device& d) {
  const ::simt::Settings& s = ::simt::settings();
  d.cc = s.cc;
  d.sm_count = s.sm_count;
  d.shared_optin = int(s.shared_optin);
  return cudaSuccess;
}

}  // namespace sumexp::arch
