// The raw entry of sumexp._logmatmul.
#include <sumexp/log_matmul.hpp>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

namespace {

// a (..., m, k), b (..., k, n), out (..., m, n), of one floating dtype; `...` the same for all.
struct Operands {
  Strided a, b, out;
  LogMatmul call;

  // written: out is.
  Operands(const char* name, py::handle given_a, py::handle given_b, py::handle given_out, const char* out_name, bool written)
      : a(strided(given_a, name, "a")),
        b(strided(given_b, name, "b")),
        out(written ? strided_out(given_out, name, out_name) : strided(given_out, name, out_name)) {
    const int d = a.shape.ndim - 2;
    if (!a.is_floating() || d < 0)
      throw py::value_error(std::string(name) + ": a is no floating array of two dimensions or more");
    require_dtype(b, a.dtype, name, "b");
    require_dtype(out, a.dtype, name, out_name);
    call.dtype = a.dtype, call.batch_dims = d, call.batch_shape = a.shape.dims;
    call.m = a.shape.dims[d], call.k = a.shape.dims[d + 1], call.n = b.shape.ndim == d + 2 ? b.shape.dims[d + 1] : 0;
    Shape shape = a.shape;
    shape.dims[d] = call.k, shape.dims[d + 1] = call.n;
    require_shape(b, shape, name, "b");
    shape.dims[d] = call.m;
    require_shape(out, shape, name, out_name);
    call.a = a.view(), call.b = b.view(), call.out = out.view();
  }
  Operands(const Operands&) = delete;
};

void log_matmul_of(py::handle a, py::handle b, py::handle out) {
  constexpr const char* name = "logmatmulexp";
  const Operands all(name, a, b, out, "out", true);
  run_released(name, [&] { return logmatmulexp(all.call); });
}

// da, db: as a and b, or None
void log_matmul_vjp_of(py::handle g, py::handle a, py::handle b, py::handle da, py::handle db) {
  constexpr const char* name = "logmatmulexp_vjp";
  const Operands all(name, a, b, g, "g", false);
  Strided to[2];
  for (int k = 0; k < 2; ++k) {
    const py::handle given = k ? db : da;
    if (given.is_none()) continue;
    to[k] = strided_out(given, name, k ? "db" : "da");
    require_dtype(to[k], all.a.dtype, name, k ? "db" : "da");
    require_shape(to[k], (k ? all.b : all.a).shape, name, k ? "db" : "da");
  }
  run_released(name, [&] { return logmatmulexp_vjp(all.call, to[0].view(), to[1].view()); });
}

void log_matmul_jvp_of(py::handle given_ta, py::handle given_tb, py::handle a, py::handle b, py::handle out) {
  constexpr const char* name = "logmatmulexp_jvp";
  const Operands all(name, a, b, out, "out", true);
  const Strided ta = strided(given_ta, name, "ta"), tb = strided(given_tb, name, "tb");
  require_dtype(ta, all.a.dtype, name, "ta");
  require_dtype(tb, all.a.dtype, name, "tb");
  require_shape(ta, all.a.shape, name, "ta");
  require_shape(tb, all.b.shape, name, "tb");
  run_released(name, [&] { return logmatmulexp_jvp(all.call, ta.view(), tb.view()); });
}

}  // namespace

void add_log_matmul(py::module_& module) {
  module.def("_logmatmulexp", &log_matmul_of, py::arg("a"), py::arg("b"), py::arg("out"));
  module.def("_logmatmulexp_vjp", &log_matmul_vjp_of, py::arg("g"), py::arg("a"), py::arg("b"), py::arg("da"), py::arg("db"));
  module.def("_logmatmulexp_jvp", &log_matmul_jvp_of, py::arg("ta"), py::arg("tb"), py::arg("a"), py::arg("b"), py::arg("out"));
}

}  // namespace sumexp::python
