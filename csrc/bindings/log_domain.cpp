// Raw entries of the log domain: sumexp._log_domain and sumexp.torch._log_domain have the public functions.
#include <sumexp/cuda.hpp>
#include <sumexp/log_domain.hpp>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {
namespace {

constexpr const char* kInputs[kLogDomainInputs] = {"argument 1", "argument 2", "argument 3", "argument 4"};

// A view of `given`, of this shape and dtype, or nothing of None.
View view_of(py::handle given, const Shape& shape, DType dtype, const char* function, const char* argument, Strided& storage,
             bool out, Place* place = nullptr) {
  if (given.is_none()) return View{};
  storage = out ? strided_out(given, function, argument, place) : strided(given, function, argument, place);
  require_dtype(storage, dtype, function, argument);
  require_shape(storage, shape, function, argument);
  return storage.view();
}

DType floating(const Strided& array, const char* function, const char* argument) {
  if (!array.is_floating()) require_dtype(array, DType::f64, function, argument);
  return array.dtype;
}

py::object map_elements(const char* function, int op, const py::tuple& in, const py::tuple& out) {
  const LogDomainArity n = arity(static_cast<LogDomain>(op));
  if (static_cast<int>(in.size()) != n.inputs || static_cast<int>(out.size()) != n.outputs)
    throw py::type_error(std::string(function) + ": got another number of arrays than the function has");
  Strided arrays[kLogDomainInputs + kLogDomainOutputs];
  View views[kLogDomainInputs + kLogDomainOutputs];
  Place place;
  const Strided first = strided(in[0], function, kInputs[0], &place);
  const DType dtype = floating(first, function, kInputs[0]);
  for (int k = 0; k < n.inputs; ++k)
    views[k] = view_of(in[k], first.shape, dtype, function, kInputs[k], arrays[k], false, &place);
  for (int k = 0; k < n.outputs; ++k) {
    View& view = views[kLogDomainInputs + k];
    view = view_of(out[k], first.shape, dtype, function, "out", arrays[kLogDomainInputs + k], true, &place);
  }
  const auto function_of = static_cast<LogDomain>(op);
  const Shape& shape = first.shape;
  const View* const to = views + kLogDomainInputs;
  return run_at(
      place, py::none(), function, [&] { return elementwise(function_of, dtype, shape.ndim, shape.dims, views, to); },
      [&](cuda::Target& target) { return cuda::elementwise(function_of, dtype, shape.ndim, shape.dims, views, to, target); });
}

// given: None, or g or t of a derivative
void run_along(const char* function, py::handle given, py::handle x, py::handle out, int axis, bool reverse, bool exclusive,
               bool jvp) {
  Strided arrays[3];
  const Strided in = strided(x, function, "x");
  const DType dtype = floating(in, function, "x");
  const View first = view_of(given, in.shape, dtype, function, jvp ? "t" : "g", arrays[0], false);
  const View to = view_of(out, in.shape, dtype, function, "out", arrays[1], true);
  Running call;
  call.dtype = dtype, call.ndim = in.shape.ndim, call.shape = in.shape.dims, call.axis = axis;
  call.reverse = reverse, call.exclusive = exclusive;
  run_released(function, [&] {
    return given.is_none() ? logcumsumexp(call, in.view(), to)
           : jvp           ? logcumsumexp_jvp(call, first, in.view(), to)
                           : logcumsumexp_vjp(call, first, in.view(), to);
  });
}

Shape without_last(Shape shape) {
  --shape.ndim;
  return shape;
}

// which: 0 logmeanexp (count, value, sign), 1 vjp (g, dx, db), 2 jvp (t, tb, out)
py::object run_rows(const char* function, int which, py::handle x, py::handle b, const py::tuple& more) {
  if (more.size() != 3 || which < 0 || which > 2) throw py::type_error(std::string(function) + ": got no such rows");
  Strided arrays[5];
  Place place;
  arrays[0] = strided(x, function, "x", &place);
  const DType dtype = floating(arrays[0], function, "x");
  const Shape shape = arrays[0].shape;
  if (shape.ndim == 0) throw py::value_error(std::string(function) + ": x has shape (), accepted: at least one dimension");
  const Shape rows = without_last(shape);
  WeightedRows call;
  call.dtype = dtype, call.ndim = shape.ndim, call.shape = shape.dims, call.x = arrays[0].view();
  call.b = view_of(b, shape, dtype, function, "b", arrays[1], false, &place);
  constexpr const char* kNames[3][3] = {{"count", "out", "sign"}, {"g", "dx", "db"}, {"t", "tb", "out"}};
  constexpr bool kFull[3][3] = {{false, false, false}, {false, true, true}, {true, true, false}};
  constexpr bool kOut[3][3] = {{false, true, true}, {false, true, true}, {false, false, true}};
  View views[3];
  for (int k = 0; k < 3; ++k)
    views[k] = view_of(more[k], kFull[which][k] ? shape : rows, which == 0 && k == 0 ? DType::f64 : dtype, function,
                       kNames[which][k], arrays[2 + k], kOut[which][k], &place);
  const View &first = views[0], &second = views[1], &third = views[2];
  return run_at(
      place, py::none(), function,
      [&] {
        return which == 0   ? logmeanexp(call, first, second, third)
               : which == 1 ? weighted_logsumexp_vjp(call, first, second, third)
                            : weighted_logsumexp_jvp(call, first, second, third);
      },
      [&](cuda::Target& target) {
        return which == 0   ? cuda::logmeanexp(call, first, second, third, target)
               : which == 1 ? cuda::weighted_logsumexp_vjp(call, first, second, third, target)
                            : cuda::weighted_logsumexp_jvp(call, first, second, third, target);
      });
}

}  // namespace

void add_log_domain(py::module_& m) {
  m.def("_elementwise", &map_elements, py::arg("function"), py::arg("op"), py::arg("inputs"), py::arg("outputs"));
  m.def("_running", &run_along, py::arg("function"), py::arg("given"), py::arg("x"), py::arg("out"), py::arg("axis"),
        py::arg("reverse"), py::arg("exclusive"), py::arg("jvp"));
  m.def("_weighted_rows", &run_rows, py::arg("function"), py::arg("which"), py::arg("x"), py::arg("b"), py::arg("more"));
}

}  // namespace sumexp::python
