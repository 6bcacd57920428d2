// Raw entries of sumexp._stream: rows that come in pieces. States are handed over as contiguous integers of 64 bits,
// (states, rows, 12), the bytes of SumState.
#include <sumexp/stream.hpp>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

namespace {

constexpr int kNumbers = sizeof(SumState) / 8;

struct States {
  SumState* data;
  std::int64_t count, rows;
};
States states_of(py::handle given, const char* function, bool written) {
  const Strided view = written ? strided_out(given, function, "states") : strided(given, function, "states");
  if (!view.is_integer() || view.item != 8 || !view.is_contiguous() || view.shape.ndim != 3 || view.shape.dims[2] != kNumbers)
    throw py::value_error(std::string(function) + ": states is no contiguous array (states, rows, 12) of integers of 64 bits");
  return {static_cast<SumState*>(view.data), view.shape.dims[0], view.shape.dims[1]};
}

std::int64_t rows_of(const Shape& shape) {
  std::int64_t rows = 1;
  for (int d = 0; d < shape.ndim - 1; ++d) rows *= shape.dims[d];
  return rows;
}
[[noreturn]] void refuse(const char* function, const char* what) { throw py::value_error(std::string(function) + ": " + what); }

// x and b: (..., n) of one shape and floating dtype.
StreamCall call_of(const Strided& x, std::int64_t first, int sums, const char* function) {
  if (!x.is_floating() || x.shape.ndim < 1) refuse(function, "x is no floating array of one dimension or more");
  StreamCall call;
  call.dtype = x.dtype, call.ndim = x.shape.ndim, call.shape = x.shape.dims;
  call.x = x.view(), call.first = first, call.sums = sums;
  return call;
}

int count_states_of(int dtype, std::int64_t first, std::int64_t n) { return count_states(static_cast<DType>(dtype), first, n); }

void reduce_states_of(py::handle given_x, py::handle given_b, std::int64_t first, int sums, py::handle to) {
  constexpr const char* name = "LogSumExp.update";
  const Strided x = strided(given_x, name, "x");
  StreamCall call = call_of(x, first, sums, name);
  Strided b;
  if (sums & kSumWeighted) {
    b = strided(given_b, name, "b");
    require_shape(b, x.shape, name, "b");
    require_dtype(b, x.dtype, name, "b");
    call.b = b.view();
  }
  const States states = states_of(to, name, true);
  if (states.rows != rows_of(x.shape) || states.count != count_states(x.dtype, first, x.shape.dims[x.shape.ndim - 1]))
    refuse(name, "states has not the size that x asks for");
  run_released(name, [&] { return reduce_states(call, states.data); });
}

std::int64_t join_states_of(const char* name, py::handle given) {
  const States states = states_of(given, name, true);
  std::int64_t joined = 0;
  run_released(name, [&] { return join_states(states.data, states.count, states.rows, &joined); });
  return joined;
}

// out, sign: (rows,), contiguous
void finish_states_of(py::handle given, py::handle out, py::handle sign) {
  constexpr const char* name = "LogSumExp.result";
  const States states = states_of(given, name, false);
  Strided results[2];
  void* data[2] = {nullptr, nullptr};
  for (int k = 0; k < (sign.is_none() ? 1 : 2); ++k) {
    Strided& to = results[k] = strided_out(k ? sign : out, name, k ? "sign" : "out");
    if (!to.is_floating() || !to.is_contiguous() || to.shape.size() != states.rows || to.dtype != results[0].dtype)
      refuse(name, "out is no contiguous floating array of one number a row");
    data[k] = to.data;
  }
  run_released(name, [&] { return finish_states(states.data, states.count, states.rows, results[0].dtype, data[0], data[1]); });
}

void map_states_of(int op, py::handle given, py::handle given_x, std::int64_t first, py::handle given_out) {
  const char* const name = op == static_cast<int>(Op::softmax) ? "LogSumExp.softmax" : "LogSumExp.log_softmax";
  const States states = states_of(given, name, false);
  const Strided x = strided(given_x, name, "x");
  StreamCall call = call_of(x, first, kSumApart, name);
  const Strided out = strided_out(given_out, name, "out");
  require_shape(out, x.shape, name, "out");
  require_dtype(out, x.dtype, name, "out");
  if (states.rows != rows_of(x.shape)) refuse(name, "states are not those of the rows of x");
  run_released(name, [&] { return map_states(static_cast<Op>(op), states.data, states.count, call, out.view()); });
}

}  // namespace

void add_stream(py::module_& module) {
  module.def("_count_states", &count_states_of, py::arg("dtype"), py::arg("first"), py::arg("n"));
  module.def("_reduce_states", &reduce_states_of, py::arg("x"), py::arg("b"), py::arg("first"), py::arg("sums"),
             py::arg("states"));
  module.def("_join_states", &join_states_of, py::arg("function"), py::arg("states"));
  module.def("_finish_states", &finish_states_of, py::arg("states"), py::arg("out"), py::arg("sign"));
  module.def("_map_states", &map_states_of, py::arg("op"), py::arg("states"), py::arg("x"), py::arg("first"), py::arg("out"));
}

}  // namespace sumexp::python
