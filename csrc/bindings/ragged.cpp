// _masked, _segments and _segment_offsets: the raw entries under sumexp._masked and sumexp._segments.
#include <sumexp/cuda.hpp>
#include <sumexp/ragged.hpp>

#include <vector>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {
namespace {

bool is_given(py::handle object) { return object && !object.is_none(); }

// An array of as many dimensions as the call has, each of the call's size or 1, laid over the call.
struct Laid {
  Strided array;
  std::int64_t strides[kMaxDims];

  Laid(const Strided& given, const Shape& shape, const char* function, const char* argument) : array(given) {
    if (array.shape.ndim != shape.ndim) require_shape(array, shape, function, argument);
    for (int d = 0; d < shape.ndim; ++d) {
      if (array.shape.dims[d] != shape.dims[d] && array.shape.dims[d] != 1) require_shape(array, shape, function, argument);
      strides[d] = array.shape.dims[d] == 1 ? 0 : array.strides[d];
    }
  }
  View view() const { return {array.data, strides}; }
};

// On CUDA devices lengths are there too, and are not looked at first.
py::object run_masked(const char* function, int op, py::handle x, int axis, py::handle where, py::handle lengths,
                      py::handle causal, py::handle bias, double softcap, py::handle sink, double temperature, bool nan,
                      py::handle out, py::handle g, py::handle dbias, py::handle dsink, py::handle workspace) {
  MaskedCall call;
  Place where_it_is;
  const Strided in = strided(x, function, "x", &where_it_is);
  if (!in.is_floating()) require_dtype(in, DType::f32, function, "x");
  call.op = static_cast<Op>(op), call.dtype = in.dtype;
  call.ndim = in.shape.ndim, call.shape = in.shape.dims, call.axis = axis;
  call.x = in.view();
  call.softcap = softcap, call.temperature = temperature, call.empty = nan ? Empty::nan : Empty::zero;
  call.causal = is_given(causal);
  if (call.causal) call.causal_offset = py::cast<std::int64_t>(causal);
  std::vector<Laid> laid;
  laid.reserve(8);
  const auto place = [&](View& view, py::handle given, const char* argument, bool written, bool floating) {
    if (!is_given(given)) return;
    const Strided array = (written ? strided_out : strided)(given, function, argument, &where_it_is);
    if (floating) require_dtype(array, in.dtype, function, argument);
    laid.emplace_back(array, in.shape, function, argument);
    view = laid.back().view();
  };
  place(call.out, out, "out", true, true);
  place(call.g, g, "g", false, true);
  place(call.bias, bias, "bias", false, true);
  place(call.sink, sink, "sink", false, true);
  place(call.dbias, dbias, "dbias", true, true);
  place(call.dsink, dsink, "dsink", true, true);
  place(call.where, where, "where", false, false);
  if (is_given(where) && laid.back().array.kind != Kind::boolean) throw py::type_error("where must be of bool");
  place(call.lengths, lengths, "lengths", false, false);
  if (is_given(lengths) && (laid.back().array.kind != Kind::signed_integer || laid.back().array.item != 8))
    throw py::type_error("lengths must be of int64");
  const int along = axis < 0 ? axis + call.ndim : axis;
  const auto full = [&](const View& view) {
    for (const Laid& l : laid)
      if (view.data == l.array.data && view.strides == l.strides)
        for (int d = 0; d < call.ndim; ++d)
          if (l.array.shape.dims[d] != in.shape.dims[d] && !(call.op == Op::logsumexp && d == along))
            throw py::value_error("out and g must have the shape of x, or of its rows");
  };
  full(call.g);
  if (is_given(g)) {
    require_shape(laid.front().array, in.shape, function, "out");
  } else {
    full(call.out);
  }
  return run_at(
      where_it_is, workspace, function, [&] { return masked(call); },
      [&](cuda::Target& target) { return cuda::masked(call, target); });
}

// `in` and `out` of two dimensions. On CUDA devices offsets are there too, and nothing looks at them first.
py::object run_segments(const char* function, int op, py::handle a, py::handle b, py::handle offsets, py::handle out,
                        py::handle workspace) {
  SegmentsCall call;
  Place place;
  const Strided first = strided(a, function, "x", &place), result = strided_out(out, function, "out", &place),
                ends = strided(offsets, function, "offsets", &place);
  if (!first.is_floating()) require_dtype(first, DType::f32, function, "x");
  if (ends.kind != Kind::signed_integer || ends.item != 8 || ends.shape.ndim != 1 || ends.shape.dims[0] < 1 ||
      !ends.is_contiguous())
    throw py::type_error("offsets must be contiguous, of int64 and one dimension");
  if (first.shape.ndim != 2) throw py::value_error("x must have two dimensions");
  call.op = static_cast<Op>(op), call.dtype = first.dtype;
  call.elements = first.shape.dims[0], call.features = first.shape.dims[1], call.segments = ends.shape.dims[0] - 1;
  call.offsets = static_cast<const std::int64_t*>(ends.data);
  call.in[0] = first.view();
  Shape rows = first.shape;
  rows.dims[0] = call.segments;
  Strided second;
  if (is_given(b)) {
    second = strided(b, function, "g", &place);
    require_dtype(second, first.dtype, function, "g");
    require_shape(second, call.op == Op::logsumexp_vjp ? rows : first.shape, function, "g");
    call.in[1] = second.view();
  }
  require_dtype(result, first.dtype, function, "out");
  require_shape(result, out_is_row(call.op) ? rows : first.shape, function, "out");
  call.out = result.view();
  return run_at(
      place, workspace, function, [&] { return segments(call); },
      [&](cuda::Target& target) { return cuda::segments(call, target); });
}

void offsets_of(const char* function, py::handle ids, py::handle offsets) {
  const Strided in = strided(ids, function, "ids"), out = strided_out(offsets, function, "offsets");
  for (const Strided* array : {&in, &out})
    if (array->kind != Kind::signed_integer || array->item != 8 || array->shape.ndim != 1 || !array->is_contiguous())
      throw py::type_error("ids and offsets must be contiguous, of int64 and one dimension");
  if (out.shape.dims[0] < 1) throw py::value_error("offsets must have room for num_segments + 1");
  run_released(function, [&] {
    return segment_offsets(static_cast<const std::int64_t*>(in.data), in.shape.dims[0], out.shape.dims[0] - 1,
                           static_cast<std::int64_t*>(out.data));
  });
}

}  // namespace

void add_ragged(py::module_& m) {
  m.def("_masked", &run_masked, py::arg("function"), py::arg("op"), py::arg("x"), py::arg("axis"),
        py::arg("where") = py::none(), py::arg("lengths") = py::none(), py::arg("causal") = py::none(),
        py::arg("bias") = py::none(), py::arg("softcap") = 0.0, py::arg("sink") = py::none(), py::arg("temperature") = 1.0,
        py::arg("nan") = false, py::arg("out") = py::none(), py::arg("g") = py::none(), py::arg("dbias") = py::none(),
        py::arg("dsink") = py::none(), py::arg("workspace") = py::none());
  m.def("_segments", &run_segments, py::arg("function"), py::arg("op"), py::arg("x"), py::arg("g"), py::arg("offsets"),
        py::arg("out"), py::arg("workspace") = py::none());
  m.def("_segment_offsets", &offsets_of, py::arg("function"), py::arg("ids"), py::arg("offsets"));
}

}  // namespace sumexp::python
