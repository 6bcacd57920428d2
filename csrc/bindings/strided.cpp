#include "strided.hpp"

#include <algorithm>
#include <string>

#include "functions.hpp"

namespace sumexp::python {

namespace {

PyObject* exchange_attribute = nullptr;  // "__dlpack_c_exchange_api__", interned

// The exchange table of an object's type; null, with no error set, where it has none.
const dlpack::ExchangeAPI* exchange_table(PyObject* object) {
  PyObject* capsule = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), exchange_attribute);
  // The table is static in its library: it outlives the capsule reference.
  const auto* api =
      static_cast<const dlpack::ExchangeAPI*>(capsule ? PyCapsule_GetPointer(capsule, dlpack::kCapsuleName) : nullptr);
  Py_XDECREF(capsule);
  PyErr_Clear();
  while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
  return api && api->from_object ? api : nullptr;
}

[[noreturn]] void refuse(PyObject* kind, const char* format, const char* function, const char* argument, PyObject* given) {
  PyErr_Format(kind, format, function, argument, given);
  throw py::error_already_set();
}

constexpr const char* kAccepted = "%s: %s has dtype %S, accepted: float16, bfloat16, float32, float64, integers or bool";

Strided of_ndarray(PyObject* given, const char* function, const char* argument) {
  const Array* const array = as_array(given);
  const Descr* const type = descr(array);
  Strided view;
  view.data = array->data;
  view.shape = shape_of(array);
  std::copy(array->strides, array->strides + array->nd, view.strides);
  view.writeable = array->flags & kWriteable;
  if (!(array->flags & kAligned))
    refuse(PyExc_ValueError, "%s: %s is not aligned, accepted: an aligned array%.0S", function, argument, given);
  // bool, then signed and unsigned integers in turn, of char to long long
  constexpr int kSizes[] = {1, 1, 1, 2, 2, 4, 4, sizeof(long), sizeof(long), 8, 8};
  if (const int code = dtype_code(array); code >= 0) {
    view.dtype = static_cast<DType>(code);
    view.item = item_size(code);
  } else if (is_native(type) && type->type_num >= 0 && type->type_num < 11) {
    view.kind = type->type_num == kBoolNum ? Kind::boolean : type->type_num % 2 ? Kind::signed_integer : Kind::unsigned_integer;
    view.item = kSizes[type->type_num];
  } else {
    refuse(PyExc_TypeError, kAccepted, function, argument, array->descr);
  }
  return view;
}

Strided of_tensor(PyObject* given, const char* function, const char* argument, Place* place) {
  Place own;
  if (!place) place = &own;
  dlpack::Tensor tensor;
  const std::string name = std::string(function) + ": " + argument;
  if (!read_tensor(given, name.c_str(), &tensor, place)) throw py::error_already_set();
  Strided view;
  if (place == &own && own.is_cuda()) {
    PyErr_Format(PyExc_NotImplementedError, "%s is on %s, accepted: the CPU", name.c_str(), dlpack::Text(own.device).text);
    throw py::error_already_set();
  }
  view.data = dlpack::address(tensor);
  view.item = tensor.dtype.bits / 8;
  const int code = dlpack::dtype_code(tensor.dtype);
  if (code >= 0 && code < dlpack::kMask) {
    view.dtype = static_cast<DType>(code);
  } else if (tensor.dtype.lanes == 1 && tensor.dtype.code == dlpack::kBool) {
    view.kind = Kind::boolean;
  } else if (tensor.dtype.lanes == 1 && tensor.dtype.code == dlpack::kInt) {
    view.kind = Kind::signed_integer;
  } else if (tensor.dtype.lanes == 1 && tensor.dtype.code == dlpack::kUInt) {
    view.kind = Kind::unsigned_integer;
  } else {
    PyObject* const dtype = PyObject_GetAttrString(given, "dtype");
    if (dtype) PyErr_Format(PyExc_TypeError, kAccepted, function, argument, dtype);
    Py_XDECREF(dtype);
    throw py::error_already_set();
  }
  view.shape.ndim = tensor.ndim;
  std::copy(tensor.shape, tensor.shape + tensor.ndim, view.shape.dims);
  std::int64_t step = view.item;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    view.strides[d] = tensor.strides ? tensor.strides[d] * view.item : step;
    step *= tensor.shape[d];
  }
  return view;
}

}  // namespace

bool Strided::is_contiguous() const {
  if (shape.size() == 0) return true;
  std::int64_t step = item;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    if (shape.dims[d] != 1 && strides[d] != step) return false;
    step *= shape.dims[d];
  }
  return true;
}

Strided strided(py::handle given, const char* function, const char* argument, Place* place) {
  if (!is_ndarray(given.ptr())) return of_tensor(given.ptr(), function, argument, place);
  if (place && place->is_cuda()) {
    PyErr_Format(PyExc_TypeError, "%s: %s is on the CPU, accepted: %s, where the first input is", function, argument,
                 dlpack::Text(place->device).text);
    throw py::error_already_set();
  }
  if (place) place->device = {dlpack::kCPU, 0};
  return of_ndarray(given.ptr(), function, argument);
}

Strided strided_out(py::handle given, const char* function, const char* argument, Place* place) {
  const Strided view = strided(given, function, argument, place);
  if (!view.writeable)
    refuse(PyExc_ValueError, "%s: %s is read-only, accepted: a writeable array%.0S", function, argument, given.ptr());
  Operand operand;
  operand.data = view.data;
  std::copy(view.strides, view.strides + view.shape.ndim, operand.strides);
  if (overlaps_itself(operand, view.item, view.shape))
    refuse(PyExc_ValueError, "%s: %s has elements that share memory, accepted: distinct elements%.0S", function, argument,
           given.ptr());
  return view;
}

void require_shape(const Strided& array, const Shape& shape, const char* function, const char* argument) {
  if (array.shape == shape) return;
  PyObject *const given = shape_tuple(array.shape), *const accepted = given ? shape_tuple(shape) : nullptr;
  if (accepted) PyErr_Format(PyExc_ValueError, "%s: %s has shape %R, accepted: %R", function, argument, given, accepted);
  Py_XDECREF(given);
  Py_XDECREF(accepted);
  throw py::error_already_set();
}

void require_dtype(const Strided& array, DType dtype, const char* function, const char* argument) {
  if (array.is_floating() && array.dtype == dtype) return;
  constexpr const char* kNames[] = {"float16", "bfloat16", "float32", "float64"};
  PyErr_Format(PyExc_TypeError, "%s: %s has %s, accepted: %s", function, argument,
               array.is_floating() ? kNames[static_cast<int>(array.dtype)] : "integers or bools",
               kNames[static_cast<int>(dtype)]);
  throw py::error_already_set();
}

cuda::Target target_at(const Place& place, py::handle workspace, const char* function) {
  cuda::Target target;
  target.device = place.device.id;
  target.stream = place.stream;
  if (!workspace || workspace.is_none()) return target;
  Place its = place;
  const Strided bytes = strided(workspace, function, "workspace", &its);
  if (bytes.kind != Kind::unsigned_integer || bytes.item != 1 || !bytes.is_contiguous())
    refuse(PyExc_TypeError, "%s: %s is not contiguous uint8%.0S", function, "workspace", workspace.ptr());
  target.workspace = bytes.data;
  target.workspace_bytes = static_cast<std::size_t>(bytes.shape.size());
  return target;
}

py::object wanted_or_none(const Status& status, const cuda::Target& target, const char* function) {
  if (status.code == Code::needs_workspace) return py::int_(target.workspace_bytes);
  if (!check(status, function)) throw py::error_already_set();
  return py::none();
}

bool has_no_memory(PyObject* object, const dlpack::Tensor& tensor) {
  for (int d = 0; d < tensor.ndim; ++d)
    if (tensor.shape[d] == 0) return false;
  PyObject* storage = PyObject_CallMethod(object, "untyped_storage", nullptr);
  PyObject* first = storage ? PyObject_CallMethod(storage, "data_ptr", nullptr) : nullptr;
  const bool memory = first ? PyObject_IsTrue(first) == 1 : !storage;  // torch refuses to say where there cannot be any
  Py_XDECREF(first);
  Py_XDECREF(storage);
  PyErr_Clear();
  return !memory;
}

bool is_still_at(PyObject* object, const Place& place, const void* address) {
  dlpack::Tensor now;
  if (place.api->from_object(object, &now) != 0) return false;
  if (dlpack::address(now) == address) return true;
  PyErr_SetString(PyExc_RuntimeError, "a tensor was given other memory during the call");
  return false;
}

bool read_tensor(PyObject* object, const char* name, dlpack::Tensor* tensor, Place* place) {
  const dlpack::ExchangeAPI* api = exchange_table(object);
  if (!api) {
    PyErr_Format(PyExc_TypeError, "%s is a %s, accepted: a tensor with __dlpack_c_exchange_api__", name,
                 Py_TYPE(object)->tp_name);
    return false;
  }
  if (api->from_object(object, tensor) != 0) return false;
  if (dlpack::is_low(*tensor)) {
    const bool none = has_no_memory(object, *tensor);
    if (api->from_object(object, tensor) != 0) return false;
    if (none) {
      PyErr_Format(PyExc_RuntimeError, "%s has elements, but its storage is empty, accepted: a tensor with memory", name);
      return false;
    }
  }
  place->api = api;
  const dlpack::Device device = dlpack::plain(tensor->device);
  if (!place->device.type) {
    if (!dlpack::is_served(device)) {
      PyErr_Format(PyExc_TypeError, "%s is on %s, accepted: %s", name, dlpack::Text(device).text, dlpack::served());
      return false;
    }
    place->device = device;
    if (device.type == dlpack::kCUDA && api->current_stream && api->current_stream(device.type, device.id, &place->stream) != 0)
      return false;
  } else if (device.type != place->device.type || device.id != place->device.id) {
    PyErr_Format(PyExc_TypeError, "%s is on %s, accepted: %s, where the first input is", name, dlpack::Text(device).text,
                 dlpack::Text(place->device).text);
    return false;
  }
  if (tensor->ndim > kMaxDims) {
    PyErr_Format(PyExc_ValueError, "%s has %d dimensions, accepted: up to %d", name, static_cast<int>(tensor->ndim), kMaxDims);
    return false;
  }
  return true;
}

void add_strided() { exchange_attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__"); }

}  // namespace sumexp::python
