// The raw entry of sumexp._logmatmul.
#include <sumexp/log_matmul.hpp>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

namespace {

// a (..., m, k), b (..., k, n), out (..., m, n), of one floating dtype; `...` the same for all.
void log_matmul_of(py::handle given_a, py::handle given_b, py::handle given_out) {
  constexpr const char* name = "logmatmulexp";
  const Strided a = strided(given_a, name, "a"), b = strided(given_b, name, "b"), out = strided_out(given_out, name, "out");
  const int d = a.shape.ndim - 2;
  if (!a.is_floating() || d < 0) throw py::value_error("logmatmulexp: a is no floating array of two dimensions or more");
  require_dtype(b, a.dtype, name, "b");
  require_dtype(out, a.dtype, name, "out");
  LogMatmul call;
  call.dtype = a.dtype, call.batch_dims = d, call.batch_shape = a.shape.dims;
  call.m = a.shape.dims[d], call.k = a.shape.dims[d + 1], call.n = b.shape.ndim == d + 2 ? b.shape.dims[d + 1] : 0;
  Shape shape = a.shape;
  shape.dims[d] = call.k, shape.dims[d + 1] = call.n;
  require_shape(b, shape, name, "b");
  shape.dims[d] = call.m;
  require_shape(out, shape, name, "out");
  call.a = a.view(), call.b = b.view(), call.out = out.view();
  run_released(name, [&] { return logmatmulexp(call); });
}

}  // namespace

void add_log_matmul(py::module_& module) {
  module.def("_logmatmulexp", &log_matmul_of, py::arg("a"), py::arg("b"), py::arg("out"));
}

}  // namespace sumexp::python
