#include "operands.hpp"

#include <algorithm>

#include "gil.hpp"

namespace sumexp::python {

PyObject* axis_error = nullptr;  // numpy.exceptions.AxisError, set at import

namespace {

// Releasing and taking the GIL back costs about 50 ns and invites a switch of threads: for a few
// microseconds of work that is a loss.
constexpr std::int64_t kReleaseElements = 16 * 1024;

bool add_axis(const char* function, PyObject* item, int ndim, std::uint64_t* axes) {
  const bool is_bool = PyBool_Check(item);
  const Py_ssize_t given = is_bool ? 0 : PyNumber_AsSsize_t(item, PyExc_OverflowError);
  if (is_bool || (given == -1 && PyErr_Occurred())) {
    if (is_bool || PyErr_ExceptionMatches(PyExc_TypeError))
      PyErr_Format(PyExc_TypeError, "%s: axis is %R, accepted: an int, a tuple of ints or None", function, item);
    return false;
  }
  const int dims = ndim ? ndim : 1;
  if (given < -dims || given >= dims) {
    PyErr_Format(axis_error, "%s: axis %zd is out of bounds for array of dimension %d", function, given, ndim);
    return false;
  }
  const std::uint64_t bit = std::uint64_t{1} << (given < 0 ? given + dims : given);
  if (*axes & bit) {
    PyErr_Format(PyExc_ValueError, "%s: duplicate value in axis", function);
    return false;
  }
  *axes |= bit;
  return true;
}

struct Bounds {
  const char *low, *high;  // [low, high) holds every byte; high == low for an empty array
};

Bounds bounds(const Operand& a, int item, const Shape& shape) {
  const char* low = static_cast<const char*>(a.data);
  const char* high = low + item;
  for (int d = 0; d < shape.ndim; ++d) {
    if (shape.dims[d] == 0) return {low, low};
    const std::int64_t reach = a.strides[d] * (shape.dims[d] - 1);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

}  // namespace

bool Shape::operator==(const Shape& other) const { return ndim == other.ndim && std::equal(dims, dims + ndim, other.dims); }

Shape shape_of(const Array* a) {
  Shape shape;
  shape.ndim = a->nd;
  for (int d = 0; d < a->nd; ++d) shape.dims[d] = a->dimensions[d];
  return shape;
}

PyObject* shape_tuple(const Shape& shape) {
  PyObject* tuple = PyTuple_New(shape.ndim);
  for (int d = 0; tuple && d < shape.ndim; ++d) {
    PyObject* n = PyLong_FromLongLong(shape.dims[d]);
    if (!n) Py_CLEAR(tuple);
    else PyTuple_SET_ITEM(tuple, d, n);
  }
  return tuple;
}

PyObject* new_array(const Shape& shape, PyObject* descriptor) {
  Py_INCREF(descriptor);  // stolen below
  Py_intptr_t dims[kMaxDims];
  for (int d = 0; d < shape.ndim; ++d) dims[d] = shape.dims[d];
  return numpy.new_from_descr(numpy.array_type, descriptor, shape.ndim, dims, nullptr, nullptr, 0, nullptr);
}

Shape row_shape(const Shape& full, std::uint64_t axes, bool keepdims) {
  Shape row;
  for (int d = 0; d < full.ndim; ++d) {
    const bool reduced = axes >> d & 1;
    if (!reduced) row.dims[row.ndim++] = full.dims[d];
    else if (keepdims) row.dims[row.ndim++] = 1;
  }
  return row;
}

bool parse_axes(const char* function, PyObject* axis, int ndim, std::uint64_t* axes) {
  *axes = 0;
  if (axis == Py_None) {
    *axes = ndim >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << ndim) - 1;
    return true;
  }
  if (!PyTuple_Check(axis)) {
    if (!add_axis(function, axis, ndim, axes)) return false;
  } else {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(axis); ++k)
      if (!add_axis(function, PyTuple_GET_ITEM(axis, k), ndim, axes)) return false;
  }
  if (ndim == 0) *axes = 0;  // the one element is its own row
  return true;
}

bool broadcast(const Array* a, const Shape& full, Operand* out) {
  const int lead = full.ndim - a->nd;
  if (lead < 0) return false;
  out->data = a->data;
  for (int d = 0; d < full.ndim; ++d) {
    const std::int64_t n = d < lead ? 1 : a->dimensions[d - lead];
    if (n != full.dims[d] && n != 1) return false;
    out->strides[d] = n == 1 ? 0 : a->strides[d - lead];
  }
  return true;
}

bool broadcast_shapes(const Shape& a, const Shape& b, Shape* out) {
  out->ndim = std::max(a.ndim, b.ndim);
  for (int d = 1; d <= out->ndim; ++d) {  // from the last dimension
    const std::int64_t na = d <= a.ndim ? a.dims[a.ndim - d] : 1;
    const std::int64_t nb = d <= b.ndim ? b.dims[b.ndim - d] : 1;
    if (na != nb && na != 1 && nb != 1) return false;
    out->dims[out->ndim - d] = na == 1 ? nb : na;
  }
  return true;
}

void spread_row(const Array* a, bool keepdims, const Shape& full, std::uint64_t axes, Operand* out) {
  out->data = a->data;
  for (int d = 0, k = 0; d < full.ndim; ++d) {
    const bool reduced = axes >> d & 1;
    out->strides[d] = reduced ? 0 : a->strides[k];
    if (!reduced || keepdims) ++k;
  }
}

bool bounds_meet(const Operand& a, int size_a, const Operand& b, int size_b, const Shape& shape_a, const Shape& shape_b) {
  const Bounds x = bounds(a, size_a, shape_a), y = bounds(b, size_b, shape_b);
  return x.low < y.high && y.low < x.high && x.low < x.high && y.low < y.high;
}

bool same_elements(const Operand& a, const Operand& b, const Shape& shape) {
  if (a.data != b.data) return false;
  for (int d = 0; d < shape.ndim; ++d)
    if (shape.dims[d] > 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

bool overlaps_itself(const Operand& a, int item, const Shape& shape) {
  // Dimensions by growing stride: each must step over everything the smaller ones reach. Every view
  // that slicing can make does; what does not comes from as_strided or broadcasting.
  std::pair<std::int64_t, std::int64_t> steps[kMaxDims];  // |stride|, length
  int count = 0;
  for (int d = 0; d < shape.ndim; ++d) {
    if (shape.dims[d] == 0) return false;
    if (shape.dims[d] > 1) steps[count++] = {std::abs(a.strides[d]), shape.dims[d]};
  }
  std::sort(steps, steps + count);
  std::int64_t reach = item;
  for (int k = 0; k < count; ++k) {
    if (steps[k].first < reach) return true;
    reach += steps[k].first * (steps[k].second - 1);
  }
  return false;
}

bool check(const Status& status, const char* function) {
  if (status.ok()) return true;
  PyObject* kind = PyExc_ValueError;
  switch (status.code) {
    case Code::out_of_memory: kind = PyExc_MemoryError; break;
    case Code::unsupported: kind = PyExc_NotImplementedError; break;
    case Code::device_error: kind = PyExc_RuntimeError; break;
    default: break;
  }
  PyErr_Format(kind, "%s: %s", function, status.message);
  return false;
}

bool run_call(const Call& call, std::int64_t elements, const char* function) {
  Status status;
  if (elements > kReleaseElements) without_gil([&] { status = run(call); });
  else status = run(call);
  return check(status, function);
}

PyObject* run_on_device(const Call& call, const char* function, cuda::Target& target) {
  Status status;
  without_gil([&] { status = cuda::run(call, target); });  // a launch waits where the device's queue is full
  if (status.code == Code::needs_workspace) return PyLong_FromSize_t(target.workspace_bytes);
  return check(status, function) ? Py_NewRef(Py_None) : nullptr;
}

}  // namespace sumexp::python
