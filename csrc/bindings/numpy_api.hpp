// The few pieces of NumPy's C API that a call needs, taken from NumPy's own function table at import.
//
// Nothing of NumPy is needed at build time, so one binary serves every NumPy from 2.0 on. The struct
// layouts come from pybind11.
#pragma once

#include <pybind11/numpy.h>
#include <sumexp/sumexp.hpp>

#include <cstring>

namespace sumexp::python {

namespace py = pybind11;

using Array = py::detail::PyArray_Proxy;       // ndarray: data, nd, dimensions, strides, descr, flags
using Descr = py::detail::PyArrayDescr_Proxy;  // dtype: kind, byteorder, type_num

inline constexpr int kAligned = 0x0100, kWriteable = 0x0400, kCContiguous = 0x0001;
inline constexpr int kBoolNum = 0, kFloatNum = 11, kDoubleNum = 12, kHalfNum = 23, kUserNum = 256;

// Filled once, at import, under the import lock; read-only afterwards.
struct NumPy {
  PyTypeObject* array_type = nullptr;
  PyObject* (*descr_from_type)(int) = nullptr;
  PyObject* (*new_from_descr)(PyTypeObject*, PyObject*, int, const Py_intptr_t*, const Py_intptr_t*, void*, int,
                              PyObject*) = nullptr;
  PyObject* (*new_like)(PyObject*, int order, PyObject* descr, int subok) = nullptr;
  PyObject* (*unwrap_0d)(PyObject*) = nullptr;  // 0-d array -> scalar, others unchanged; steals

  void load() {
    const py::module_ multiarray = py::detail::import_numpy_core_submodule("multiarray");
    const py::object capsule = multiarray.attr("_ARRAY_API");
    void** table = static_cast<void**>(PyCapsule_GetPointer(capsule.ptr(), nullptr));
    if (!table) throw py::error_already_set();
    // Slot numbers are part of NumPy's ABI (numpy/__multiarray_api.h).
    array_type = static_cast<PyTypeObject*>(table[2]);
    descr_from_type = reinterpret_cast<decltype(descr_from_type)>(table[45]);
    unwrap_0d = reinterpret_cast<decltype(unwrap_0d)>(table[76]);
    new_from_descr = reinterpret_cast<decltype(new_from_descr)>(table[94]);
    new_like = reinterpret_cast<decltype(new_like)>(table[277]);
  }
};
inline NumPy numpy;

inline const Array* as_array(PyObject* o) { return reinterpret_cast<const Array*>(o); }
inline const Descr* descr(const Array* a) { return reinterpret_cast<const Descr*>(a->descr); }
inline bool is_ndarray(PyObject* o) { return Py_TYPE(o) == numpy.array_type; }  // no subclasses

inline bool is_native(const Descr* d) {
  return d->byteorder == '=' || d->byteorder == '|';  // NumPy writes its own order as '='
}

// bfloat16 is a user dtype (ml_dtypes): its number is handed out at run time, so go by its name.
inline bool is_bfloat16(const Descr* d) {
  const char* name = reinterpret_cast<PyTypeObject*>(d->typeobj)->tp_name;
  const char* dot = std::strrchr(name, '.');
  return std::strcmp(dot ? dot + 1 : name, "bfloat16") == 0;
}

// The kernels' code for an array's dtype, or -1 where there is none (or the bytes are swapped).
inline int dtype_code(const Array* a) {
  const Descr* d = descr(a);
  if (!is_native(d)) return -1;
  switch (d->type_num) {
    case kFloatNum: return static_cast<int>(DType::f32);
    case kDoubleNum: return static_cast<int>(DType::f64);
    case kHalfNum: return static_cast<int>(DType::f16);
    default: return d->type_num >= kUserNum && is_bfloat16(d) ? static_cast<int>(DType::bf16) : -1;
  }
}

inline constexpr int item_size(int code) {
  constexpr int sizes[] = {2, 2, 4, 8};
  return sizes[code];
}

}  // namespace sumexp::python
