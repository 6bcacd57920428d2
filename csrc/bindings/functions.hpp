// What the Python-visible parts of the module offer to module.cpp.
#pragma once

#include "operands.hpp"

namespace sumexp::python {

extern PyObject* axis_error;  // operands.cpp

void add_log_domain(py::module_& module);
void add_functions(py::module_& module);  // functions.cpp: softmax ... log_softmax_hvp
void add_tensors(py::module_& module);    // tensors.cpp: run_tensors, read_dlpack
void add_fast_path(py::module_& module);  // fast_path.cpp: fast_softmax, fast_forward, set_fast_path

// A call without weights, mask or sign: a Python object for each tensor, and null for what was not given.
struct FastCall {
  Op op;
  PyObject* const* x;
  int count;
  PyObject* axis = nullptr;  // -1
  double temperature = 1;
  PyObject* out = nullptr;
  bool keepdims = false;
};

// Its result (new reference) where it is of torch tensors of one shape, all of them plain, and records no gradient; else null,
// without an error set. fast_path.cpp
PyObject* fast_result(const FastCall& fast);

// A helper of sumexp._slow_path; imported on first use. New reference.
PyObject* slow_path(const char* helper);

}  // namespace sumexp::python
