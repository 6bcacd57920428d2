// Arrays as the kernels see them: a shape, byte strides, and the checks that come before a call.
//
// Functions that can fail return false with a Python error set, in CPython's manner: these files are
// the hot path and call CPython directly.
#pragma once

#include "numpy_api.hpp"

#include <sumexp/cuda.hpp>

#include <cstdint>

namespace sumexp::python {

struct Shape {
  int ndim = 0;
  std::int64_t dims[kMaxDims];  // only the first ndim are set

  std::int64_t size() const {
    std::int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= dims[d];
    return n;
  }
  bool operator==(const Shape& other) const;
};

// One array laid over the shape of the call.
struct Operand {
  void* data = nullptr;
  std::int64_t strides[kMaxDims];  // bytes; 0 along broadcast dimensions
  View view() const { return {data, strides}; }
};

// The inputs of the operations come in two shapes (the table in sumexp.hpp): full, or "row", which has
// length 1 along every reduced axis.
inline bool out_is_row(Op op) {
  return op == Op::logsumexp || op == Op::logsumexp_jvp || op == Op::weighted_logsumexp || op == Op::cross_entropy;
}
inline bool input_is_index(Op op, int k) { return (op == Op::cross_entropy || op == Op::cross_entropy_with_grad) && k == 1; }
inline bool input_is_row(Op op, int k) { return (op == Op::logsumexp_vjp && k == 1) || input_is_index(op, k); }

Shape shape_of(const Array* a);
PyObject* shape_tuple(const Shape& shape);                      // new reference
PyObject* new_array(const Shape& shape, PyObject* descriptor);  // in C order; new reference

// The shape of one result per row: reduced axes dropped, or kept with length 1.
Shape row_shape(const Shape& full, std::uint64_t axes, bool keepdims);

// axis: an int, a tuple of ints or None -> the bits of Call::axes. A 0-d array takes axis 0 and -1 too,
// as NumPy's reductions do.
bool parse_axes(const char* function, PyObject* axis, int ndim, std::uint64_t* axes);

// Byte strides of `a` broadcast to `full` by NumPy's rules; false (no error set) where it does not fit.
bool broadcast(const Array* a, const Shape& full, Operand* out);

// The common shape of two arrays; false (no error set) where there is none.
bool broadcast_shapes(const Shape& a, const Shape& b, Shape* out);

// A row array (of `row_shape`, with or without keepdims) laid over the full shape: stride 0 along the
// reduced axes.
void spread_row(const Array* a, bool keepdims, const Shape& full, std::uint64_t axes, Operand* out);

// True when the first and last byte of the two do not exclude that they share memory.
bool bounds_meet(const Operand& a, int size_a, const Operand& b, int size_b, const Shape& shape_a, const Shape& shape_b);
bool same_elements(const Operand& a, const Operand& b, const Shape& shape);
bool overlaps_itself(const Operand& a, int item, const Shape& shape);

// Runs the call, without the GIL where it is worth it, and turns a bad status into an exception.
bool run_call(const Call& call, std::int64_t elements, const char* function);

// The same on a CUDA device: None, or the number of bytes of workspace to try again with.
PyObject* run_on_device(const Call& call, const char* function, cuda::Target& target);

// Turns a bad status into an exception; true for a good one.
bool check(const Status& status, const char* function);

}  // namespace sumexp::python
