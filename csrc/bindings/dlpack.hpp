// DLPack's C exchange table (DLPack 1.2 and later), as far as it is used here: how a tensor library
// lets another read a tensor's pointer, shape and strides without Python in between.
//
// The table hangs on the tensor type as a capsule, `__dlpack_c_exchange_api__`. Declared here after
// the specification, dmlc.github.io/dlpack, so that no tensor library is needed to build.
#pragma once

#include <sumexp/cuda.hpp>

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdio>

namespace sumexp::python::dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;
inline constexpr const char* kCapsuleName = "dlpack_exchange_api";
inline constexpr std::int32_t kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13;
enum : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };

struct Version {
  std::uint32_t major, minor;
};

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {  // borrowed: valid until control goes back to the library that filled it
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

inline char* address(const Tensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

// Whether the address is so low that it may be an offset into no memory, as of a tensor whose storage was emptied.
inline bool is_low(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(address(t)) >> 40 == 0; }

struct ExchangeAPI {
  Version version;
  ExchangeAPI* previous;  // an older table, for consumers of an older major version
  void* allocate;         // the three owning conversions are not used here
  void* from_object_owned;
  void* to_object;
  int (*from_object)(void* py_object, Tensor* out);  // -1 with a Python error set; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

// The kernels' code for a dtype, kMask for one-byte masks, kIndex for 64-bit integers; -1 for what the kernels do not have.
inline constexpr int kMask = 100, kIndex = 101;

inline int dtype_code(const DataType& t) {
  if (t.lanes != 1) return -1;
  if (t.code == kFloat)
    return static_cast<int>(t.bits == 16 ? DType::f16 : t.bits == 32 ? DType::f32 : t.bits == 64 ? DType::f64 : DType(-1));
  if (t.code == kBFloat && t.bits == 16) return static_cast<int>(DType::bf16);
  if (t.code == kInt && t.bits == 64) return kIndex;
  return t.code == kBool && t.bits == 8 ? kMask : -1;
}

// What a capsule from __dlpack__ holds; null for one that is unknown or used up.
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};
struct VersionedTensor {
  Version version;
  void* context;
  void (*deleter)(VersionedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};
inline const Tensor* in_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor"))
    return &static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"))->tensor;
  if (!PyCapsule_IsValid(capsule, "dltensor_versioned")) return nullptr;
  auto* managed = static_cast<VersionedTensor*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
  return managed->version.major == kMajorVersion ? &managed->tensor : nullptr;
}

// Whether its tensor may not be written to. Without a version a capsule cannot tell, and then it may not.
inline bool is_read_only(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, "dltensor_versioned")) return true;
  return static_cast<VersionedTensor*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"))->flags & 1;
}

// -- devices -------------------------------------------------------------------------------------------------

// Pinned memory is the CPU's, managed memory the device's.
inline Device plain(Device d) {
  if (d.type == kCUDAHost) return {kCPU, 0};
  return d.type == kCUDAManaged ? Device{kCUDA, d.id} : d;
}
inline bool has_cuda() { return *cuda::architectures() != 0; }
inline bool is_served(Device d) { return d.type == kCPU || (d.type == kCUDA && has_cuda()); }
inline const char* served() {
  return has_cuda() ? "the CPU and CUDA devices" : "the CPU; this build of sumexp has no CUDA (SUMEXP_CUDA=ON builds it)";
}
struct Text {  // a device in words
  char text[48];
  explicit Text(Device d) {
    if (d.type == kCPU) std::snprintf(text, sizeof text, "the CPU");
    else if (d.type == kCUDA) std::snprintf(text, sizeof text, "cuda:%d", static_cast<int>(d.id));
    else std::snprintf(text, sizeof text, "a device of DLPack type %d", static_cast<int>(d.type));
  }
};

inline bool is_bytes(const Tensor& t) {
  return t.ndim == 1 && t.dtype.code == kUInt && t.dtype.bits == 8 && t.dtype.lanes == 1 && (!t.strides || t.strides[0] == 1);
}

}  // namespace sumexp::python::dlpack
