// Which kernel finds the cuts of a call.
#include "filters.hpp"

#include "../../numerics/formats.hpp"

namespace sumexp::cuda {

cudaError_t find_cuts(DType dtype, const FilterRows& rows, RowCut* cuts, cudaStream_t stream) {
  using namespace SUMEXP_NS;
  if (rows.views.rows == 0) return cudaSuccess;
  if (rows.views.n > kLongestFiltered) return cudaErrorInvalidValue;
  switch (dtype) {
    case DType::f16: return FindCuts<f16>::run(rows, cuts, stream);
    case DType::bf16: return FindCuts<bf16>::run(rows, cuts, stream);
    case DType::f32: return FindCuts<float>::run(rows, cuts, stream);
    default: return FindCuts<double>::run(rows, cuts, stream);
  }
}

}  // namespace sumexp::cuda
