// Kernels of running sums: an instruction set's table. A row goes in pieces of kPiece elements, in double; what a piece hands
// on is plain data.
#pragma once

#include "elementwise.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

// 2^N (hi + lo): ops/running_sum.hpp
struct Partial {
  double m;
  std::int64_t N;
  double hi, lo;
};

// x has room for kPiece elements, and what is beyond `count` is overwritten.
struct CumulativeKernels {
  Partial (*empty)();
  Partial (*join)(const Partial& a, const Partial& b);
  // The sum of a piece; of e^x b if there are weights, those not finite added to *special.
  Partial (*total)(double* x, double* b, int count, double* special);
  // y_i of a piece, inclusive, after `before`; returns its total.
  Partial (*prefixes)(double* x, int count, const Partial& before, double* y);
  // The same with terms within 2^-97 of the row's sums and N = 0, for y that are next to 0: those below `limit` in absolute
  // value are computed again, the others stay. Returns the total of the elements up to 1. y may be nullptr.
  Partial (*near_zero)(double* x, int count, const Partial& before, double limit, double* y);
  // The logarithm of |sum| / count.
  double (*log)(const Partial& sum, double count);
  // From the last piece to the first. `after`: H of the element after, as a Partial with that element's m and N; afterwards
  // that of the piece's first.
  void (*vjp)(const double* g, const double* x, int count, const Partial& before, Partial* after, double* dx);
  // From the first piece on: `sum` and `along` (the sum of t e^x) are of the elements before, afterwards of these too.
  void (*jvp)(const double* t, const double* x, int count, Partial* sum, Partial* along, double* dy);
  // Of one row with sum S: factor b_i e^(x_i) / S to db_over_b, and factor e^(x_i) / S.
  void (*weights)(double* x, const double* b, int count, const Partial& sum, double factor, double* dx, double* db);
  double (*quotient)(const Partial& a, const Partial& b);  // a / b
  // With what the elements that are not finite add up to; the logarithm of |sum| / count and the sign.
  Partial (*with_special)(const Partial& sum, double special);
  double (*mean)(const Partial& sum, double count, double* sign);
};

SUMEXP_DECLARE_TABLES(CumulativeKernels, cumulative_kernels_)

}  // namespace sumexp::cpu
