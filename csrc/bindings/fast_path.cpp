// The common case of torch tensors in one call: contiguous, on the CPU, with nothing special going on.
//
// For a tensor of 4 x 16 the call is the cost, and asking torch "is anything special going on?" from Python
// is a good part of it. The questions are asked here instead. Their answers, and the allocation, come from
// torch's own functions, handed over once by sumexp.torch; nothing of torch is needed to build.
#include "dlpack.hpp"
#include "functions.hpp"
#include "strided.hpp"

#include <cmath>
#include <utility>

namespace sumexp::python {

namespace {

struct Torch {  // filled by set_fast_path, under the GIL
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject* empty = nullptr;   // (sizes, strides, dtype) -> Tensor on the CPU
  PyObject* dtypes = nullptr;  // a tuple of them, by the kernels' codes
  PyObject* detach = nullptr;  // Tensor.detach
  PyObject* apply = nullptr;   // SoftmaxFast.apply
  PyObject* is_neg = nullptr;  // Tensor.is_neg, whose tensors DLPack hands over without the sign
  PyObject* is_grad_enabled = nullptr;
  PyObject* inference_mode = nullptr;    // () -> bool: nothing is recorded, whatever is_grad_enabled says
  PyObject* functorch_active = nullptr;  // () -> bool
  PyObject* counts[2] = {};              // () -> int: modes that watch operations
  PyObject* is_tracing = nullptr;        // () -> bool
  PyObject* forward_ad = nullptr;        // the dict of the module that holds _current_level
  PyObject* is_inference = nullptr;      // Tensor.is_inference
  PyObject* increment_version = nullptr;
  int (*read)(void*, dlpack::Tensor*) = nullptr;
};
Torch torch;
PyObject *requires_grad, *current_level;              // interned
PyObject *to_save, *materialize_grads, *call_of_ctx;  // of an autograd.Function's ctx

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

bool is_tensor(PyObject* x) { return Py_TYPE(x) == torch.tensor || Py_TYPE(x) == torch.parameter; }

int is_plain(PyObject* x) { return is_tensor(x) ? answers(torch.is_neg, x, Py_False) : 0; }

int needs_gradient(PyObject* x) {
  PyObject* flag = PyObject_GetAttr(x, requires_grad);
  if (!flag) return -1;
  Py_DECREF(flag);
  if (flag != Py_True) return 0;
  const int yes = answers(torch.is_grad_enabled, Py_True);
  return yes > 0 ? answers(torch.inference_mode, Py_False) : yes;
}

// The kernels' code for x's dtype, and what DLPack tells of it; -1, with or without an error set, where they do not take x:
// not strided CPU memory of their dtypes.
int read_served(PyObject* x, dlpack::Tensor* tensor, bool ask = true) {
  if (torch.read(x, tensor) != 0) return -1;
  if (ask && dlpack::is_low(*tensor) && (has_no_memory(x, *tensor) || torch.read(x, tensor) != 0)) return -1;
  if (tensor->device.type != dlpack::kCPU || tensor->ndim > kMaxDims) return -1;
  const int code = dlpack::dtype_code(tensor->dtype);
  return code >= dlpack::kMask ? -1 : code;
}

bool is_contiguous(const dlpack::Tensor& tensor, const Shape& shape) {
  if (tensor.ndim != shape.ndim) return false;
  std::int64_t step = 1;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] != shape.dims[d] || tensor.strides[d] != step) return false;
    step *= shape.dims[d];
  }
  return true;
}

// Whether a call may write to a tensor that the caller gave: no gradient goes through it, and it is apart from the inputs
// or, element by element, one of them. What autograd has saved of it is then marked as changed.
bool may_write(PyObject* out, const Call& call, std::int64_t in_bytes, std::int64_t out_bytes) {
  if (is_plain(out) <= 0 || answers(torch.is_inference, out, Py_False) <= 0) return false;
  PyObject* gradient = PyObject_GetAttr(out, requires_grad);
  Py_XDECREF(gradient);
  if (gradient != Py_False) return false;
  const char* const low = static_cast<const char*>(call.out.data);
  for (const View& input : call.in) {
    const char* const first = static_cast<const char*>(input.data);
    const bool same = first == low && !out_is_row(call.op);
    if (first && !same && first < low + out_bytes && low < first + in_bytes) return false;
  }
  PyObject* done = PyObject_CallOneArg(torch.increment_version, out);
  Py_XDECREF(done);
  return done;
}

// torch.empty's arguments for a contiguous tensor.
PyObject* empty_arguments(const Shape& shape, DType dtype) {
  Shape steps;
  steps.ndim = shape.ndim;
  std::int64_t step = 1;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    steps.dims[d] = step;
    step *= shape.dims[d];
  }
  PyObject *sizes = shape_tuple(shape), *strides = shape_tuple(steps), *result = nullptr;
  if (sizes && strides) result = PyTuple_Pack(3, sizes, strides, PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(dtype)));
  Py_XDECREF(sizes);
  Py_XDECREF(strides);
  return result;
}

// Memory for a result.
PyObject* new_tensor(const Shape& shape, DType dtype) {
  // Most programs ask for the same again and again. Free-threaded builds of Python have threads here side by side: one could
  // take a reference to arguments that another is freeing. Who finds `busy` set does without what is kept; nobody waits, and a
  // child forked meanwhile cannot hang.
  static struct {
    Shape shape;
    DType dtype;
    PyObject* arguments = nullptr;
  } last;
  static std::atomic_flag busy = ATOMIC_FLAG_INIT;
  PyObject* arguments = nullptr;
  if (!busy.test_and_set(std::memory_order_acquire)) {
    if (last.arguments && last.dtype == dtype && last.shape.ndim == shape.ndim &&
        std::equal(shape.dims, shape.dims + shape.ndim, last.shape.dims))
      arguments = Py_NewRef(last.arguments);
    busy.clear(std::memory_order_release);
  }
  if (!arguments) {
    arguments = empty_arguments(shape, dtype);
    if (!arguments) return nullptr;
    PyObject* replaced = nullptr;
    if (!busy.test_and_set(std::memory_order_acquire)) {
      replaced = last.arguments;
      last.arguments = Py_NewRef(arguments);
      last.shape = shape;
      last.dtype = dtype;
      busy.clear(std::memory_order_release);
    }
    Py_XDECREF(replaced);
  }
  PyObject* result = PyObject_Call(torch.empty, arguments, nullptr);
  Py_DECREF(arguments);
  return result;
}

// A call on contiguous CPU tensors of one shape and dtype, checked and ready but for its result.
struct Prepared {
  PyObject* const* inputs;
  int count;
  Shape full, result;
  Call call;
  std::int64_t strides[kMaxDims], out_strides[kMaxDims], in_bytes, out_bytes;

  // False where the tensors are something else, with or without an error set.
  bool read(const FastCall& fast) {
    inputs = fast.x;
    count = fast.count;
    for (int k = 0; k < count; ++k) {
      dlpack::Tensor in;
      const int code = read_served(inputs[k], &in);
      if (code < 0) return false;
      if (k == 0) {
        call.dtype = static_cast<DType>(code);
        full.ndim = in.ndim;
        std::copy_n(in.shape, full.ndim, full.dims);
      }
      if (call.dtype != static_cast<DType>(code) || !is_contiguous(in, full)) return false;
      call.in[k] = {dlpack::address(in), strides};
    }
    if (fast.axis ? !parse_axes("", fast.axis, full.ndim, &call.axes) : full.ndim == 0) return false;
    if (!fast.axis) call.axes = std::uint64_t{1} << (full.ndim - 1);
    call.op = fast.op;
    call.ndim = full.ndim;
    call.shape = full.dims;
    call.temperature = fast.temperature;

    const bool is_row = out_is_row(call.op);
    in_bytes = out_bytes = item_size(static_cast<int>(call.dtype));
    for (int d = full.ndim - 1; d >= 0; --d) {
      const bool reduced = is_row && call.axes >> d & 1;
      strides[d] = in_bytes;
      out_strides[d] = reduced ? 0 : out_bytes;
      in_bytes *= full.dims[d];
      if (!reduced) out_bytes *= full.dims[d];
    }
    result = is_row ? row_shape(full, call.axes, fast.keepdims) : full;
    const float T = static_cast<float>(call.temperature);  // others are errors, or for float64 alone
    return in_bytes != 0 && T > 0 && std::isfinite(T);
  }

  // Where a tensor's elements are; null, with or without an error set, if it is not contiguous, of this shape and our dtype.
  // ask: whether there is memory at a low address, for which Python runs.
  char* place_of(PyObject* tensor, const Shape& shape, bool ask = true) const {
    dlpack::Tensor now;
    const bool fits = read_served(tensor, &now, ask) == static_cast<int>(call.dtype) && is_contiguous(now, shape);
    return fits ? dlpack::address(now) : nullptr;
  }

  // The result: a new tensor, or `given`. Null, with or without an error set, where that does not fit.
  PyObject* run(PyObject* given) {
    PyObject* tensor = given ? Py_NewRef(given) : new_tensor(result, call.dtype);
    if (!tensor) return nullptr;
    call.out = {place_of(tensor, result), out_strides};
    if (!given && call.out.data) sumexp::prefer_large_pages(call.out.data, static_cast<std::size_t>(out_bytes));
    bool ready = call.out.data && (!given || may_write(given, call, in_bytes, out_bytes));
    // Whatever called Python may have run a finalizer, and that may have given a tensor other memory. From here on nothing
    // does.
    ready = ready && place_of(tensor, result, false) == call.out.data;
    for (int k = 0; ready && k < count; ++k) ready = place_of(inputs[k], full, false) == call.in[k].data;
    if (ready && run_call(call, in_bytes / item_size(static_cast<int>(call.dtype)), "softmax")) return tensor;
    Py_DECREF(tensor);
    return nullptr;
  }
};

// A call whose gradient is to be recorded, from fast_softmax through torch's Function.apply to fast_forward.
struct Recorded {
  Prepared prepared;
  PyObject *dim, *temperature;
};
thread_local Recorded* recorded = nullptr;

// The result of SoftmaxFast.apply(x), in which torch calls fast_forward; null with an error set where that failed.
PyObject* record(PyObject* x, Recorded& call) {
  Recorded* const outer = std::exchange(recorded, &call);  // a finalizer, say, may call in between
  PyObject* results = PyObject_CallOneArg(torch.apply, x);
  recorded = outer;
  PyObject* result = results ? PySequence_GetItem(results, 0) : nullptr;
  Py_XDECREF(results);
  return result;
}

// fast_softmax(op, x, dim, temperature): the result, or None where it takes the long way, errors included.
PyObject* fast_softmax(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4) {
    PyErr_SetString(PyExc_TypeError, "fast_softmax(op, x, dim, temperature): bad arguments");
    return nullptr;
  }
  PyObject *x = args[1], *result = nullptr;
  if (!PyLong_CheckExact(args[2]) || !PyFloat_CheckExact(args[3])) Py_RETURN_NONE;
  if (is_quiet() > 0 && is_plain(x) > 0) {
    const int gradient = needs_gradient(x);
    const auto op = static_cast<Op>(PyLong_AsLong(args[0]));
    Recorded call;
    if (gradient >= 0 && call.prepared.read({op, &x, 1, args[2], PyFloat_AS_DOUBLE(args[3])})) {
      call.dim = args[2];
      call.temperature = args[3];
      if (gradient) return record(x, call);
      result = call.prepared.run(nullptr);
    }
  }
  if (result) return result;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// fast_forward(ctx, x): SoftmaxFast.forward, within record(). The result, and its anchor, which is saved: what
// these are stands in sumexp/torch/_functions.py, and so does the same in Python, Softmax.forward.
PyObject* fast_forward(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Recorded* const call = std::exchange(recorded, nullptr);
  if (nargs != 2 || !call) {
    PyErr_SetString(PyExc_TypeError, "fast_forward(ctx, x): only fast_softmax calls it");
    return nullptr;
  }
  static PyObject* const names[] = {PyUnicode_InternFromString("softmax"), PyUnicode_InternFromString("log_softmax")};
  PyObject *ctx = args[0], *saved = nullptr, *options = nullptr, *results = nullptr;
  PyObject* y = call->prepared.run(nullptr);
  PyObject* anchor = y ? PyObject_CallOneArg(torch.detach, y) : nullptr;
  if (anchor) saved = PyTuple_Pack(1, anchor);
  if (saved) options = PyTuple_Pack(3, names[call->prepared.call.op == Op::log_softmax], call->dim, call->temperature);
  if (options && PyObject_SetAttr(ctx, to_save, saved) == 0 && PyObject_SetAttr(ctx, materialize_grads, Py_False) == 0 &&
      PyObject_SetAttr(ctx, call_of_ctx, options) == 0)
    results = PyTuple_Pack(2, y, anchor);
  Py_XDECREF(options);
  Py_XDECREF(saved);
  Py_XDECREF(anchor);
  Py_XDECREF(y);
  if (!results && !PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "fast_forward: torch gave no plain tensor");
  return results;
}

// set_fast_path(...): arguments as its signature below says; forward_ad is the module's dict.
PyObject* set_fast_path(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 16 || !PyType_Check(args[0]) || !PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) != 4 ||
      !PyDict_Check(args[12]) || !PyType_Check(args[15])) {
    PyErr_SetString(PyExc_TypeError, "set_fast_path: bad arguments");
    return nullptr;
  }
  PyObject* capsule = PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__");
  if (!capsule) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule, dlpack::kCapsuleName));
  Py_DECREF(capsule);
  while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
  if (!api || !api->from_object) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_RuntimeError, "set_fast_path: DLPack's exchange table is of an unknown version");
    return nullptr;
  }
  for (Py_ssize_t k = 0; k < nargs; ++k) Py_INCREF(args[k]);  // kept for good
  torch = {reinterpret_cast<PyTypeObject*>(args[0]),
           reinterpret_cast<PyTypeObject*>(args[15]),
           args[1],
           args[2],
           args[3],
           args[4],
           args[5],
           args[6],
           args[7],
           args[8],
           {args[9], args[10]},
           args[11],
           args[12],
           args[13],
           args[14],
           api->from_object};
  Py_RETURN_NONE;
}

}  // namespace

PyObject* fast_result(const FastCall& fast) {
  const bool served = !out_is_row(fast.op) && !input_is_row(fast.op, 1);
  if (!torch.tensor || !is_tensor(fast.x[0]) || !(served || fast.op == Op::logsumexp)) return nullptr;
  if (fast.axis && fast.axis != Py_None && !PyLong_CheckExact(fast.axis)) return nullptr;
  bool plain = is_quiet() > 0;
  for (int k = 0; plain && k < fast.count; ++k) plain = is_plain(fast.x[k]) > 0 && needs_gradient(fast.x[k]) == 0;
  Prepared prepared;
  PyObject* result = plain && prepared.read(fast) ? prepared.run(fast.out) : nullptr;
  if (!result) PyErr_Clear();
  return result;
}

void add_fast_path(py::module_& module) {
  requires_grad = PyUnicode_InternFromString("requires_grad");
  current_level = PyUnicode_InternFromString("_current_level");
  to_save = PyUnicode_InternFromString("to_save");
  materialize_grads = PyUnicode_InternFromString("materialize_grads");
  call_of_ctx = PyUnicode_InternFromString("call");
  const auto fast = [](auto* f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)); };
  static PyMethodDef methods[] = {
      {"fast_softmax", fast(&fast_softmax), METH_FASTCALL,
       "fast_softmax(op, x, dim, temperature, /)\n--\n\n"
       "The result for a plain torch tensor, or None."},
      {"fast_forward", fast(&fast_forward), METH_FASTCALL,
       "fast_forward(ctx, x, /)\n--\n\nThe forward of sumexp.torch's SoftmaxFast."},
      {"set_fast_path", fast(&set_fast_path), METH_FASTCALL,
       "set_fast_path(tensor, empty_strided_cpu, dtypes, detach, apply, is_neg, is_grad_enabled, is_inference_mode_enabled, "
       "functorch_active, dispatch_modes, function_modes, is_tracing, forward_ad, is_inference, "
       "increment_version, parameter, /)\n--\n\nHands over the functions of torch that fast_softmax asks."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace sumexp::python
