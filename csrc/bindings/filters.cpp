// The cut of one row, as tests and benchmarks ask for it: sumexp._core._filter_cut.
#include "../include/sumexp/filters.hpp"

#include "functions.hpp"
#include "strided.hpp"

namespace sumexp::python {

void add_filters(py::module_& module) {
  module.def(
      "_filter_cut",
      [](py::handle logits, std::int64_t top_k, double top_p, double min_p, const std::string& order) {
        constexpr const char* function = "_filter_cut";
        const Strided x = strided(logits, function, "logits");
        if (!x.is_floating() || x.shape.ndim != 1 || !x.is_contiguous())
          throw py::type_error("_filter_cut: logits must be a contiguous row of float32 or float64");
        Filters filters = {top_k, top_p, min_p};
        if (order == "hf") filters.order = FilterOrder::hf;
        else if (order == "llama.cpp") filters.order = FilterOrder::llama_cpp;
        else if (order != "vllm")
          throw py::value_error("_filter_cut: order is '" + order + "', accepted: 'vllm', 'hf', 'llama.cpp'");
        FilterCut cut{};
        run_released(function, [&] { return filter_cut(x.dtype, x.data, x.shape.size(), filters, &cut); });
        return py::make_tuple(cut.logit, cut.index, cut.kept);
      },
      py::arg("logits"), py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0, py::arg("order") = "vllm");
}

}  // namespace sumexp::python
