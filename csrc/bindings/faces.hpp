// What the Python-visible parts of the module offer to module.cpp.
#pragma once

#include "operands.hpp"

namespace sumexp::python {

extern PyObject* axis_error;  // operands.cpp

void add_faces(py::module_& module);    // faces.cpp: softmax ... log_softmax_hvp
void add_tensors(py::module_& module);  // tensors.cpp: run_tensors, read_dlpack
void add_quick(py::module_& module);    // quick.cpp: quick_softmax, quick_forward, set_quick

// A call without weights, mask or sign: a Python object for each tensor, and null for what was not given.
struct QuickCall {
  Op op;
  PyObject* const* x;
  int count;
  PyObject* axis = nullptr;  // -1
  double temperature = 1;
  PyObject* out = nullptr;
  bool keepdims = false;
};

// Its result (new reference) where it is of torch tensors of one shape, all of them plain, and records no gradient; else null,
// without an error set. quick.cpp
PyObject* quick_result(const QuickCall& quick);

// A helper of sumexp._slow_path; imported on first use. New reference.
PyObject* slow_path(const char* helper);

}  // namespace sumexp::python
