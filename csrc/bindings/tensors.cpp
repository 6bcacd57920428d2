// Raw entries for other libraries: an operation by number on tensors, nothing allocated; and what DLPack tells of one.
//
// run_tensors reads torch tensors (or any type with DLPack's C exchange table) in about 50 ns each, on the CPU and
// on CUDA devices. It trusts its caller with what only it can know (that the memory is writeable, apart, and lives
// through the call), and checks what would read or write out of bounds.
#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

namespace {

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

// A tensor over the shape of the call: full, or one element per row with or without the reduced axes.
bool lay_over(const dlpack::Tensor& t, const char* name, int item, bool row, const Shape& full, std::uint64_t axes,
              Operand* out) {
  const Shape row_short = row_shape(full, axes, false);
  const bool keepdims = t.ndim == full.ndim;
  bool fits = keepdims || (row && t.ndim == row_short.ndim);
  out->data = dlpack::address(t);
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
    PyObject *const g = shape_tuple(given), *const f = g ? shape_tuple(full) : nullptr;
    if (f)
      PyErr_Format(PyExc_ValueError, "%s has shape %R, which does not fit %s of %R", name, g, row ? "the rows" : "the shape",
                   f);
    Py_XDECREF(g);
    Py_XDECREF(f);
  }
  return fits;
}

// run_tensors(op, inputs, out, dim, temperature=1.0, where=None, sign=None, workspace=None, function="run_tensors")
PyObject* run_tensors(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs < 4 || nargs > 9 || !PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError,
                    "run_tensors(op, inputs: tuple, out, dim, temperature=1.0, where=None, sign=None, workspace=None, "
                    "function='run_tensors'): bad arguments");
    return nullptr;
  }
  const char* const function = nargs > 8 ? PyUnicode_AsUTF8(args[8]) : "run_tensors";  // that errors name
  if (!function) return nullptr;
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
  Place place;
  Operand operands[kMaxInputs + 3];
  int code = -1;
  // The first input has the full shape in every operation; it fixes shape, dtype and axes. other: the code of a dtype that is
  // not its own.
  const auto take = [&](PyObject* object, const char* name, bool row, int other, Operand* operand) {
    dlpack::Tensor t;
    if (!read_tensor(object, name, &t, &place)) return false;
    const int this_code = dlpack::dtype_code(t.dtype);
    if (code < 0 && !other) {
      code = this_code;
      full.ndim = t.ndim;
      std::copy(t.shape, t.shape + t.ndim, full.dims);
      if (!parse_axes(function, args[3], full.ndim, &call.axes)) return false;
    }
    if (this_code != (other ? other : code) || (!other && (this_code < 0 || this_code >= dlpack::kMask))) {
      PyErr_Format(PyExc_TypeError, "%s has DLPack dtype (%d, %d bits), accepted: %s", name, static_cast<int>(t.dtype.code),
                   static_cast<int>(t.dtype.bits),
                   other == dlpack::kMask ? "bool"
                   : other                ? "int64"
                                          : "float16, bfloat16, float32 or float64, one for all tensors");
      return false;
    }
    return lay_over(t, name, other == dlpack::kMask ? 1 : other ? 8 : item_size(code), row, full, call.axes, operand);
  };

  for (Py_ssize_t k = 0; k < count; ++k) {
    if (!take(PyTuple_GET_ITEM(inputs, k), "input", input_is_row(call.op, static_cast<int>(k)),
              input_is_index(call.op, static_cast<int>(k)) ? dlpack::kIndex : 0, &operands[k]))
      return nullptr;
    call.in[k] = operands[k].view();
  }
  const bool row = out_is_row(call.op);
  if (!take(args[2], "out", row, 0, &operands[count])) return nullptr;
  call.out = operands[count].view();
  if (nargs > 5 && args[5] != Py_None) {
    if (!take(args[5], "where", false, dlpack::kMask, &operands[kMaxInputs + 1])) return nullptr;
    call.where = operands[kMaxInputs + 1].view();
  }
  if (nargs > 6 && args[6] != Py_None) {
    if (!take(args[6], "sign", true, 0, &operands[kMaxInputs + 2])) return nullptr;
    call.extra = operands[kMaxInputs + 2].view();
  }
  call.dtype = static_cast<DType>(code);
  call.ndim = full.ndim;
  call.shape = full.dims;
  if (place.device.type == dlpack::kCPU) {
    for (Py_ssize_t k = 0; k < count; ++k)
      if (!is_still_at(PyTuple_GET_ITEM(inputs, k), place, call.in[k].data)) return nullptr;
    if (!is_still_at(args[2], place, call.out.data) || (call.where.data && !is_still_at(args[5], place, call.where.data)) ||
        (call.extra.data && !is_still_at(args[6], place, call.extra.data)))
      return nullptr;
    if (!run_call(call, full.size(), function)) return nullptr;
    Py_RETURN_NONE;
  }
  cuda::Target target;
  target.device = place.device.id;
  target.stream = place.stream;
  dlpack::Tensor workspace;
  if (nargs > 7 && args[7] != Py_None) {
    if (!read_tensor(args[7], "workspace", &workspace, &place)) return nullptr;
    if (!dlpack::is_bytes(workspace)) {
      PyErr_SetString(PyExc_TypeError, "workspace is not one contiguous dimension of uint8");
      return nullptr;
    }
    target.workspace = dlpack::address(workspace);
    target.workspace_bytes = static_cast<std::size_t>(workspace.shape[0]);
  }
  return run_on_device(call, function, target);
}

// -- read_dlpack ---------------------------------------------------------------------------------------------

// read_dlpack(x): (address, shape, strides, (code, bits), (device type, device), stream, read-only) of a tensor whose
// type has the exchange table, or of a capsule as __dlpack__ returns it, which stays the caller's. Strides in bytes; the
// stream None where the capsule does not tell.
PyObject* read_dlpack(PyObject*, PyObject* given) {
  dlpack::Tensor tensor;
  void* stream = nullptr;
  const bool is_capsule = PyCapsule_CheckExact(given);
  if (is_capsule) {
    const dlpack::Tensor* inside = dlpack::in_capsule(given);
    if (!inside) {
      PyErr_SetString(PyExc_TypeError, "read_dlpack: an unknown or used capsule");
      return nullptr;
    }
    tensor = *inside;
  } else {
    Place place;
    if (!read_tensor(given, "read_dlpack: x", &tensor, &place)) return nullptr;
    stream = place.stream;
  }
  if (tensor.ndim > kMaxDims) {
    PyErr_Format(PyExc_ValueError, "read_dlpack: %d dimensions, accepted: up to %d", int(tensor.ndim), kMaxDims);
    return nullptr;
  }
  Shape shape, strides;
  shape.ndim = strides.ndim = tensor.ndim;
  const int item = (tensor.dtype.bits + 7) / 8 * tensor.dtype.lanes;
  std::int64_t step = item;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    shape.dims[d] = tensor.shape[d];
    strides.dims[d] = tensor.strides ? tensor.strides[d] * item : step;
    step *= tensor.shape[d];
  }
  const dlpack::Device device = dlpack::plain(tensor.device);
  return Py_BuildValue("(KNN(ii)(ii)NN)", reinterpret_cast<unsigned long long>(dlpack::address(tensor)), shape_tuple(shape),
                       shape_tuple(strides), int(tensor.dtype.code), tensor.dtype.bits * tensor.dtype.lanes, int(device.type),
                       int(device.id), is_capsule ? Py_NewRef(Py_None) : PyLong_FromVoidPtr(stream),
                       PyBool_FromLong(is_capsule && dlpack::is_read_only(given)));
}

}  // namespace

void add_tensors(py::module_& module) {
  static PyMethodDef methods[] = {
      {"run_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_tensors)), METH_FASTCALL,
       "run_tensors(op, inputs, out, dim, temperature=1.0, where=None, sign=None, workspace=None, "
       "function='run_tensors', /)\n--\n\n"
       "Run operation `op` on tensors with DLPack's C exchange table (torch 2.10 and later), on the CPU or on a CUDA "
       "device's current stream. None, or the bytes of workspace to pass in another call, nothing being run then."},
      {"read_dlpack", &read_dlpack, METH_O,
       "read_dlpack(x, /)\n--\n\n"
       "(address, shape, strides in bytes, (dtype code, bits), (device type, id), stream, read-only) of a tensor with "
       "DLPack's C exchange table or of a capsule from __dlpack__."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace sumexp::python
