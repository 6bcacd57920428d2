// What the Python-visible parts of the module offer to module.cpp.
#pragma once

#include "operands.hpp"

namespace sumexp::python {

extern PyObject* axis_error;  // operands.cpp

void add_faces(py::module_& module);    // faces.cpp: softmax ... log_softmax_hvp
void add_tensors(py::module_& module);  // tensors.cpp: run_tensors, read_dlpack
void add_quick(py::module_& module);    // quick.cpp: quick_softmax, quick_forward, set_quick

// An operation on `count` torch tensors of its result's shape, at axis (null: -1) and temperature (null: 1), where they are
// plain and record no gradient; else null, without an error set. quick.cpp
PyObject* quick_result(Op op, PyObject* const* x, int count, PyObject* axis, PyObject* temperature);

// A helper of sumexp._arrays, the Python side of the slow path; imported on first use. New reference.
PyObject* slow_path(const char* helper);

}  // namespace sumexp::python
