// The raw entries of losses: what sumexp._losses and sumexp.torch call once arrays are ready.
#include <sumexp/cuda.hpp>
#include <sumexp/losses.hpp>

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

namespace {

constexpr const char* kDoc =
    R"(cross_entropy(logits, target, axis, *, target_weight=None, weight=None, token_weight=None, g=None,
              ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None, temperature=1.0, reduction="mean",
              denominator=None, zero_if_empty=False, dlogits=None, flush_subnormal=False, loss=None, row_loss=None,
              lse=None, log_prob=None, entropy=None, z_loss_part=None, predicted=None, correct=None, saved=None,
              first_class=None, classes=0, workspace=None, function="cross_entropy")

sumexp::cross_entropy (losses.hpp) on ndarrays or tensors, all on one device; writes to what is given for the results. Returns None,
or, on CUDA devices, how many bytes of workspace, contiguous uint8, it wants before it does anything. With "rows" the shape of logits without the class axis, and T float32, or float64 for logits of float64:

  logits         floating dtype, any strides
  target         integers of any width, of shape rows: indices; floating, of logits' shape: probabilities; integers of shape
                 rows + (K,) with target_weight, floating, of the same shape: pairs
  weight         T, (C,), contiguous
  token_weight   float64, rows
  g              float64, rows: what the gradient is multiplied by (strides of 0 for a number)
  denominator    a number, or float64 of shape (), which is read where it is
  dlogits        the gradient: of logits' dtype and shape; may be logits itself
  flush_subnormal    subnormal numbers of the gradient become 0, on the CPU: for products with it
  loss           of logits' dtype: contiguous rows, or () where the reduction is not "none"
  row_loss, lse, log_prob, entropy, z_loss_part   T, contiguous rows; row_loss before it is reduced and rounded to 16 bits
  predicted      int64, contiguous rows; correct: bool, contiguous rows
  saved          uint8, contiguous, rows + (cross_entropy_saved_bytes(T is float64, C),), on the CPU: see first_class
  first_class    of a part of all `classes`: logits and dlogits have those from this one on. The gradient alone is computed,
                 from what a call with all of them has left in `saved`.

Every result is computed only if it is given, all of them from one sweep. Ignored rows have 0, predicted -1. Errors name
`function`.)";

constexpr const char* kDenominatorDoc =
    R"(cross_entropy_denominator(logits, target, axis, *, target_weight=None, weight=None, token_weight=None, ignore_index=-100, out=None,
                          workspace=None, function="cross_entropy")

What the mean of cross_entropy with the same arguments divides by, a float: in its order of rows. With out, float64 of shape (), it
is written there, and the result is cross_entropy's. Arrays on CUDA devices want one.)";

constexpr const char* kSumDoc =
    R"(sum_rows(values, out=None, workspace=None)

The sum of contiguous float32 or float64 numbers in the order in which cross_entropy adds its rows: of row_loss, the bytes of
its sum before rounding to the dtype. out and workspace as in cross_entropy_denominator.)";

bool given(const py::object& o) { return !o.is_none(); }

Shape without_axis(const Shape& shape, int axis) {
  Shape rows;
  for (int d = 0; d < shape.ndim; ++d)
    if (d != axis) rows.dims[rows.ndim++] = shape.dims[d];
  return rows;
}

// Strides of one value a row for each dimension of the logits; `on_axis` along the class axis.
void spread(const Strided& array, int ndim, int axis, std::int64_t on_axis, std::int64_t* strides) {
  for (int d = 0, k = 0; d < ndim; ++d) strides[d] = d == axis ? on_axis : array.strides[k++];
}

IndexType index_type(const Strided& array) {
  const int size = array.item == 1 ? 0 : array.item == 2 ? 1 : array.item == 4 ? 2 : 3;
  return static_cast<IndexType>(size + (array.kind == Kind::unsigned_integer ? 4 : 0));
}

// A CrossEntropyCall with the memory that its views point to.
struct LossArguments {
  const char* name;
  Place place = {};
  CrossEntropyCall call;
  Strided logits, gradient;
  Shape rows, of_logits;
  int axis = 0;
  std::int64_t strides[4][kMaxDims];  // target, target_weight, token_weight, g

  void require(bool right, PyObject* kind, const char* argument, const char* what) const {
    if (right) return;
    PyErr_Format(kind, "%s: %s %s", name, argument, what);
    throw py::error_already_set();
  }
  DType number() const { return logits.dtype == DType::f64 ? DType::f64 : DType::f32; }

  // classes: 0, or how many there are where logits have a part of them
  void take_targets(const py::object& x, const py::object& target, int given_axis, const py::object& target_weight,
                    const py::object& weight, const py::object& token_weight, std::int64_t classes = 0) {
    logits = strided(x, name, "logits", &place);
    require(logits.is_floating(), PyExc_TypeError, "logits", "has no floating dtype");
    const int ndim = logits.shape.ndim;
    axis = given_axis < 0 ? given_axis + ndim : given_axis;
    require(axis >= 0 && axis < ndim, PyExc_ValueError, "axis", "is out of range");
    of_logits = logits.shape;
    if (classes) logits.shape.dims[axis] = classes;
    call.dtype = logits.dtype, call.ndim = ndim, call.shape = logits.shape.dims, call.axis = axis;
    call.logits = logits.view();
    rows = without_axis(logits.shape, axis);
    const Strided t = strided(target, name, "target", &place);
    require(t.kind != Kind::boolean, PyExc_TypeError, "target", "has dtype bool, accepted: integers or a floating dtype");
    call.target.data = t.data, call.target.strides = strides[0];
    if (t.is_floating()) {
      require_shape(t, logits.shape, name, "target");
      call.kind = TargetKind::probabilities, call.target_dtype = t.dtype;
      std::copy(t.strides, t.strides + ndim, strides[0]);
    } else if (given(target_weight)) {
      const Strided w = strided(target_weight, name, "target_weight", &place);
      require(t.shape.ndim == ndim && w.is_floating(), PyExc_TypeError, "target_weight", "does not fit target");
      Shape accepted = rows;
      accepted.dims[accepted.ndim++] = t.shape.dims[ndim - 1];
      require_shape(t, accepted, name, "target");
      require_shape(w, accepted, name, "target_weight");
      call.kind = TargetKind::pairs, call.index_type = index_type(t), call.target_dtype = w.dtype;
      call.pairs = accepted.dims[ndim - 1];
      call.target_weight = {w.data, strides[1]};
      spread(t, ndim, axis, t.strides[ndim - 1], strides[0]);
      spread(w, ndim, axis, w.strides[ndim - 1], strides[1]);
    } else {
      require_shape(t, rows, name, "target");
      call.index_type = index_type(t);
      spread(t, ndim, axis, 0, strides[0]);
    }
    if (given(weight)) {
      const Strided w = strided(weight, name, "weight", &place);
      Shape classes;
      classes.ndim = 1, classes.dims[0] = logits.shape.dims[axis];
      require_shape(w, classes, name, "weight");
      require_dtype(w, number(), name, "weight");
      contiguous(w, "weight");
      call.weight = w.data;
    }
    call.token_weight = of_rows(token_weight, "token_weight", strides[2]);
  }
  View of_rows(const py::object& o, const char* argument, std::int64_t* to) {
    if (!given(o)) return {};
    const Strided array = strided(o, name, argument, &place);
    require_shape(array, rows, name, argument);
    require_dtype(array, DType::f64, name, argument);
    spread(array, logits.shape.ndim, axis, 0, to);
    return {array.data, to};
  }
  // One number of the caller's, or none.
  const void* number_at(const py::object& o, const char* argument) {
    if (!given(o)) return nullptr;
    const Strided array = strided(o, name, argument, &place);
    require_shape(array, Shape{}, name, argument);
    require_dtype(array, DType::f64, name, argument);
    return array.data;
  }
  // Contiguous results.
  void* result(const py::object& o, const char* argument, DType dtype, const Shape& shape) {
    if (!given(o)) return nullptr;
    const Strided array = strided_out(o, name, argument, &place);
    require_shape(array, shape, name, argument);
    require_dtype(array, dtype, name, argument);
    return contiguous(array, argument);
  }
  void* contiguous(const Strided& array, const char* argument) const {
    require(array.is_contiguous(), PyExc_ValueError, argument, "is not contiguous");
    return array.data;
  }
};

LossReduction reduction_of(const LossArguments& a, const std::string& given) {
  const bool none = given == "none", mean = given == "mean";
  a.require(none || mean || given == "sum", PyExc_ValueError, "reduction", "is not 'none', 'mean' or 'sum'");
  return none ? LossReduction::none : mean ? LossReduction::mean : LossReduction::sum;
}

py::object run_cross_entropy(const py::object& logits, const py::object& target, int axis, const py::object& target_weight,
                             const py::object& weight, const py::object& token_weight, const py::object& g,
                             std::int64_t ignore_index, double label_smoothing, double z_loss, std::optional<double> softcap,
                             double temperature, const std::string& reduction, const py::object& denominator,
                             bool zero_if_empty, const py::object& dlogits, bool flush_subnormal, const py::object& loss,
                             const py::object& row_loss, const py::object& lse, const py::object& log_prob,
                             const py::object& entropy, const py::object& z_loss_part, const py::object& predicted,
                             const py::object& correct, const py::object& saved, std::optional<std::int64_t> first_class,
                             std::int64_t classes, const py::object& workspace, const std::string& function) {
  LossArguments a;
  a.name = function.c_str();
  CrossEntropyCall& call = a.call;
  a.take_targets(logits, target, axis, target_weight, weight, token_weight, classes);
  call.g = a.of_rows(g, "g", a.strides[3]);
  call.ignore_index = ignore_index, call.label_smoothing = label_smoothing, call.z_loss = z_loss;
  a.require(!softcap || *softcap != 0.0, PyExc_ValueError, "softcap", "is 0, accepted: a finite number above 0, or None");
  call.softcap = softcap.value_or(0.0), call.temperature = temperature, call.reduction = reduction_of(a, reduction);
  call.given_denominator = given(denominator);
  if (py::isinstance<py::float_>(denominator) || py::isinstance<py::int_>(denominator))
    call.denominator = denominator.cast<double>();
  else call.denominator_at = static_cast<const double*>(a.number_at(denominator, "denominator"));
  call.zero_if_empty = zero_if_empty, call.flush_subnormal = flush_subnormal;
  if (given(dlogits)) {
    a.gradient = strided_out(dlogits, a.name, "dlogits", &a.place);
    require_shape(a.gradient, a.of_logits, a.name, "dlogits");
    require_dtype(a.gradient, a.logits.dtype, a.name, "dlogits");
    call.dlogits = a.gradient.view();
  }
  const DType number = a.number();
  call.loss = a.result(loss, "loss", a.logits.dtype, call.reduction == LossReduction::none ? a.rows : Shape{});
  call.row_loss = a.result(row_loss, "row_loss", number, a.rows);
  call.lse = a.result(lse, "lse", number, a.rows);
  call.log_prob = a.result(log_prob, "log_prob", number, a.rows);
  call.entropy = a.result(entropy, "entropy", number, a.rows);
  call.z_loss_part = a.result(z_loss_part, "z_loss_part", number, a.rows);
  if (given(predicted)) {
    const Strided array = strided_out(predicted, a.name, "predicted", &a.place);
    require_shape(array, a.rows, a.name, "predicted");
    a.require(array.kind == Kind::signed_integer && array.item == 8, PyExc_TypeError, "predicted", "is not of int64");
    call.predicted = static_cast<std::int64_t*>(a.contiguous(array, "predicted"));
  }
  if (given(correct)) {
    const Strided array = strided_out(correct, a.name, "correct", &a.place);
    require_shape(array, a.rows, a.name, "correct");
    a.require(array.kind == Kind::boolean, PyExc_TypeError, "correct", "is not of bool");
    call.correct = static_cast<std::uint8_t*>(a.contiguous(array, "correct"));
  }
  if (given(saved)) {
    const Strided array = strided_out(saved, a.name, "saved", &a.place);
    Shape shape = a.rows;
    shape.dims[shape.ndim++] = cross_entropy_saved_bytes(call.dtype, call.shape[a.axis]);
    require_shape(array, shape, a.name, "saved");
    call.saved = a.contiguous(array, "saved");
  }
  a.require(!a.place.is_cuda() || !(call.saved || first_class), PyExc_TypeError, "saved", "is for logits on the CPU");
  if (first_class) {
    run_released(a.name, [&] { return cross_entropy_gradient_part(call, *first_class, a.of_logits.dims[a.axis]); });
    return py::none();
  }
  return run_at(
      a.place, workspace, a.name, [&] { return cross_entropy(call); },
      [&](cuda::Target& target) { return cuda::cross_entropy(call, target); });
}

py::object run_denominator(const py::object& logits, const py::object& target, int axis, const py::object& target_weight,
                           const py::object& weight, const py::object& token_weight, std::int64_t ignore_index,
                           const py::object& out, const py::object& workspace, const std::string& function) {
  LossArguments a;
  a.name = function.c_str();
  a.take_targets(logits, target, axis, target_weight, weight, token_weight);
  a.call.ignore_index = ignore_index;
  double own = 0.0;
  auto* const to = given(out) ? static_cast<double*>(a.result(out, "out", DType::f64, Shape{})) : &own;
  a.require(given(out) || !a.place.is_cuda(), PyExc_TypeError, "out", "is missing, on a CUDA device");
  py::object wanted = run_at(
      a.place, workspace, a.name, [&] { return cross_entropy_denominator(a.call, to); },
      [&](cuda::Target& target) { return cuda::cross_entropy_denominator(a.call, to, target); });
  return given(out) ? wanted : py::float_(own);
}

py::object run_sum_rows(const py::object& values, const py::object& out, const py::object& workspace) {
  LossArguments a;
  a.name = "sum_rows";
  const Strided array = strided(values, a.name, "values", &a.place);
  if (!array.is_floating() || array.item < 4)
    throw py::type_error("sum_rows: values has a dtype that is not float32 or float64");
  a.contiguous(array, "values");
  double own = 0.0;
  auto* const to = given(out) ? static_cast<double*>(a.result(out, "out", DType::f64, Shape{})) : &own;
  a.require(given(out) || !a.place.is_cuda(), PyExc_TypeError, "out", "is missing, on a CUDA device");
  const std::int64_t rows = array.shape.size();
  py::object wanted = run_at(
      a.place, workspace, a.name, [&] { return sum_rows(array.data, array.dtype, rows, to); },
      [&](cuda::Target& target) { return cuda::sum_rows(array.data, array.dtype, rows, to, target); });
  return given(out) ? wanted : py::float_(own);
}

}  // namespace

void add_losses(py::module_& m) {
  const py::object none = py::none();
  m.def("_cross_entropy", &run_cross_entropy, kDoc, py::arg("logits"), py::arg("target"), py::arg("axis"), py::kw_only(),
        py::arg("target_weight") = none, py::arg("weight") = none, py::arg("token_weight") = none, py::arg("g") = none,
        py::arg("ignore_index") = -100, py::arg("label_smoothing") = 0.0, py::arg("z_loss") = 0.0, py::arg("softcap") = none,
        py::arg("temperature") = 1.0, py::arg("reduction") = "mean", py::arg("denominator") = none,
        py::arg("zero_if_empty") = false, py::arg("dlogits") = none, py::arg("flush_subnormal") = false, py::arg("loss") = none,
        py::arg("row_loss") = none, py::arg("lse") = none, py::arg("log_prob") = none, py::arg("entropy") = none,
        py::arg("z_loss_part") = none, py::arg("predicted") = none, py::arg("correct") = none, py::arg("saved") = none,
        py::arg("first_class") = none, py::arg("classes") = 0, py::arg("workspace") = none,
        py::arg("function") = "cross_entropy");
  m.def(
      "_cross_entropy_saved_bytes",
      [](bool wide, std::int64_t classes) { return cross_entropy_saved_bytes(wide ? DType::f64 : DType::f32, classes); },
      py::arg("wide"), py::arg("classes"));
  m.def("_cross_entropy_denominator", &run_denominator, kDenominatorDoc, py::arg("logits"), py::arg("target"), py::arg("axis"),
        py::kw_only(), py::arg("target_weight") = none, py::arg("weight") = none, py::arg("token_weight") = none,
        py::arg("ignore_index") = -100, py::arg("out") = none, py::arg("workspace") = none,
        py::arg("function") = "cross_entropy");
  m.def("_sum_rows", &run_sum_rows, kSumDoc, py::arg("values"), py::arg("out") = none, py::arg("workspace") = none);
}

}  // namespace sumexp::python
