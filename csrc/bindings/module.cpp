// The extension module sumexp._core: the public functions, and what surrounds them.
#include "dlpack.hpp"
#include "functions.hpp"
#include "gil.hpp"
#include "strided.hpp"

#include <string>

namespace sumexp::python {
namespace {

void raise(const Status& status) {
  if (!status.ok()) throw py::value_error(status.message);
}

// y: C-contiguous (..., K); returns (..., K, K). sumexp._arrays prepares y, sumexp._matrices documents the three.
py::object matrix_of(int which, py::handle y) {
  const Array* in = is_ndarray(y.ptr()) ? as_array(y.ptr()) : nullptr;
  const int code = in ? dtype_code(in) : -1;
  if (code < 0 || in->nd < 1 || in->nd >= kMaxDims || !(in->flags & kCContiguous))
    throw py::type_error("y must be a C-contiguous array of a floating dtype with 1 to 63 dimensions");
  Shape shape = shape_of(in);
  const std::int64_t k = shape.dims[shape.ndim - 1], rows = k ? shape.size() / k : 0;
  shape.dims[shape.ndim++] = k;
  PyObject* const out = new_array(shape, in->descr);  // plain pointers: see gil.hpp
  if (!out) throw py::error_already_set();
  Status status;
  without_gil(
      [&] { status = matrix(static_cast<Matrix>(which), static_cast<DType>(code), in->data, as_array(out)->data, rows, k); });
  auto result = py::reinterpret_steal<py::object>(out);
  raise(status);
  return result;
}

py::dict build_info() {
  py::dict info;
  info["version"] = version();
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["build_type"] = SUMEXP_BUILD_TYPE;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  info["isa"] = isa();
  info["compiled_isas"] = compiled_isas();
  info["usable_isas"] = usable_isas();
  info["cuda"] = std::string(cuda::architectures());
  info["cuda_devices"] = cuda::device_count();
  info["cuda_problem"] = std::string(cuda::device_status().message);
  info["num_threads"] = get_num_threads();
  info["stream_bytes"] = stream_bytes();
  return info;
}

}  // namespace
}  // namespace sumexp::python

// Looked for by name: how threadpoolctl tells this module from the others called _core.
extern "C" SUMEXP_API int sumexp_core_num_threads() { return sumexp::get_num_threads(); }

PYBIND11_MODULE(core_of_main, m, pybind11::mod_gil_not_used(), pybind11::multiple_interpreters::not_supported()) {
  using namespace sumexp::python;
  numpy.load();
  axis_error = py::object(py::module_::import("numpy.exceptions").attr("AxisError")).release().ptr();
  m.attr("__version__") = sumexp::version();
  m.attr("cuda_architectures") = sumexp::cuda::architectures();
  add_strided();
  add_filters(m);
  add_sampling(m);
  add_functions(m);
  add_log_domain(m);
  add_tensors(m);
  add_fast_path(m);
  add_losses(m);
  add_ragged(m);
  add_information(m);
  add_log_matmul(m);
  add_stream(m);
  m.def(
      "device_at", [](std::uintptr_t address) { return sumexp::cuda::device_at(reinterpret_cast<void*>(address)); },
      py::arg("address"));
  m.def(
      "prefer_large_pages",
      [](std::uintptr_t address, std::size_t bytes) { sumexp::prefer_large_pages(reinterpret_cast<void*>(address), bytes); },
      py::arg("address"), py::arg("bytes"));
  m.attr("large_pages_from") = sumexp::kLargePagesFrom;
  m.def("served_devices", [] { return std::string(dlpack::served()); });
  m.def(
      "synchronize",
      [](int device, std::uintptr_t stream) {
        sumexp::Status status;
        without_gil([&] { status = sumexp::cuda::synchronize(device, reinterpret_cast<void*>(stream)); });
        if (!check(status, "synchronize")) throw py::error_already_set();
      },
      py::arg("device"), py::arg("stream"));
  m.def("matrix", &matrix_of, py::arg("which"), py::arg("y"));
  m.def("build_info", &build_info);
  m.def("get_num_threads", &sumexp::get_num_threads);
  m.def(
      "set_num_threads", [](int n) { raise(sumexp::set_num_threads(n)); }, py::arg("n"));
  m.def("get_isa", [] { return std::string(sumexp::isa()); });
  m.def(
      "set_isa", [](const std::string& name) { raise(sumexp::set_isa(name.c_str())); }, py::arg("name"));
}

// One interpreter, the main one: in another, pybind11 would wait for ever for a lock that this thread holds.
extern "C" SUMEXP_API PyObject* PyInit__core() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit_core_of_main();
  PyErr_SetString(PyExc_ImportError, "sumexp._core does not support loading in subinterpreters");
  return nullptr;
}
