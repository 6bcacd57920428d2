// Raw entries for other faces: an operation by number on tensors or pointers, nothing allocated.
//
// run_tensors reads torch tensors (or any type with DLPack's C exchange table) in about 50 ns each.
// run_raw takes addresses as integers, for libraries without the table. Both trust their caller with
// what only it can know (that the memory is writeable, apart, and lives through the call), and check
// what would read or write out of bounds.
#include "dlpack.hpp"
#include "faces.hpp"

namespace sumexp::python {

namespace {

PyObject* exchange_attribute = nullptr;  // "__dlpack_c_exchange_api__", interned

bool parse_op(PyObject* given, Op* op) {
  const long code = PyLong_AsLong(given);
  if (code == -1 && PyErr_Occurred()) return false;
  *op = static_cast<Op>(code);
  if (code >= 0 && code < kOpCount) return true;
  PyErr_Format(PyExc_ValueError, "op is %ld, accepted: 0 to %d", code, kOpCount - 1);
  return false;
}

bool parse_temperature(PyObject* given, double* value) {
  *value = PyFloat_AsDouble(given);
  return !(*value == -1.0 && PyErr_Occurred());
}

// -- run_tensors -----------------------------------------------------------------------------------------

bool read_tensor(PyObject* object, const char* name, dlpack::Tensor* tensor) {
  PyObject* capsule = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), exchange_attribute);
  if (!capsule) {
    PyErr_Format(PyExc_TypeError, "%s is a %s, accepted: a tensor with __dlpack_c_exchange_api__", name,
                 Py_TYPE(object)->tp_name);
    return false;
  }
  // The table is static in its library: it outlives the capsule reference.
  const auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule, dlpack::kCapsuleName));
  Py_DECREF(capsule);
  if (!api) return false;
  while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
  if (!api || !api->from_object) {
    PyErr_Format(PyExc_TypeError, "%s is a %s, whose DLPack exchange table is of an unknown version", name,
                 Py_TYPE(object)->tp_name);
    return false;
  }
  if (api->from_object(object, tensor) != 0) return false;
  if (tensor->device.type != dlpack::kCPU) {
    PyErr_Format(PyExc_TypeError, "%s is on a device of DLPack type %d, accepted: the CPU (type %d)", name,
                 static_cast<int>(tensor->device.type), static_cast<int>(dlpack::kCPU));
    return false;
  }
  if (tensor->ndim > kMaxDims) {
    PyErr_Format(PyExc_ValueError, "%s has %d dimensions, accepted: up to %d", name, static_cast<int>(tensor->ndim),
                 kMaxDims);
    return false;
  }
  return true;
}

// A tensor over the shape of the call: full, or one element per row with or without the reduced axes.
bool lay_over(const dlpack::Tensor& t, const char* name, int item, bool row, const Shape& full, std::uint64_t axes,
              Operand* out) {
  const Shape row_short = row_shape(full, axes, false);
  const bool keepdims = t.ndim == full.ndim;
  bool fits = keepdims || (row && t.ndim == row_short.ndim);
  out->data = static_cast<char*>(t.data) + t.byte_offset;
  for (int d = 0, k = 0; fits && d < full.ndim; ++d) {
    const bool reduced = row && (axes >> d & 1);
    if (reduced && !keepdims) {
      out->strides[d] = 0;
      continue;
    }
    fits = t.shape[k] == (reduced ? 1 : full.dims[d]);
    out->strides[d] = reduced ? 0 : t.strides[k] * item;
    ++k;
  }
  if (!fits) {
    Shape given;
    given.ndim = t.ndim;
    std::copy(t.shape, t.shape + t.ndim, given.dims);
    const auto g = py::reinterpret_steal<py::object>(shape_tuple(given));
    const auto f = py::reinterpret_steal<py::object>(shape_tuple(full));
    PyErr_Format(PyExc_ValueError, "%s has shape %R, which does not fit %s of %R", name, g.ptr(),
                 row ? "the rows" : "the shape", f.ptr());
  }
  return fits;
}

// run_tensors(op, inputs, out, dim, temperature=1.0, where=None, sign=None)
PyObject* run_tensors(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs < 4 || nargs > 7 || !PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError,
                    "run_tensors(op, inputs: tuple, out, dim, temperature=1.0, where=None, sign=None): bad arguments");
    return nullptr;
  }
  Call call;
  if (!parse_op(args[0], &call.op)) return nullptr;
  if (nargs > 4 && !parse_temperature(args[4], &call.temperature)) return nullptr;
  PyObject* const inputs = args[1];
  const Py_ssize_t count = PyTuple_GET_SIZE(inputs);
  if (count < 1 || count > kMaxInputs) {
    PyErr_Format(PyExc_ValueError, "inputs has %zd tensors, accepted: 1 to %d", count, kMaxInputs);
    return nullptr;
  }

  Shape full;
  Operand operands[kMaxInputs + 3];
  int code = -1;
  // The first input has the full shape in every operation; it fixes shape, dtype and axes.
  const auto take = [&](PyObject* object, const char* name, bool row, bool mask, Operand* operand) {
    dlpack::Tensor t;
    if (!read_tensor(object, name, &t)) return false;
    const int this_code = dlpack::dtype_code(t.dtype);
    if (code < 0 && !mask) {
      code = this_code;
      full.ndim = t.ndim;
      std::copy(t.shape, t.shape + t.ndim, full.dims);
      if (!parse_axes("run_tensors", args[3], full.ndim, &call.axes)) return false;
    }
    if (this_code < 0 || this_code != (mask ? dlpack::kMask : code) || (!mask && this_code == dlpack::kMask)) {
      PyErr_Format(PyExc_TypeError, "%s has DLPack dtype (%d, %d bits), accepted: %s", name,
                   static_cast<int>(t.dtype.code), static_cast<int>(t.dtype.bits),
                   mask ? "bool" : "float16, bfloat16, float32 or float64, one for all tensors");
      return false;
    }
    return lay_over(t, name, mask ? 1 : item_size(code), row, full, call.axes, operand);
  };

  for (Py_ssize_t k = 0; k < count; ++k) {
    if (!take(PyTuple_GET_ITEM(inputs, k), "input", input_is_row(call.op, static_cast<int>(k)), false, &operands[k]))
      return nullptr;
    call.in[k] = operands[k].view();
  }
  const bool row = out_is_row(call.op);
  if (!take(args[2], "out", row, false, &operands[count])) return nullptr;
  call.out = operands[count].view();
  if (nargs > 5 && args[5] != Py_None) {
    if (!take(args[5], "where", false, true, &operands[kMaxInputs + 1])) return nullptr;
    call.where = operands[kMaxInputs + 1].view();
  }
  if (nargs > 6 && args[6] != Py_None) {
    if (!take(args[6], "sign", row, false, &operands[kMaxInputs + 2])) return nullptr;
    call.sign = operands[kMaxInputs + 2].view();
  }
  call.dtype = static_cast<DType>(code);
  call.ndim = full.ndim;
  call.shape = full.dims;
  if (!run_call(call, full.size(), "run_tensors")) return nullptr;
  Py_RETURN_NONE;
}

// -- run_raw -----------------------------------------------------------------------------------------------

bool read_dims(PyObject* tuple, const char* name, int ndim, std::int64_t* out) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != ndim) {
    PyErr_Format(PyExc_TypeError, "%s is %R, accepted: a tuple of %d ints", name, tuple, ndim);
    return false;
  }
  for (int d = 0; d < ndim; ++d) {
    out[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, d));
    if (out[d] == -1 && PyErr_Occurred()) return false;
  }
  return true;
}

// run_raw(op, dtype, shape, axes, in_ptrs, in_strides, out_ptr, out_strides, temperature=1.0,
//         where_ptr=0, where_strides=(), sign_ptr=0, sign_strides=()); strides in bytes, one per axis
PyObject* run_raw(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs < 8 || nargs > 13 || nargs == 10 || nargs == 12 || !PyTuple_Check(args[2]) || !PyTuple_Check(args[4]) ||
      !PyTuple_Check(args[5]) || PyTuple_GET_SIZE(args[4]) != PyTuple_GET_SIZE(args[5])) {
    PyErr_SetString(PyExc_TypeError,
                    "run_raw(op, dtype, shape, axes, in_ptrs, in_strides, out_ptr, out_strides, temperature=1.0, "
                    "where_ptr=0, where_strides=(), sign_ptr=0, sign_strides=()): bad arguments");
    return nullptr;
  }
  Call call;
  Shape full;
  if (!parse_op(args[0], &call.op)) return nullptr;
  const long code = PyLong_AsLong(args[1]);
  if (code == -1 && PyErr_Occurred()) return nullptr;
  const Py_ssize_t ndim = PyTuple_GET_SIZE(args[2]), count = PyTuple_GET_SIZE(args[4]);
  if (code < 0 || code > static_cast<int>(DType::f64) || ndim > kMaxDims || count < 1 || count > kMaxInputs) {
    PyErr_Format(PyExc_ValueError,
                 "run_raw: dtype %ld, %zd dimensions, %zd inputs; accepted: dtype 0 to 3, up to %d dimensions, 1 to %d inputs",
                 code, ndim, count, kMaxDims, kMaxInputs);
    return nullptr;
  }
  call.dtype = static_cast<DType>(code);
  full.ndim = static_cast<int>(ndim);
  if (!read_dims(args[2], "shape", full.ndim, full.dims)) return nullptr;
  call.ndim = full.ndim;
  call.shape = full.dims;
  call.axes = PyLong_AsUnsignedLongLong(args[3]);
  if (PyErr_Occurred()) return nullptr;
  if (nargs > 8 && !parse_temperature(args[8], &call.temperature)) return nullptr;

  Operand operands[kMaxInputs + 3];
  const auto take = [&](PyObject* pointer, PyObject* strides, const char* name, Operand* operand, View* view) {
    operand->data = PyLong_AsVoidPtr(pointer);
    if (!operand->data && PyErr_Occurred()) return false;
    if (!read_dims(strides, name, full.ndim, operand->strides)) return false;
    *view = operand->view();
    return true;
  };
  for (Py_ssize_t k = 0; k < count; ++k)
    if (!take(PyTuple_GET_ITEM(args[4], k), PyTuple_GET_ITEM(args[5], k), "in_strides", &operands[k], &call.in[k]))
      return nullptr;
  if (!take(args[6], args[7], "out_strides", &operands[count], &call.out)) return nullptr;
  const auto given = [&](int k) { return nargs > k + 1 && PyObject_IsTrue(args[k]) == 1; };
  if (given(9) && !take(args[9], args[10], "where_strides", &operands[kMaxInputs + 1], &call.where)) return nullptr;
  if (given(11) && !take(args[11], args[12], "sign_strides", &operands[kMaxInputs + 2], &call.sign)) return nullptr;
  if (!run_call(call, full.size(), "run_raw")) return nullptr;
  Py_RETURN_NONE;
}

}  // namespace

void add_tensors(py::module_& module) {
  exchange_attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  static PyMethodDef methods[] = {
      {"run_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_tensors)), METH_FASTCALL,
       "run_tensors(op, inputs, out, dim, temperature=1.0, where=None, sign=None, /)\n--\n\n"
       "Run operation `op` on tensors with DLPack's C exchange table (torch 2.10 and later), on the CPU."},
      {"run_raw", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_raw)), METH_FASTCALL,
       "run_raw(op, dtype, shape, axes, in_ptrs, in_strides, out_ptr, out_strides, temperature=1.0, "
       "where_ptr=0, where_strides=(), sign_ptr=0, sign_strides=(), /)\n--\n\n"
       "Run operation `op` on CPU memory given by address; strides in bytes, axes as a bit mask."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace sumexp::python
