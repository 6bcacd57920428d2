// The common case of torch tensors in one call: contiguous, on the CPU, with nothing special going on.
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

// 1 if no transform, mode or trace is active.
int is_quiet() {
  if (!torch.tensor) return 0;
  PyObject* level = PyDict_GetItemWithError(torch.forward_ad, current_level);
  if (!level || !PyLong_Check(level) || PyLong_AsLong(level) >= 0) return 0;
  static PyObject* const zero = PyLong_FromLong(0);
  int yes = answers(torch.functorch_active, Py_False);
  if (yes > 0) yes = answers(torch.counts[0], zero);
  if (yes > 0) yes = answers(torch.counts[1], zero);
  if (yes > 0) yes = answers(torch.is_tracing, Py_False);
  return yes;
}

int is_plain(PyObject* x) {
  return Py_TYPE(x) == torch.tensor ? answers(torch.is_neg, x, Py_False) : 0;
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

// An operation on `count` contiguous CPU tensors of one shape and dtype, which its result has too; null where they are
// something else, with or without an error set.
PyObject* compute(Op op, PyObject* const* x, int count, long axis, double temperature) {
  dlpack::Tensor in[kMaxInputs], out;
  Call call;
  std::int64_t strides[kMaxDims], elements = 1;
  for (int k = 0; k < count; ++k) {
    const int code = read_served(x[k], &in[k]);
    if (code < 0) return nullptr;
    if (k == 0) {
      call.dtype = static_cast<DType>(code);
      call.ndim = in[0].ndim;
      call.shape = in[0].shape;
      for (int d = call.ndim - 1; d >= 0; --d) {
        strides[d] = elements * item_size(code);
        elements *= call.shape[d];
      }
    }
    if (call.dtype != static_cast<DType>(code) || in[k].ndim != call.ndim) return nullptr;
    for (int d = 0; d < call.ndim; ++d)  // empty_like below must give these strides too
      if (in[k].shape[d] != call.shape[d] || in[k].strides[d] * item_size(code) != strides[d]) return nullptr;
    call.in[k] = {static_cast<char*>(in[k].data) + in[k].byte_offset, strides};
  }
  if (axis < 0) axis += call.ndim;
  if (axis < 0 || axis >= call.ndim || elements == 0) return nullptr;
  call.op = op;
  call.axes = std::uint64_t{1} << axis;
  call.temperature = temperature;

  PyObject* result = PyObject_CallOneArg(torch.empty_like, x[0]);
  if (!result) return nullptr;
  if (torch.read(result, &out) == 0) {
    call.out = {static_cast<char*>(out.data) + out.byte_offset, strides};
    if (run_call(call, elements, "softmax")) return result;
  }
  Py_DECREF(result);
  return nullptr;
}

// The same for (op, x, dim, temperature).
PyObject* compute_softmax(PyObject* const* args) {
  const long op = PyLong_AsLong(args[0]), dim = PyLong_AsLong(args[2]);
  const double temperature = PyFloat_AsDouble(args[3]);
  return PyErr_Occurred() ? nullptr : compute(static_cast<Op>(op), &args[1], 1, dim, temperature);
}

// quick_softmax(op, x, dim, temperature): the result; True where all is plain but a gradient is to be
// recorded; None where it takes the long way, errors included.
PyObject* quick_softmax(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4) {
    PyErr_SetString(PyExc_TypeError, "quick_softmax(op, x, dim, temperature): bad arguments");
    return nullptr;
  }
  PyObject *x = args[1], *result = nullptr;
  if (!PyLong_CheckExact(args[2]) || !PyFloat_CheckExact(args[3])) Py_RETURN_NONE;
  if (is_quiet() > 0 && is_plain(x) > 0) {
    const int gradient = needs_gradient(x);
    dlpack::Tensor tensor;
    if (gradient > 0 && read_served(x, &tensor) >= 0) Py_RETURN_TRUE;
    if (gradient == 0) result = compute_softmax(args);
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
  if (PyObject* result = compute_softmax(args)) return result;
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

PyObject* quick_result(Op op, PyObject* const* x, int count, PyObject* axis, PyObject* temperature) {
  if (!torch.tensor || Py_TYPE(x[0]) != torch.tensor) return nullptr;
  if ((axis && !PyLong_CheckExact(axis)) || (temperature && !PyFloat_CheckExact(temperature) && !PyLong_CheckExact(temperature)))
    return nullptr;
  bool plain = is_quiet() > 0;
  for (int k = 0; plain && k < count; ++k) plain = is_plain(x[k]) > 0 && needs_gradient(x[k]) == 0;
  PyObject* result = nullptr;
  if (plain) {
    const long dim = axis ? PyLong_AsLong(axis) : -1;
    const double T = temperature ? PyFloat_AsDouble(temperature) : 1.0;
    if (!PyErr_Occurred()) result = compute(op, x, count, dim, T);
  }
  if (!result) PyErr_Clear();
  return result;
}

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
