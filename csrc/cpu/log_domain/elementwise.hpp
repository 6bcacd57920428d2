// The arrays of an elementwise function, checked and laid out alike for the CPU and for GPUs.
#pragma once

#include "../../include/sumexp/log_domain.hpp"
#include "walk.hpp"

namespace sumexp::cpu {

struct ElementwiseArrays {
  Walk walk;  // of no size where there is nothing to do
  char* data[Walk::kMost];
  int inputs, outputs;
};
Status lay_out(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out,
               ElementwiseArrays& to);

}  // namespace sumexp::cpu
