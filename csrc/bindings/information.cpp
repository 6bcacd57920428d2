// The raw entries of log_prob, entropy and kl_div. Arrays of one value a row have the shape of the logits without `axis`; where
// a row has several indices, what belongs to these has one dimension more, the last.
#include <sumexp/information.hpp>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {
namespace {

struct Rows {
  LogitsRows rows;
  Shape full, row;
  const char* function;
  Place& place;  // where the logits are

  Rows(const char* function, const Strided& logits, int axis, double temperature, Place& place)
      : function(function), place(place) {
    full = logits.shape;
    rows.dtype = logits.dtype, rows.ndim = full.ndim, rows.shape = full.dims, rows.axis = axis, rows.temperature = temperature;
    for (int d = 0; d < full.ndim; ++d)
      if (d != axis) row.dims[row.ndim++] = full.dims[d];
  }
  Rows(const Rows&) = delete;  // rows.shape points into it

  Strided read(py::handle given, const char* name) const { return strided(given, function, name, &place); }
  Strided read_out(py::handle given, const char* name) const { return strided_out(given, function, name, &place); }
  const Strided& like_logits(const Strided& array, const char* name) const {
    require_dtype(array, rows.dtype, function, name);
    require_shape(array, full, function, name);
    return array;
  }
  // Of one value a row, or, where `picks` says so, of as many as a row has indices; laid over the logits' dimensions.
  void lay(Strided& array, const char* name, bool picks) {
    Shape shape = row;
    std::int64_t step = 0;
    if (picks && array.shape.ndim > row.ndim) {
      step = array.strides[row.ndim];
      shape.dims[shape.ndim++] = array.shape.dims[row.ndim];
    }
    require_shape(array, shape, function, name);
    if (picks) rows.picks = shape.ndim > row.ndim ? shape.dims[row.ndim] : 1;
    for (int d = row.ndim - 1; d >= rows.axis; --d) array.strides[d + 1] = array.strides[d];
    array.strides[rows.axis] = step;
  }
};

struct Optional {
  Strided array;
  bool given = false;
  View view() const { return given ? array.view() : View{}; }
};

void check_axis(const char* function, const Strided& logits, int axis) {
  if (axis >= 0 && axis < logits.shape.ndim) return;
  PyErr_Format(PyExc_ValueError, "%s: axis is %d, accepted: 0 to %d", function, axis, logits.shape.ndim - 1);
  throw py::error_already_set();
}
Strided floating(py::handle given, const char* function, const char* name, Place& place) {
  const Strided array = strided(given, function, name, &place);
  if (array.is_floating()) return array;
  PyErr_Format(PyExc_TypeError, "%s: %s has integers or bools, accepted: a floating dtype", function, name);
  throw py::error_already_set();
}

// index, and the array that has a value for each: both or neither
void lay_picks(Rows& rows, py::handle index_given, py::handle given, const char* name, bool out, Optional& index,
               Optional& values) {
  if (index_given.is_none() || given.is_none()) return;
  index.array = rows.read(index_given, "index");
  if (index.array.kind != Kind::signed_integer || index.array.item != 8) {
    PyErr_Format(PyExc_TypeError, "%s: index has another dtype, accepted: int64", rows.function);
    throw py::error_already_set();
  }
  values.array = out ? rows.read_out(given, name) : rows.read(given, name);
  require_dtype(values.array, rows.rows.dtype, rows.function, name);
  require_shape(values.array, index.array.shape, rows.function, name);
  rows.lay(index.array, "index", true);
  rows.lay(values.array, name, true);
  index.given = values.given = true;
}
void lay_row(Rows& rows, py::handle given, const char* name, bool out, Optional& value) {
  if (given.is_none()) return;
  value.array = out ? rows.read_out(given, name) : rows.read(given, name);
  require_dtype(value.array, rows.rows.dtype, rows.function, name);
  rows.lay(value.array, name, false);
  value.given = true;
}

// The CPU's function, or the one for the device where the arrays are. It takes no workspace.
template <class OnCpu, class OnCuda, class... Views>
void run(const Rows& rows, const OnCpu& on_cpu, const OnCuda& on_cuda, const Views&... views) {
  run_at(
      rows.place, py::none(), rows.function, [&] { return on_cpu(rows.rows, views...); },
      [&](cuda::Target& target) { return on_cuda(rows.rows, views..., target); });
}

void forward(const char* function, py::handle logits_given, py::handle index_given, int axis, double temperature,
             py::handle log_prob_given, py::handle entropy_given) {
  Place place;
  const Strided logits = floating(logits_given, function, "logits", place);
  check_axis(function, logits, axis);
  Rows rows(function, logits, axis, temperature, place);
  Optional index, log_prob, entropy;
  lay_picks(rows, index_given, log_prob_given, "out", true, index, log_prob);
  lay_row(rows, entropy_given, "out", true, entropy);
  run(rows, log_prob_and_entropy, cuda::log_prob_and_entropy, logits.view(), index.view(), log_prob.view(), entropy.view());
}
void backward(const char* function, py::handle g_log_prob_given, py::handle g_entropy_given, py::handle logits_given,
              py::handle index_given, int axis, double temperature, py::handle out_given) {
  Place place;
  const Strided logits = floating(logits_given, function, "logits", place);
  check_axis(function, logits, axis);
  Rows rows(function, logits, axis, temperature, place);
  const Strided out = rows.like_logits(rows.read_out(out_given, "out"), "out");
  Optional index, g_log_prob, g_entropy;
  lay_picks(rows, index_given, g_log_prob_given, "g", false, index, g_log_prob);
  lay_row(rows, g_entropy_given, "g", false, g_entropy);
  run(rows, log_prob_and_entropy_vjp, cuda::log_prob_and_entropy_vjp, g_log_prob.view(), g_entropy.view(), logits.view(),
      index.view(), out.view());
}
void divergence(py::handle p_given, py::handle q_given, int axis, py::handle out_given) {
  const char* const function = "kl_div";
  Place place;
  const Strided p = floating(p_given, function, "p_logits", place);
  check_axis(function, p, axis);
  Rows rows(function, p, axis, 1.0, place);
  const Strided q = rows.like_logits(rows.read(q_given, "q_logits"), "q_logits");
  Optional out;
  lay_row(rows, out_given, "out", true, out);
  run(rows, kl_div, cuda::kl_div, p.view(), q.view(), out.view());
}
void divergence_vjp(py::handle g_given, py::handle p_given, py::handle q_given, int axis, py::handle p_out, py::handle q_out) {
  const char* const function = "kl_div_vjp";
  Place place;
  const Strided p = floating(p_given, function, "p_logits", place);
  check_axis(function, p, axis);
  Rows rows(function, p, axis, 1.0, place);
  const Strided q = rows.like_logits(rows.read(q_given, "q_logits"), "q_logits");
  const Strided dp = rows.like_logits(rows.read_out(p_out, "out_p"), "out_p");
  const Strided dq = rows.like_logits(rows.read_out(q_out, "out_q"), "out_q");
  Optional g;
  lay_row(rows, g_given, "g", false, g);
  run(rows, kl_div_vjp, cuda::kl_div_vjp, g.view(), p.view(), q.view(), dp.view(), dq.view());
}

}  // namespace

void add_information(py::module_& module) {
  module.def("_log_prob_and_entropy", &forward);
  module.def("_log_prob_and_entropy_vjp", &backward);
  module.def("_kl_div", &divergence);
  module.def("_kl_div_vjp", &divergence_vjp);
}

}  // namespace sumexp::python
