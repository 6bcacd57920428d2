// The arrays of a call that goes row by row, as host and kernels see them: one row after another along the batch dimensions,
// n elements along the row.
#pragma once

#include <cstdint>
#include <cstdio>

#include "../../include/sumexp/sumexp.hpp"

namespace sumexp::cuda {

inline constexpr int kBatchDims = 8;  // that are left after joining neighbours

template <int kViews>
struct RowViews {
  char* data[kViews];  // null: absent
  std::int64_t rows, n;
  std::int64_t stride[kViews];  // along the row, in bytes
  int batch_dims;
  std::int64_t size[kBatchDims], step[kBatchDims][kViews];  // outermost first
};

// Views of `shape`, whose rows run along `axis` (from 0). Dimensions that all views walk as one are joined.
template <int kViews>
Status lay_rows(int ndim, const std::int64_t* shape, int axis, const View (&views)[kViews], RowViews<kViews>& to) {
  to = {};
  to.rows = 1;
  to.n = ndim == 0 ? 1 : shape[axis];
  for (int k = 0; k < kViews; ++k) {
    to.data[k] = static_cast<char*>(views[k].data);
    to.stride[k] = views[k].data && ndim ? views[k].strides[axis] : 0;
  }
  for (int d = 0; d < ndim; ++d)
    if (d != axis) to.rows *= shape[d];
  for (int d = 0; d < ndim && to.rows > 0; ++d) {
    if (d == axis || shape[d] == 1) continue;
    const auto step = [&](int k) { return views[k].data ? views[k].strides[d] : 0; };
    int last = to.batch_dims - 1;
    bool joins = last >= 0;
    for (int k = 0; k < kViews && joins; ++k) joins = to.step[last][k] == step(k) * shape[d];
    if (joins) {
      to.size[last] *= shape[d];
    } else {
      if (to.batch_dims == kBatchDims) {
        Status status;
        status.code = Code::unsupported;
        std::snprintf(status.message, sizeof status.message,
                      "shape: more than %d batch dimensions are left after joining neighbours; CUDA accepts up to %d",
                      kBatchDims, kBatchDims);
        return status;
      }
      last = to.batch_dims++;
      to.size[last] = shape[d];
    }
    for (int k = 0; k < kViews; ++k) to.step[last][k] = step(k);
  }
  return Status{};
}

}  // namespace sumexp::cuda
