// One element of any dtype, to and from double. Shared by the tests and the benchmarks.
#pragma once

#include <cstring>

#include "../../csrc/include/sumexp/sumexp.hpp"
#include "../../csrc/numerics/formats.hpp"

namespace elements {

namespace formats = sumexp::SUMEXP_NS;
using sumexp::DType;

inline void put(DType dtype, void* at, double value) {
  const float single = static_cast<float>(value);
  switch (dtype) {
    case DType::f16: {
      const formats::f16 h = formats::to_f16(single);
      std::memcpy(at, &h, 2);
      break;
    }
    case DType::bf16: {
      const formats::bf16 h = formats::to_bf16(single);
      std::memcpy(at, &h, 2);
      break;
    }
    case DType::f32: std::memcpy(at, &single, 4); break;
    case DType::f64: std::memcpy(at, &value, 8); break;
  }
}
inline double get(DType dtype, const void* at) {
  switch (dtype) {
    case DType::f16: {
      formats::f16 h;
      std::memcpy(&h, at, 2);
      return static_cast<double>(formats::to_float(h));
    }
    case DType::bf16: {
      formats::bf16 h;
      std::memcpy(&h, at, 2);
      return static_cast<double>(formats::to_float(h));
    }
    case DType::f32: {
      float x;
      std::memcpy(&x, at, 4);
      return static_cast<double>(x);
    }
    default: {
      double x;
      std::memcpy(&x, at, 8);
      return x;
    }
  }
}

}  // namespace elements
