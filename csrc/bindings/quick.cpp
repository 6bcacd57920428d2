// quick_softmax: the common case of sumexp.torch's softmax and log_softmax in one call.
//
// For a tensor of 4 x 16 the call is the cost, and asking torch "is anything special going on?" from Python
// is a good part of it. The questions are asked here instead. Their answers, and the allocation, come from
// torch's own functions, handed over once by sumexp.torch; nothing of torch is needed to build.
#include "dlpack.hpp"
#include "faces.hpp"

namespace sumexp::python {

namespace {

struct Torch {  // filled by set_quick, under the GIL
  PyTypeObject* tensor = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* is_neg = nullptr;  // Tensor.is_neg, whose tensors DLPack hands over without the sign
  PyObject* is_grad_enabled = nullptr;
  PyObject* is_inference = nullptr;  // inference mode: nothing is recorded, whatever is_grad_enabled says
  PyObject* functorch_active = nullptr;  // () -> bool
  PyObject* counts[2] = {};              // () -> int: modes that watch operations
  PyObject* is_tracing = nullptr;        // () -> bool
  PyObject* forward_ad = nullptr;        // the dict of the module that holds _current_level
  int (*read)(void*, dlpack::Tensor*) = nullptr;
};
Torch torch;
PyObject *requires_grad, *current_level;  // interned

// Calls without arguments and compares the result with `wanted`: 1, 0, or -1 with an error set.
int answers(PyObject* function, PyObject* wanted) {
  PyObject* answer = PyObject_CallNoArgs(function);
  if (!answer) return -1;
  Py_DECREF(answer);
  return answer == wanted;  // None, True, False and small integers are single objects
}

int answers(PyObject* function, PyObject* argument, PyObject* wanted) {
  PyObject* answer = PyObject_CallOneArg(function, argument);
  if (!answer) return -1;
  Py_DECREF(answer);
  return answer == wanted;
}

// 1 if x is a plain tensor and no transform, mode or trace is active.
int is_plain(PyObject* x) {
  if (!torch.tensor || Py_TYPE(x) != torch.tensor) return 0;
  PyObject* level = PyDict_GetItemWithError(torch.forward_ad, current_level);
  if (!level || !PyLong_Check(level) || PyLong_AsLong(level) >= 0) return 0;
  static PyObject* const zero = PyLong_FromLong(0);
  int yes = answers(torch.functorch_active, Py_False);
  if (yes > 0) yes = answers(torch.counts[0], zero);
  if (yes > 0) yes = answers(torch.counts[1], zero);
  if (yes > 0) yes = answers(torch.is_tracing, Py_False);
  if (yes > 0) yes = answers(torch.is_neg, x, Py_False);
  return yes;
}

int needs_gradient(PyObject* x) {
  PyObject* flag = PyObject_GetAttr(x, requires_grad);
  if (!flag) return -1;
  Py_DECREF(flag);
  if (flag != Py_True) return 0;
  const int yes = answers(torch.is_grad_enabled, Py_True);
  return yes > 0 ? answers(torch.is_inference, Py_False) : yes;
}

// The kernels' code for x's dtype, and what DLPack tells of it; -1, with or without an error set, where they do not take x:
// not strided CPU memory of their dtypes.
int read_served(PyObject* x, dlpack::Tensor* tensor) {
  if (torch.read(x, tensor) != 0 || tensor->device.type != dlpack::kCPU || tensor->ndim > kMaxDims) return -1;
  const int code = dlpack::dtype_code(tensor->dtype);
  return code == dlpack::kMask ? -1 : code;
}

// softmax or log_softmax of a contiguous CPU tensor; null where x is something else, with or without an error
// set.
PyObject* compute(PyObject* op, PyObject* x, PyObject* dim, PyObject* temperature) {
  dlpack::Tensor in, out;
  const int code = read_served(x, &in);
  if (code < 0) return nullptr;
  Call call;
  call.op = static_cast<Op>(PyLong_AsLong(op));
  call.temperature = PyFloat_AsDouble(temperature);
  call.dtype = static_cast<DType>(code);
  call.ndim = in.ndim;
  call.shape = in.shape;

  std::int64_t strides[kMaxDims], elements = 1;
  for (int d = in.ndim - 1; d >= 0; --d) {
    if (in.strides[d] != elements) return nullptr;  // empty_like below must give these strides too
    strides[d] = elements * item_size(code);
    elements *= in.shape[d];
  }
  long axis = PyLong_AsLong(dim);
  if (axis == -1 && PyErr_Occurred()) return nullptr;
  if (axis < 0) axis += in.ndim;
  if (axis < 0 || axis >= in.ndim || elements == 0) return nullptr;
  call.axes = std::uint64_t{1} << axis;

  PyObject* result = PyObject_CallOneArg(torch.empty_like, x);
  if (!result) return nullptr;
  if (torch.read(result, &out) == 0) {
    call.in[0] = {static_cast<char*>(in.data) + in.byte_offset, strides};
    call.out = {static_cast<char*>(out.data) + out.byte_offset, strides};
    if (run_call(call, elements, "softmax")) return result;
  }
  Py_DECREF(result);
  return nullptr;
}

// quick_softmax(op, x, dim, temperature): the result; True where all is plain but a gradient is to be
// recorded; None where it takes the long way, errors included.
PyObject* quick_softmax(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4) {
    PyErr_SetString(PyExc_TypeError, "quick_softmax(op, x, dim, temperature): bad arguments");
    return nullptr;
  }
  PyObject *x = args[1], *dim = args[2], *result = nullptr;
  if (!PyLong_CheckExact(dim) || !PyFloat_CheckExact(args[3])) Py_RETURN_NONE;
  if (is_plain(x) > 0) {
    const int gradient = needs_gradient(x);
    dlpack::Tensor tensor;
    if (gradient > 0 && read_served(x, &tensor) >= 0) Py_RETURN_TRUE;
    if (gradient == 0) result = compute(args[0], x, dim, args[3]);
  }
  if (result) return result;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// quick_forward(op, x, dim, temperature): the result for an x that quick_softmax answered with True, or None.
PyObject* quick_forward(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4 || !torch.tensor) {
    PyErr_SetString(PyExc_TypeError, "quick_forward(op, x, dim, temperature): bad arguments");
    return nullptr;
  }
  if (PyObject* result = compute(args[0], args[1], args[2], args[3])) return result;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// set_quick(...): arguments as its signature below says; forward_ad is the module's dict.
PyObject* set_quick(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 10 || !PyType_Check(args[0]) || !PyDict_Check(args[9])) {
    PyErr_SetString(PyExc_TypeError, "set_quick: bad arguments");
    return nullptr;
  }
  PyObject* capsule = PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__");
  if (!capsule) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule, dlpack::kCapsuleName));
  Py_DECREF(capsule);
  while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
  if (!api || !api->from_object) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "set_quick: DLPack's exchange table is of an unknown version");
    return nullptr;
  }
  for (Py_ssize_t k = 0; k < nargs; ++k) Py_INCREF(args[k]);  // kept for good
  torch = {reinterpret_cast<PyTypeObject*>(args[0]), args[1], args[2], args[3], args[4], args[5], {args[6], args[7]}, args[8],
           args[9], api->from_object};
  Py_RETURN_NONE;
}

}  // namespace

void add_quick(py::module_& module) {
  requires_grad = PyUnicode_InternFromString("requires_grad");
  current_level = PyUnicode_InternFromString("_current_level");
  const auto fast = [](auto* f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)); };
  static PyMethodDef methods[] = {
      {"quick_softmax", fast(&quick_softmax), METH_FASTCALL,
       "quick_softmax(op, x, dim, temperature, /)\n--\n\n"
       "The result for a plain torch tensor; True where a gradient is to be recorded, None in any other case."},
      {"quick_forward", fast(&quick_forward), METH_FASTCALL,
       "quick_forward(op, x, dim, temperature, /)\n--\n\nThe result for a tensor that quick_softmax answered with True, or None."},
      {"set_quick", fast(&set_quick), METH_FASTCALL,
       "set_quick(tensor, empty_like, is_neg, is_grad_enabled, is_inference_mode_enabled, functorch_active, "
       "dispatch_modes, function_modes, is_tracing, forward_ad, /)\n--\n\nHands over the functions of torch that quick_softmax asks."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace sumexp::python
