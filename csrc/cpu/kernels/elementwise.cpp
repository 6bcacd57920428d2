// Elementwise functions of the log domain, for one instruction set: elementwise_kernels_<isa>().
#include SUMEXP_SIMD
//
#include "elementwise.hpp"

#include "lanes.hpp"

#include "../../ops/elementwise.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

// -- between arrays and pieces of double -----------------------------------------------------------------

template <class D>
SUMEXP_FN void put_wide(Twin<D> w, double* to) {
  D::store(to, w.a), D::store(to + D::W, w.b);
}
template <class D>
SUMEXP_FN Twin<D> get_wide(const double* from, Twin<D>*) {
  return {D::load(from), D::load(from + D::W)};
}

template <class S>
void load(const char* from, std::int64_t stride, int count, double* to) {
  int i = 0;
  if (stride == 0 && count > 0) {
    S first;
    memcpy(&first, from, sizeof(S));
    const double value = widen(first);
    for (; i < count; ++i) to[i] = value;
  }
  if (stride == sizeof(S)) {
    if constexpr (sizeof(S) == 8) {
      memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
      return;
    } else {
      for (; i + F32::W <= count; i += F32::W)
        put_wide(WideOf<F32>::from(F32::load(reinterpret_cast<const S*>(from) + i)), to + i);
    }
  }
  for (; i < count; ++i) {
    S stored;
    memcpy(&stored, from + i * stride, sizeof(S));
    to[i] = widen(stored);
  }
}
SUMEXP_FN void round_to(double x, double& to) { to = x; }
template <class S>
SUMEXP_FN void round_to(double x, S& to) {
  narrow(rounded(x), to);
}
template <class S>
void store(char* to, std::int64_t stride, int count, const double* from) {
  int i = 0;
  if (stride == sizeof(S)) {
    if constexpr (sizeof(S) == 8) {
      memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
      return;
    } else {
      using W = typename WideOf<F32>::W;
      for (; i + F32::W <= count; i += F32::W)
        F32::store(reinterpret_cast<S*>(to) + i, quiet(WideOf<F32>::narrow(get_wide(from + i, static_cast<W*>(nullptr)))));
    }
  }
  for (; i < count; ++i) {
    S stored;
    round_to(from[i], stored);
    memcpy(to + i * stride, &stored, sizeof(S));
  }
}

// -- pieces through the functions of ops/elementwise.hpp ---------------------------------------------------------

using V = F64;

template <class Op, class W, int inputs, int outputs>
void map(const double* const* in, double* const* out, int count) {
  for (int i = 0; i < count; i += V::W) {  // pieces have room for whole vectors
    V x[inputs], y[outputs];
    for (int k = 0; k < inputs; ++k) x[k] = V::load(in[k] + i);
    Op::template apply<W>(x, y);
    for (int k = 0; k < outputs; ++k) V::store(out[k] + i, quiet(y[k]));
  }
}

#define SUMEXP_MAP(Op, inputs, outputs) \
  { map<elementwise::Op, V, inputs, outputs>, map<elementwise::Op, DD<V>, inputs, outputs> }
const cpu::ElementwiseKernels kKernels = {
    {load<f16>, load<bf16>, load<float>, load<double>},
    {store<f16>, store<bf16>, store<float>, store<double>},
    {SUMEXP_MAP(LogAddExp, 2, 1), SUMEXP_MAP(LogSubExp, 2, 1), SUMEXP_MAP(Log1mExp, 1, 1), SUMEXP_MAP(Softplus, 1, 1),
     SUMEXP_MAP(LogAddExpVjp, 3, 2), SUMEXP_MAP(LogSubExpVjp, 3, 2), SUMEXP_MAP(Log1mExpVjp, 2, 1),
     SUMEXP_MAP(SoftplusVjp, 2, 1), SUMEXP_MAP(LogAddExpJvp, 4, 1), SUMEXP_MAP(LogSubExpJvp, 4, 1)}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(ElementwiseKernels, elementwise_kernels_, SUMEXP_NS::kKernels)
