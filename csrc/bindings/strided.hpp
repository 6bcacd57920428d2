// One view of the arrays that raw entries are given: NumPy's, and torch's tensors through DLPack's exchange table. What belongs
// together (shapes, a common dtype) has been made so by the Python that calls a raw entry; what would be read or written out of
// bounds is checked here.
#pragma once

#include "dlpack.hpp"
#include "gil.hpp"
#include "operands.hpp"

namespace sumexp::python {

enum class Kind { floating, boolean, signed_integer, unsigned_integer };

struct Strided {
  void* data = nullptr;
  Kind kind = Kind::floating;
  int item = 0;              // bytes of an element
  DType dtype = DType::f32;  // of floating kind
  bool writeable = true;
  Shape shape;
  std::int64_t strides[kMaxDims];  // bytes

  View view() const { return {data, strides}; }
  bool is_floating() const { return kind == Kind::floating; }
  bool is_integer() const { return kind == Kind::signed_integer || kind == Kind::unsigned_integer; }
  // Whether it is the whole of C order, without gaps.
  bool is_contiguous() const;
};

// Where the arrays of a call live: all on the device of the first.
struct Place {
  dlpack::Device device{0, 0};               // type 0: no array so far
  void* stream = nullptr;                    // the one that is current in the tensors' library
  const dlpack::ExchangeAPI* api = nullptr;  // of the last tensor
  bool is_cuda() const { return device.type == dlpack::kCUDA; }
};

// `given`, an aligned ndarray in native byte order or a tensor; else a TypeError or ValueError that names function and
// argument. On the CPU, or, of functions that give a place, where that is: on CUDA devices too.
Strided strided(py::handle given, const char* function, const char* argument, Place* place = nullptr);
// The same of an array that is written to.
Strided strided_out(py::handle given, const char* function, const char* argument, Place* place = nullptr);
// Raises unless its shape is this one, or, of floating arrays, its dtype.
void require_shape(const Strided& array, const Shape& shape, const char* function, const char* argument);
void require_dtype(const Strided& array, DType dtype, const char* function, const char* argument);

// Runs body() -> Status without the GIL and raises for a bad one: "<function>: <message>".
template <class Body>
void run_released(const char* function, const Body& body) {
  Status status;
  without_gil([&] { status = body(); });
  if (!check(status, function)) throw py::error_already_set();
}

// The same where the arrays are: body(), or on_cuda(cuda::Target&) -> Status with a workspace, contiguous uint8 or None.
// Returns None, or the bytes of workspace that the device wants, with nothing done yet.
cuda::Target target_at(const Place& place, py::handle workspace, const char* function);
py::object wanted_or_none(const Status& status, const cuda::Target& target, const char* function);
template <class Body, class OnCuda>
py::object run_at(const Place& place, py::handle workspace, const char* function, const Body& body, const OnCuda& on_cuda) {
  Status status;
  if (!place.is_cuda()) {
    without_gil([&] { status = body(); });
    return wanted_or_none(status, {}, function);
  }
  cuda::Target target = target_at(place, workspace, function);
  without_gil([&] { status = on_cuda(target); });
  return wanted_or_none(status, target, function);
}

// -- tensors -----------------------------------------------------------------------------------------------

// Whether a tensor of torch has elements but its storage none. Asked for low addresses only: the kernels would read there. (In
// a program that is not position-independent, as some distributions' Python is, memory lies there as well.) Runs Python: what
// is known of any tensor may be out of date then.
bool has_no_memory(PyObject* object, const dlpack::Tensor& tensor);
// Whether a tensor that was read is still where it was: asked last, when no more Python runs before the kernel does. A
// finalizer may have given it other memory. False with an error set.
bool is_still_at(PyObject* object, const Place& place, const void* address);

// A tensor with DLPack's C exchange table; false with an error set where it is none, or none that is served.
bool read_tensor(PyObject* object, const char* name, dlpack::Tensor* tensor, Place* place);

void add_strided();  // before any other

}  // namespace sumexp::python
