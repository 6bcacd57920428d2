// DLPack's C exchange table (DLPack 1.2 and later), as far as it is used here: how a tensor library
// lets another read a tensor's pointer, shape and strides without Python in between.
//
// The table hangs on the tensor type as a capsule, `__dlpack_c_exchange_api__`. Declared here after
// the specification, dmlc.github.io/dlpack, so that no tensor library is needed to build.
#pragma once

#include <sumexp/sumexp.hpp>

#include <cstdint>

namespace sumexp::python::dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;
inline constexpr const char* kCapsuleName = "dlpack_exchange_api";
inline constexpr std::int32_t kCPU = 1;
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

struct ExchangeAPI {
  Version version;
  ExchangeAPI* previous;            // an older table, for consumers of an older major version
  void* allocate;                   // the three owning conversions are not used here
  void* from_object_owned;
  void* to_object;
  int (*from_object)(void* py_object, Tensor* out);  // -1 with a Python error set; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

// The kernels' code for a dtype, kMask for one-byte masks; -1 for what the kernels do not have.
inline constexpr int kMask = 100;

inline int dtype_code(const DataType& t) {
  if (t.lanes != 1) return -1;
  if (t.code == kFloat)
    return static_cast<int>(t.bits == 16 ? DType::f16 : t.bits == 32 ? DType::f32 : t.bits == 64 ? DType::f64 : DType(-1));
  if (t.code == kBFloat && t.bits == 16) return static_cast<int>(DType::bf16);
  return t.code == kBool && t.bits == 8 ? kMask : -1;
}

}  // namespace sumexp::python::dlpack
