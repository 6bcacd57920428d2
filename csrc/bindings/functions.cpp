// The public functions for NumPy arrays: softmax, log_softmax, logsumexp and their derivatives.
//
// They are plain CPython vectorcall functions, because on a row of 16 numbers the call is the cost:
// arguments are compared by pointer, nothing is allocated but the result. Only exact ndarrays of the
// four dtypes in native byte order, and by fast_path.cpp plain torch tensors, are handled here. Everything else (other
// tensors, lists, integers, swapped bytes, DLPack) goes to sumexp._slow_path, and by way of it comes back as such arrays.
#include "functions.hpp"

#include "docs.hpp"

namespace sumexp::python {

namespace {

enum Slot { kArray0, kArray1, kArray2, kAxis, kTemperature, kB, kTangentB, kKeepdims, kReturnSign, kWhere, kOut, kSlots };

struct Function {
  const char* name;
  const char* doc;
  Op op;
  const char* arrays[kMaxInputs];  // positional array arguments; the last one gives the shape
  bool axis_none;                  // the default axis is None, not -1
  Slot keywords[6];                // after axis, keyword-only; ends at the first kArray0
};

// The order of the keyword-only arguments is that of the signature in docs.hpp.
constexpr Function kFunctions[] = {
    {"softmax", docs::softmax, Op::softmax, {"x"}, false, {kTemperature, kWhere, kOut}},
    {"log_softmax", docs::log_softmax, Op::log_softmax, {"x"}, false, {kTemperature, kWhere, kOut}},
    {"logsumexp", docs::logsumexp, Op::logsumexp, {"x"}, true, {kB, kKeepdims, kReturnSign, kWhere, kOut}},
    {"softmax_vjp", docs::softmax_vjp, Op::softmax_vjp, {"g", "y"}, false, {kTemperature, kOut}},
    {"softmax_jvp", docs::softmax_jvp, Op::softmax_vjp, {"t", "y"}, false, {kTemperature, kOut}},
    {"log_softmax_vjp", docs::log_softmax_vjp, Op::log_softmax_vjp, {"g", "y"}, false, {kTemperature, kOut}},
    {"log_softmax_jvp", docs::log_softmax_jvp, Op::log_softmax_jvp, {"t", "y"}, false, {kTemperature, kOut}},
    {"logsumexp_vjp", docs::logsumexp_vjp, Op::logsumexp_vjp, {"g", "x"}, true, {kB, kKeepdims, kOut}},
    {"logsumexp_jvp", docs::logsumexp_jvp, Op::logsumexp_jvp, {"t", "x"}, true, {kB, kTangentB, kKeepdims, kOut}},
    {"softmax_hvp", docs::softmax_hvp, Op::softmax_hvp, {"g", "v", "y"}, false, {kTemperature, kOut}},
    {"log_softmax_hvp", docs::log_softmax_hvp, Op::log_softmax_hvp, {"g", "v", "y"}, false, {kTemperature, kOut}},
};
constexpr int kFunctionCount = static_cast<int>(std::size(kFunctions));

constexpr int array_count(const Function& function) {
  int n = 0;
  while (n < kMaxInputs && function.arrays[n]) ++n;
  return n;
}

const char* slot_name(const Function& function, int slot) {
  constexpr const char* names[] = {"", "", "", "axis", "temperature", "b", "t_b", "keepdims", "return_sign", "where", "out"};
  return slot < kAxis ? function.arrays[slot] : names[slot];
}

// -- arguments -------------------------------------------------------------------------------------------

struct Keyword {
  PyObject* name = nullptr;  // interned, so that a call's keywords match by pointer
  int slot = 0;
};
Keyword keywords[kFunctionCount][kSlots + 1];  // filled at import; ends with a null name

using Arguments = PyObject* [kSlots];  // borrowed; null where not given

int find_keyword(const Keyword* table, PyObject* name) {
  for (const Keyword* k = table; k->name; ++k)
    if (k->name == name) return k->slot;
  for (const Keyword* k = table; k->name; ++k)
    if (PyUnicode_Compare(k->name, name) == 0) return k->slot;
  return -1;
}

bool parse(const Function& function, const Keyword* table, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames,
           Arguments& out) {
  const int arrays = array_count(function);
  if (nargs > arrays + 1) {
    PyErr_Format(PyExc_TypeError, "%s() takes from %d to %d positional arguments but %zd were given", function.name, arrays,
                 arrays + 1, nargs);
    return false;
  }
  for (Py_ssize_t k = 0; k < nargs; ++k) out[k < arrays ? k : Py_ssize_t{kAxis}] = args[k];
  const Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GET_ITEM(kwnames, k);
    const int slot = find_keyword(table, name);
    if (slot < 0 || out[slot]) {
      PyErr_Format(PyExc_TypeError,
                   slot < 0 ? "%s() got an unexpected keyword argument '%U'" : "%s() got multiple values for argument '%U'",
                   function.name, name);
      return false;
    }
    out[slot] = args[nargs + k];
  }
  for (int k = 0; k < arrays; ++k)
    if (!out[k]) {
      PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s' (pos %d)", function.name, function.arrays[k], k + 1);
      return false;
    }
  for (int slot : {kB, kTangentB, kWhere, kOut})
    if (out[slot] == Py_None) out[slot] = nullptr;
  return true;
}

// The check is sumexp._scalars.temperature; Python's own numbers need none where they are finite and above 0.
bool parse_temperature(const Function& function, PyObject* given, double* value) {
  if (PyFloat_CheckExact(given) || PyLong_CheckExact(given)) {
    *value = PyFloat_AsDouble(given);  // -1 for an int beyond floats
    PyErr_Clear();
    if (*value > 0 && *value <= std::numeric_limits<double>::max()) return true;
  }
  PyObject* const check = slow_path("temperature");
  PyObject* const number = check ? PyObject_CallFunction(check, "sO", function.name, given) : nullptr;
  Py_XDECREF(check);
  if (!number) return false;
  *value = PyFloat_AS_DOUBLE(number);
  Py_DECREF(number);
  return true;
}

bool parse_flag(PyObject* given, bool* value) {
  const int truth = given ? PyObject_IsTrue(given) : 0;
  *value = truth > 0;
  return truth >= 0;
}

// The one dtype of all the call's arrays, or -1 when any of them is not a plain array of the kernels'.
int plain_dtype(const Arguments& a, int arrays) {
  int code = -1;
  for (int slot : {0, 1, 2, static_cast<int>(kB)}) {
    if ((slot < kAxis && slot >= arrays) || !a[slot]) continue;
    if (!is_ndarray(a[slot]) || !(as_array(a[slot])->flags & kAligned)) return -1;
    const int this_code = dtype_code(as_array(a[slot]));
    if (this_code < 0 || (code >= 0 && this_code != code)) return -1;
    code = this_code;
  }
  const bool mask_fits = !a[kWhere] || (is_ndarray(a[kWhere]) && descr(as_array(a[kWhere]))->type_num == kBoolNum);
  return mask_fits && (!a[kOut] || is_ndarray(a[kOut])) ? code : -1;
}

// Here and below Python objects are held by plain pointers: gil.hpp has the reason.
PyObject* call_slow_path(const Function& function, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  PyObject *call = nullptr, *named = nullptr, *result = nullptr;
  PyObject* const positional = PyTuple_New(nargs);
  for (Py_ssize_t k = 0; positional && k < nargs; ++k) PyTuple_SET_ITEM(positional, k, Py_NewRef(args[k]));
  bool ready = positional && (named = PyDict_New());
  for (Py_ssize_t k = 0; ready && kwnames && k < PyTuple_GET_SIZE(kwnames); ++k)
    ready = PyDict_SetItem(named, PyTuple_GET_ITEM(kwnames, k), args[nargs + k]) == 0;
  if (ready && (call = slow_path("call"))) result = PyObject_CallFunction(call, "sOO", function.name, positional, named);
  Py_XDECREF(call);
  Py_XDECREF(named);
  Py_XDECREF(positional);
  return result;
}

// -- shapes and results ------------------------------------------------------------------------------------

bool shape_error(const Function& function, const char* argument, const Shape& given, const Shape& accepted, const char* why) {
  PyObject *const g = shape_tuple(given), *const a = g ? shape_tuple(accepted) : nullptr;
  if (a) PyErr_Format(PyExc_ValueError, "%s: %s has shape %R, accepted: %R, %s", function.name, argument, g, a, why);
  Py_XDECREF(g);
  Py_XDECREF(a);
  return false;
}

bool check_out(const Function& function, const Array* out, const Array* like, const Shape& shape) {
  const Shape given = shape_of(out);
  if (dtype_code(out) != dtype_code(like)) {
    PyErr_Format(PyExc_TypeError, "%s: out has dtype %S, accepted: %S, the dtype of the result", function.name, out->descr,
                 like->descr);
  } else if (!(given == shape)) {
    return shape_error(function, "out", given, shape, "the shape of the result");
  } else if (!(out->flags & kWriteable) || !(out->flags & kAligned)) {
    PyErr_Format(PyExc_ValueError, "%s: out is %s, accepted: a writeable, aligned array", function.name,
                 out->flags & kWriteable ? "not aligned" : "read-only");
  } else {
    return true;
  }
  return false;
}

// Bounds that meet need not mean shared memory (the odd and even columns of one array): ask NumPy then.
bool check_disjoint(const Function& function, const char* argument, PyObject* out, PyObject* input) {
  PyObject* const helper = slow_path("shares_memory");
  PyObject* const answer = helper ? PyObject_CallFunctionObjArgs(helper, out, input, nullptr) : nullptr;
  Py_XDECREF(helper);
  if (!answer) return false;
  Py_DECREF(answer);  // True and False stay
  if (answer == Py_False) return true;
  PyErr_Format(PyExc_ValueError, "%s: out overlaps %s, accepted: memory of its own, or exactly an input of the result's shape",
               function.name, argument);
  return false;
}

// -- the call ------------------------------------------------------------------------------------------------

// Arrays that describe a CUDA device's memory instead of holding their own.
struct OnDevice {
  cuda::Target target;
  PyObject* sign;  // receives the signs, or null
};

// Any of the functions, on plain arrays of one dtype `code`. Its caller frees `result` and `signs`.
PyObject* run_plain(const Function& function, const Arguments& a, int code, OnDevice* device, PyObject*& result,
                    PyObject*& signs) {
  const int arrays = array_count(function), item = item_size(code);
  const Array* main = as_array(a[arrays - 1]);
  Call call;
  call.op = a[kB] ? Op::weighted_logsumexp : function.op;
  call.dtype = static_cast<DType>(code);

  // The shape of the call: that of the main array, broadcast against the weights.
  Shape full = shape_of(main);
  if (a[kB]) {
    const Shape x = full, b = shape_of(as_array(a[kB]));
    if (!broadcast_shapes(x, b, &full)) return shape_error(function, "b", b, x, "broadcast with it"), nullptr;
  }
  call.ndim = full.ndim;
  call.shape = full.dims;
  const bool axis_is_none = a[kAxis] ? a[kAxis] == Py_None : function.axis_none;
  if (!a[kAxis] && !axis_is_none) call.axes = full.ndim ? std::uint64_t{1} << (full.ndim - 1) : 0;
  else if (!parse_axes(function.name, axis_is_none ? Py_None : a[kAxis], full.ndim, &call.axes)) return nullptr;
  bool keepdims, return_sign;
  if (!parse_flag(a[kKeepdims], &keepdims) || !parse_flag(a[kReturnSign], &return_sign)) return nullptr;
  if (a[kTemperature] && !parse_temperature(function, a[kTemperature], &call.temperature)) return nullptr;

  // Inputs. The two derivatives of logsumexp list x first in the operation table.
  Operand in[kMaxInputs], mask, out, sign;
  PyObject* source[kMaxInputs] = {};
  const bool x_first = function.op == Op::logsumexp_vjp || function.op == Op::logsumexp_jvp;
  const int inputs = arrays + (a[kB] ? 1 : 0);
  for (int k = 0; k < inputs; ++k) {
    const int slot = k >= arrays ? static_cast<int>(kB) : x_first ? 1 - k : k;
    const Array* array = as_array(a[slot]);
    source[k] = a[slot];
    if (input_is_row(function.op, k)) {
      const Shape row = row_shape(full, call.axes, keepdims), given = shape_of(array);
      if (!(given == row))
        return shape_error(function, function.arrays[slot], given, row, "the shape of the result of logsumexp"), nullptr;
      spread_row(array, keepdims, full, call.axes, &in[k]);
    } else {
      if (slot < arrays - 1 && !(shape_of(array) == full))
        return shape_error(function, function.arrays[slot], shape_of(array), full, "the shape of the last array"), nullptr;
      if (!broadcast(array, full, &in[k])) {  // code of the caller's, run by an argument, changed it meanwhile
        PyErr_Format(PyExc_ValueError, "%s: %s changed its shape during the call", function.name, slot_name(function, slot));
        return nullptr;
      }
    }
    call.in[k] = in[k].view();
  }
  if (a[kWhere]) {
    if (!broadcast(as_array(a[kWhere]), full, &mask))
      return shape_error(function, "where", shape_of(as_array(a[kWhere])), full, "or what broadcasts to it"), nullptr;
    call.where = mask.view();
  }

  // The result: checked before anything is written, or new and laid out like the main array.
  const bool is_row = out_is_row(function.op);
  const Shape result_shape = is_row ? row_shape(full, call.axes, keepdims) : full;
  if (a[kOut]) {
    if (!check_out(function, as_array(a[kOut]), main, result_shape)) return nullptr;
    result = Py_NewRef(a[kOut]);
  } else if (is_row || (main->flags & kCContiguous)) {
    result = new_array(result_shape, main->descr);
  } else {
    result = numpy.new_like(a[arrays - 1], /*order K*/ 2, nullptr, 0);
  }
  if (!result) return nullptr;
  const auto lay_out = [&](PyObject* array, Operand* operand) {
    if (is_row) spread_row(as_array(array), keepdims, full, call.axes, operand);
    else broadcast(as_array(array), full, operand);
  };
  lay_out(result, &out);
  call.out = out.view();

  if (a[kOut]) {
    const Shape out_extent = is_row ? row_shape(full, call.axes, true) : full;
    if (overlaps_itself(out, item, out_extent)) {
      PyErr_Format(PyExc_ValueError, "%s: out has elements that share memory, accepted: distinct elements", function.name);
      return nullptr;
    }
    for (int k = 0; k <= inputs; ++k) {  // the last turn is the mask's
      const bool is_mask = k == inputs;
      if (is_mask && !a[kWhere]) continue;
      const Operand& input = is_mask ? mask : in[k];
      if (!is_mask && !is_row && !input_is_row(function.op, k) && same_elements(input, out, full)) continue;
      if (!bounds_meet(out, item, input, is_mask ? 1 : item, out_extent, full)) continue;
      const char* name = is_mask ? "where" : k >= arrays ? "b" : function.arrays[x_first ? 1 - k : k];
      if (!check_disjoint(function, name, a[kOut], is_mask ? a[kWhere] : source[k])) return nullptr;
    }
  }
  if (device) {
    if (device->sign) {
      lay_out(device->sign, &sign);
      call.extra = sign.view();
    }
    return run_on_device(call, function.name, device->target);
  }
  if (return_sign && a[kB]) {
    signs = new_array(result_shape, main->descr);
    if (!signs) return nullptr;
    lay_out(signs, &sign);
    call.extra = sign.view();
  }

  if (!run_call(call, full.size(), function.name)) return nullptr;
  if (return_sign && !a[kB]) {  // a plain sum of exponentials is positive, or 0, or NaN
    PyObject* const helper = slow_path("signs");
    if (helper) signs = PyObject_CallOneArg(helper, result);
    Py_XDECREF(helper);
    if (!signs) return nullptr;
  }
  PyObject* value = a[kOut] ? Py_NewRef(result) : numpy.unwrap_0d(Py_NewRef(result));
  if (!return_sign || !value) return value;
  PyObject* sign_value = numpy.unwrap_0d(Py_NewRef(signs));
  if (!sign_value) return Py_DECREF(value), nullptr;
  return Py_BuildValue("(NN)", value, sign_value);
}

PyObject* call_plain(const Function& function, const Arguments& a, int code, OnDevice* device = nullptr) {
  PyObject *result = nullptr, *signs = nullptr;
  PyObject* const value = run_plain(function, a, code, device, result, signs);
  Py_XDECREF(result);
  Py_XDECREF(signs);
  return value;
}

// What fast_path.cpp serves; null, without an error set, for all else. Arguments that may be wrong are left to the long way.
PyObject* try_fast_path(const Function& function, const Arguments& a) {
  if (a[kWhere] || a[kB] || a[kReturnSign]) return nullptr;
  FastCall fast = {function.op, a, array_count(function), a[kAxis] || !function.axis_none ? a[kAxis] : Py_None};
  if (PyObject* const given = a[kTemperature]) {
    if (!PyFloat_CheckExact(given) && !PyLong_CheckExact(given)) return nullptr;
    fast.temperature = PyFloat_AsDouble(given);  // -1 for an int beyond floats, which no call takes either
    PyErr_Clear();
  }
  if (a[kKeepdims] && !PyBool_Check(a[kKeepdims])) return nullptr;
  fast.keepdims = a[kKeepdims] == Py_True;
  fast.out = a[kOut];
  return fast_result(fast);
}

template <int I>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  constexpr const Function& function = kFunctions[I];
  Arguments a = {};
  if (!parse(function, keywords[I], args, nargs, kwnames, a)) return nullptr;
  if ((a[kB] || a[kTangentB]) && function.op != Op::logsumexp) return call_slow_path(function, args, nargs, kwnames);
  const int code = plain_dtype(a, array_count(function));
  if (code >= 0) return call_plain(function, a, code);
  if (PyObject* result = try_fast_path(function, a)) return result;
  return call_slow_path(function, args, nargs, kwnames);
}

// on_device(name, device, stream, workspace, workspace_bytes, sign, *arrays, **options): a function on arrays that
// describe a CUDA device's memory, `out` among them; answers as run_on_device does. sumexp._devices calls it.
PyObject* on_device(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  constexpr int kLead = 6;
  int f = 0;
  while (nargs >= kLead && f < kFunctionCount && PyUnicode_CompareWithASCIIString(args[0], kFunctions[f].name) != 0) ++f;
  if (nargs < kLead || f == kFunctionCount) {
    PyErr_SetString(PyExc_TypeError,
                    "on_device(name, device, stream, workspace, workspace_bytes, sign, *arrays, **options): bad arguments");
    return nullptr;
  }
  OnDevice device;
  device.target.device = static_cast<int>(PyLong_AsLong(args[1]));
  device.target.stream = PyLong_AsVoidPtr(args[2]);
  device.target.workspace = PyLong_AsVoidPtr(args[3]);
  device.target.workspace_bytes = PyLong_AsSize_t(args[4]);
  device.sign = args[5] == Py_None ? nullptr : args[5];
  Arguments a = {};
  if (PyErr_Occurred() || !parse(kFunctions[f], keywords[f], args + kLead, nargs - kLead, kwnames, a)) return nullptr;
  const int code = plain_dtype(a, array_count(kFunctions[f]));
  if (code < 0 || !a[kOut] || (device.sign && !is_ndarray(device.sign))) {
    PyErr_Format(PyExc_TypeError, "%s: on_device takes aligned ndarrays of one floating dtype, with out", kFunctions[f].name);
    return nullptr;
  }
  return call_plain(kFunctions[f], a, code, &device);
}

template <int... I>
void add_all(py::module_& module, std::integer_sequence<int, I...>) {
  // CPython keeps pointers to these for the life of the process.
  static PyMethodDef methods[] = {{kFunctions[I].name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&entry<I>)),
                                   METH_FASTCALL | METH_KEYWORDS, kFunctions[I].doc}...};
  const py::str home("sumexp");  // the public module, for __module__ and pickle
  for (PyMethodDef& method : methods) {
    const auto function = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, home.ptr()));
    if (!function) throw py::error_already_set();
    module.add_object(method.ml_name, function);
  }
}

}  // namespace

PyObject* slow_path(const char* helper) {
  PyObject* module = PyImport_ImportModule("sumexp._slow_path");
  PyObject* function = module ? PyObject_GetAttrString(module, helper) : nullptr;
  Py_XDECREF(module);
  return function;
}

// are_served(*values): whether kernels take all of them as they are, ndarrays of one floating dtype, aligned, in native order.
PyObject* are_served(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  int code = -1;
  bool right = nargs > 0;
  for (Py_ssize_t k = 0; right && k < nargs; ++k) {
    right = is_ndarray(args[k]);
    if (!right) break;
    const Array* const array = as_array(args[k]);
    const int own = dtype_code(array);
    right = own >= 0 && (k == 0 || own == code) && (array->flags & kAligned);
    code = own;
  }
  return PyBool_FromLong(right);
}

void add_functions(py::module_& module) {
  for (int f = 0; f < kFunctionCount; ++f) {
    int n = 0;
    const auto add = [&](int slot) { keywords[f][n++] = {PyUnicode_InternFromString(slot_name(kFunctions[f], slot)), slot}; };
    for (int k = 0; k < array_count(kFunctions[f]); ++k) add(k);
    add(kAxis);
    for (Slot slot : kFunctions[f].keywords)
      if (slot != kArray0) add(slot);
  }
  add_all(module, std::make_integer_sequence<int, kFunctionCount>{});
  static PyMethodDef methods[] = {
      {"on_device", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&on_device)), METH_FASTCALL | METH_KEYWORDS,
       "on_device(name, device, stream, workspace, workspace_bytes, sign, /, *arrays, **options)\n--\n\n"
       "A public function by name on arrays that describe a CUDA device's memory."},
      {"are_served", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&are_served)), METH_FASTCALL,
       "are_served(*values)\n--\n\n"
       "Whether all are ndarrays of one floating dtype, aligned and in native byte order: kernels take them as they are."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace sumexp::python
