// What the Python-visible parts of the module offer to module.cpp.
#pragma once

#include "operands.hpp"

namespace sumexp::python {

extern PyObject* axis_error;  // operands.cpp

void add_functions(py::module_& module);    // functions.cpp: softmax ... log_softmax_hvp
void add_tensors(py::module_& module);      // tensors.cpp: run_tensors, read_dlpack
void add_fast_path(py::module_& module);    // fast_path.cpp: fast_softmax, fast_forward, set_fast_path
void add_losses(py::module_& module);       // losses.cpp: _cross_entropy
void add_information(py::module_& module);  // information.cpp: _log_prob_and_entropy, _kl_div and their VJPs
void add_filters(py::module_& module);      // filters.cpp: _filter_cut
void add_sampling(py::module_& module);     // sampling.cpp: _sample and its like
void add_ragged(py::module_& module);       // ragged.cpp: _masked, _segments, _segment_offsets
void add_log_domain(py::module_& module);   // log_domain.cpp: what sumexp._log_domain calls
void add_log_matmul(py::module_& module);   // logmatmul.cpp: what sumexp._logmatmul calls
void add_stream(py::module_& module);       // stream.cpp: what sumexp._stream calls

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
