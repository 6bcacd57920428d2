// sumexp._core._sample and its like: what sumexp._sampling and sumexp.torch._sampling are written over.
#include "../include/sumexp/sampling.hpp"

#include "functions.hpp"
#include "strided.hpp"

#include <string>

namespace sumexp::python {
namespace {

bool in_order(const Strided& view) { return view.shape.size() == 0 || view.is_contiguous(); }

// None where it is not there.
py::object member(const py::dict& all, const char* name) {
  PyObject* const found = PyDict_GetItemString(all.ptr(), name);
  return found ? py::reinterpret_borrow<py::object>(found) : py::none();
}

// An array with one element (for all rows) or one a row, contiguous; of None the default. A seed's 64 bits may have a sign:
// some libraries have no other integers.
template <class T>
PerRow<T> per_row(py::handle given, Kind kind, std::int64_t rows, const char* function, const char* argument, Place& place) {
  PerRow<T> values;
  if (given.is_none()) return values;
  const Strided view = strided(given, function, argument, &place);
  const std::int64_t size = view.shape.size();
  const bool fits = kind == Kind::unsigned_integer ? view.is_integer() : view.kind == kind;
  if (!fits || view.item != sizeof(T) || !in_order(view) || (size != 1 && size != rows))
    throw py::type_error(std::string(function) + ": " + argument +
                         " must be contiguous, of 64 bits, of one value or one a row");
  values.data = static_cast<const T*>(view.data);
  values.step = size == 1 ? 0 : 1;
  return values;
}

// A contiguous result of `count` elements of 64 bits; null of None.
template <class T>
T* result(py::handle given, Kind kind, std::int64_t count, const char* function, const char* argument, Place& place) {
  if (given.is_none()) return nullptr;
  const Strided view = strided_out(given, function, argument, &place);
  if (view.kind != kind || view.item != sizeof(T) || !in_order(view) || view.shape.size() != count)
    throw py::type_error(std::string(function) + ": " + argument + " must be contiguous, with one element a result");
  return static_cast<T*>(view.data);
}

struct Logits {
  Place place;
  Strided x, where;
  SampleCall call;
  std::int64_t rows = 1;

  Logits(const char* function, py::handle logits, int axis, py::handle mask, const py::dict& options)
      : x(strided(logits, function, "logits", &place)) {
    if (!x.is_floating()) throw py::type_error(std::string(function) + ": logits must be of a floating dtype");
    call.dtype = x.dtype, call.ndim = x.shape.ndim, call.shape = x.shape.dims, call.axis = axis;
    call.logits = x.view();
    const int on = axis < 0 ? axis + call.ndim : axis;
    for (int d = 0; d < call.ndim; ++d)
      if (d != on) rows *= x.shape.dims[d];
    if (!mask.is_none()) {
      where = strided(mask, function, "where", &place);
      require_shape(where, x.shape, function, "where");
      if (where.kind != Kind::boolean) throw py::type_error(std::string(function) + ": where must be of bools");
      call.where = where.view();
    }
    const auto get = [&](const char* name) { return member(options, name); };
    call.seed = per_row<std::uint64_t>(get("seed"), Kind::unsigned_integer, rows, function, "seed", place);
    call.stream = per_row<std::int64_t>(get("stream"), Kind::signed_integer, rows, function, "stream", place);
    call.temperature = per_row<double>(get("temperature"), Kind::floating, rows, function, "temperature", place);
    call.top_k = per_row<std::int64_t>(get("top_k"), Kind::signed_integer, rows, function, "top_k", place);
    call.top_p = per_row<double>(get("top_p"), Kind::floating, rows, function, "top_p", place);
    call.min_p = per_row<double>(get("min_p"), Kind::floating, rows, function, "min_p", place);
    if (const py::object order = get("order"); !order.is_none()) call.order = static_cast<FilterOrder>(order.cast<int>());
    if (const py::object draws = get("num_samples"); !draws.is_none()) call.num_samples = draws.cast<std::int64_t>();
    if (const py::object again = get("replacement"); !again.is_none()) call.replacement = again.cast<bool>();
  }
};

py::object raw_sample(py::handle logits, int axis, py::handle where, const py::dict& options, py::handle out,
                      const py::dict& info, py::handle workspace) {
  constexpr const char* function = "sample";
  Logits given(function, logits, axis, where, options);
  SampleCall& call = given.call;
  std::int64_t draws;
  if (call.num_samples < 0 || __builtin_mul_overflow(given.rows, call.num_samples, &draws))
    throw py::value_error("sample: num_samples is " + std::to_string(call.num_samples) + ", accepted: integers from 0");
  const auto get = [&](const char* name) { return member(info, name); };
  call.out = result<std::int64_t>(out, Kind::signed_integer, draws, function, "out", given.place);
  call.log_prob = result<double>(get("log_prob"), Kind::floating, draws, function, "log_prob", given.place);
  call.filtered_log_prob =
      result<double>(get("filtered_log_prob"), Kind::floating, draws, function, "filtered_log_prob", given.place);
  call.kept = result<std::int64_t>(get("kept"), Kind::signed_integer, given.rows, function, "kept", given.place);
  call.cut_logit = result<double>(get("cut_logit"), Kind::floating, given.rows, function, "cut_logit", given.place);
  call.cut_index = result<std::int64_t>(get("cut_index"), Kind::signed_integer, given.rows, function, "cut_index", given.place);
  return run_at(
      given.place, workspace, function, [&] { return sample(call); },
      [&](cuda::Target& target) { return cuda::sample(call, target); });
}

py::object raw_sample_counts(py::handle logits, int axis, const py::dict& options, py::handle out, py::handle workspace) {
  constexpr const char* function = "sample_counts";
  Logits given(function, logits, axis, py::none(), options);
  const Strided counts = strided_out(out, function, "out", &given.place);
  require_shape(counts, given.x.shape, function, "out");
  if (counts.kind != Kind::signed_integer || counts.item != 8) throw py::type_error("sample_counts: out must be of int64");
  auto* const to = static_cast<std::int64_t*>(counts.data);
  return run_at(
      given.place, workspace, function, [&] { return sample_counts(given.call, to, counts.strides); },
      [&](cuda::Target& target) { return cuda::sample_counts(given.call, to, counts.strides, target); });
}

void raw_probabilities(py::handle logits, int axis, py::handle where, const py::dict& options, py::handle out) {
  constexpr const char* function = "sample_probabilities";
  Logits given(function, logits, axis, where, options);
  double* const to = result<double>(out, Kind::floating, given.x.shape.size(), function, "out", given.place);
  if (given.place.is_cuda()) throw py::type_error("sample_probabilities: logits must be on the CPU");
  run_released(function, [&] { return sample_probabilities(given.call, to); });
}

// states: uint8 (rows, chunks, piece_state_bytes); classes: int16 (rows, chunks, num_samples)
void check_pieces(const Strided& states, const Strided& classes, const Logits& given, const char* function) {
  if (states.shape.ndim != 3 || classes.shape.ndim != 3 || !in_order(states) || !in_order(classes) || states.item != 1 ||
      classes.item != 2 || states.shape.dims[0] != given.rows || classes.shape.dims[0] != given.rows ||
      states.shape.dims[1] != classes.shape.dims[1] || states.shape.dims[2] != piece_state_bytes(given.call.dtype) ||
      classes.shape.dims[2] != given.call.num_samples)
    throw py::value_error(std::string(function) + ": states or classes do not fit the logits");
}

py::object raw_sample_piece(py::handle logits, const py::dict& options, std::int64_t chunk, py::handle states,
                            py::handle classes, py::handle workspace) {
  constexpr const char* function = "linear_sample";
  Logits given(function, logits, -1, py::none(), options);
  const Strided s = strided_out(states, function, "states", &given.place),
                c = strided_out(classes, function, "classes", &given.place);
  check_pieces(s, c, given, function);
  auto* const places = static_cast<std::int16_t*>(c.data);
  return run_at(
      given.place, workspace, function, [&] { return sample_piece(given.call, chunk, s.shape.dims[1], s.data, places); },
      [&](cuda::Target& target) { return cuda::sample_piece(given.call, chunk, s.shape.dims[1], s.data, places, target); });
}

// logits: of the shape and dtype alone, (rows, all classes); its elements are not read
py::object raw_finish_pieces(py::handle logits, const py::dict& options, py::handle states, py::handle classes, py::handle out,
                             py::handle workspace) {
  constexpr const char* function = "linear_sample";
  Logits given(function, logits, -1, py::none(), options);
  const Strided s = strided(states, function, "states", &given.place), c = strided(classes, function, "classes", &given.place);
  check_pieces(s, c, given, function);
  given.call.out =
      result<std::int64_t>(out, Kind::signed_integer, given.rows * given.call.num_samples, function, "out", given.place);
  const auto* const places = static_cast<const std::int16_t*>(c.data);
  return run_at(
      given.place, workspace, function, [&] { return finish_pieces(given.call, s.shape.dims[1], s.data, places); },
      [&](cuda::Target& target) { return cuda::finish_pieces(given.call, s.shape.dims[1], s.data, places, target); });
}

py::object raw_gumbel(py::handle seed, py::handle stream, std::int64_t rows, std::int64_t n, py::handle out) {
  constexpr const char* function = "gumbel_softmax";
  Place place;
  const auto seeds = per_row<std::uint64_t>(seed, Kind::unsigned_integer, rows, function, "seed", place);
  const auto streams = per_row<std::int64_t>(stream, Kind::signed_integer, rows, function, "stream", place);
  double* const to = result<double>(out, Kind::floating, rows * n, function, "out", place);
  return run_at(
      place, py::none(), function, [&] { return gumbel_noise(seeds, streams, rows, n, to); },
      [&](cuda::Target& target) { return cuda::gumbel_noise(seeds, streams, rows, n, to, target); });
}

}  // namespace

void add_sampling(py::module_& module) {
  module.def("_sample", &raw_sample, py::arg("logits"), py::arg("axis"), py::arg("where"), py::arg("options"), py::arg("out"),
             py::arg("info"), py::arg("workspace") = py::none());
  module.def("_sample_counts", &raw_sample_counts, py::arg("logits"), py::arg("axis"), py::arg("options"), py::arg("out"),
             py::arg("workspace") = py::none());
  module.def("_sample_probabilities", &raw_probabilities, py::arg("logits"), py::arg("axis"), py::arg("where"),
             py::arg("options"), py::arg("out"));
  module.def("_sample_piece", &raw_sample_piece, py::arg("logits"), py::arg("options"), py::arg("chunk"), py::arg("states"),
             py::arg("classes"), py::arg("workspace") = py::none());
  module.def("_finish_pieces", &raw_finish_pieces, py::arg("logits"), py::arg("options"), py::arg("states"), py::arg("classes"),
             py::arg("out"), py::arg("workspace") = py::none());
  module.def("_gumbel_noise", &raw_gumbel, py::arg("seed"), py::arg("stream"), py::arg("rows"), py::arg("n"), py::arg("out"));
  module.def(
      "_chunk_classes", [](bool wide) { return chunk_classes(wide ? DType::f64 : DType::f32); }, py::arg("wide"));
  module.def(
      "_piece_state_bytes", [](bool wide) { return piece_state_bytes(wide ? DType::f64 : DType::f32); }, py::arg("wide"));
}

}  // namespace sumexp::python
