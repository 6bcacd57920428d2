// The table of one instruction set: cpu::ragged_kernels_<isa>().
#include SUMEXP_SIMD
//
#include "../../ops/masked.hpp"
#include "kernel.hpp"
#include "left_out.hpp"
#include "ragged_table.hpp"

namespace sumexp::SUMEXP_NS {
namespace {

using cpu::LogitOptions;
using cpu::RaggedRow;

#if SUMEXP_REGISTERS
template <class V, class S>
SUMEXP_FN V load_piece(const RaggedRow& row, int first, ElementOf<V> fill) {
  using T = ElementOf<V>;
  const std::int64_t left = row.n - first;
  if (left <= 0) return V(fill);
  const char* const p = row.first + first * row.stride;
  if (row.stride == sizeof(S)) {
    if (left >= V::W) return V::load(reinterpret_cast<const S*>(p));
    if constexpr (std::is_same_v<S, T>) return V::load_part(reinterpret_cast<const T*>(p), static_cast<int>(left), fill);
  }
  T lanes[V::W];
  for (int i = 0; i < V::W; ++i) lanes[i] = i < left ? widen(read<S>(p + i * row.stride)) : fill;
  return V::load(lanes);
}
template <class V, class S>
SUMEXP_FN void store_piece(const RaggedRow& row, int first, V x) {
  using T = ElementOf<V>;
  const std::int64_t left = row.n - first;
  if (left <= 0) return;
  char* const p = row.first + first * row.stride;
  if (row.stride == sizeof(S)) {
    if (left >= V::W) return V::store(reinterpret_cast<S*>(p), x);
    if constexpr (std::is_same_v<S, T>) return V::store_part(reinterpret_cast<T*>(p), x, static_cast<int>(left));
  }
  T lanes[V::W];
  V::store(lanes, x);
  for (int i = 0; i < V::W && i < left; ++i) write<S>(p + i * row.stride, lanes[i]);
}
// A vector's rows side by side, all of n elements: vectors as they are.
template <class V, class S>
SUMEXP_FN bool side_by_side(const RaggedRow* rows, int count, int n) {
  if (count != V::W) return false;
  for (int b = 0; b < V::W; ++b)
    if (rows[b].n != n || rows[b].stride != rows[0].stride || rows[b].first != rows[0].first + b * sizeof(S)) return false;
  return true;
}

template <class V, class S>
void load_tile(const RaggedRow* rows, int count, int n, double fill, void* to) {
  using T = ElementOf<V>;
  V* const tile = static_cast<V*>(to);
  if (side_by_side<V, S>(rows, count, n)) {
    const char* p = rows[0].first;
    for (int j = 0; j < n; ++j, p += rows[0].stride) tile[j] = V::load(reinterpret_cast<const S*>(p));
    return;
  }
  for (int j = 0; j < n; j += V::W) {
    V square[V::W];
    for (int b = 0; b < V::W; ++b) square[b] = load_piece<V, S>(rows[b < count ? b : count - 1], j, static_cast<T>(fill));
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i)
      if (j + i < n) tile[j + i] = square[i];
  }
}
template <class V, class S>
void store_tile(const RaggedRow* rows, int count, int n, const void* from) {
  const V* const tile = static_cast<const V*>(from);
  if (side_by_side<V, S>(rows, count, n)) {
    char* p = rows[0].first;
    for (int j = 0; j < n; ++j, p += rows[0].stride) V::store(reinterpret_cast<S*>(p), tile[j]);
    return;
  }
  for (int j = 0; j < n; j += V::W) {
    V square[V::W];
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i) square[i] = tile[j + i < n ? j + i : n - 1];
    transpose(square);
    for (int b = 0; b < count; ++b) store_piece<V, S>(rows[b], j, square[b]);
  }
}
#endif

template <class V, class S>
void leave_out(const LogitOptions& options, int count, double value, void* at) {
  using T = ElementOf<V>;
  if (options.mask) leave_out_masked(options.mask, options.mask_stride, count, static_cast<T>(value), static_cast<T*>(at));
  if (!options.bias) return;
  T* const x = static_cast<T*>(at);
  const T lowest = -Limits<T>::infinity;
  if (options.bias_stride == sizeof(S)) {
    const S* const bias = reinterpret_cast<const S*>(options.bias);
    each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const auto out = equal(memory.template load<V>(bias + i, T(0)), V(lowest));
      memory.store(x + i, pick(out, V(static_cast<T>(value)), memory.template load<V>(x + i, T(0))));
    });
  } else {
    for (int i = 0; i < count; ++i)
      if (widen(read<S>(options.bias + i * options.bias_stride)) == lowest) x[i] = static_cast<T>(value);
  }
}

// Whether all of `to` are finite that are made of finite a and b.
template <class V>
SUMEXP_FN bool stays_finite(V to, V a, V b) {
  const V zero = V(ElementOf<V>(0));
  const int infinite = ::sumexp::SUMEXP_NS::count(unordered(to * zero));
  return !infinite || infinite == ::sumexp::SUMEXP_NS::count(unordered(a * zero + b * zero));
}

template <class V, class S>
bool logits(const LogitOptions& options, int count, void* at) {
  using T = ElementOf<V>;
  T* const x = static_cast<T*>(at);
  bool finite = true;
  const auto of = MaskedOptions<V>::of(options.scale);
  const bool grows = options.scale.temperature < 1.0;
  if (!of.none())
    each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(x + i, T(0)), quotient = of.divided(v);
      if (grows) finite &= stays_finite(quotient, v, v);
      memory.store(x + i, of.capped_of(quotient));
    });
  if (options.bias) {
    if (options.bias_stride == sizeof(S)) {
      const S* const bias = reinterpret_cast<const S*>(options.bias);
      each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
        const V a = memory.template load<V>(x + i, T(0)), b = memory.template load<V>(bias + i, T(0)), z = of.biased(a, b);
        finite &= stays_finite(z, a, b);
        memory.store(x + i, z);
      });
    } else {
      for (int i = 0; i < count; ++i) {
        const T b = widen(read<S>(options.bias + i * options.bias_stride)), z = MaskedOptions<T>::biased(x[i], b);
        finite &= is_finite(z) || !is_finite(x[i]) || !is_finite(b);
        x[i] = z;
      }
    }
  }
  if (options.mask) leave_out_masked(options.mask, options.mask_stride, count, -Limits<T>::infinity, x);
  return finite;
}

template <class S>
auto bias_at(const LogitOptions& options, int i) {
  using T = decltype(widen(S()));
  return options.bias ? widen(read<S>(options.bias + i * options.bias_stride)) : T(0);
}
template <class V, class S>
bool overflows(const LogitOptions& options, int count, const void* at, LargestLogit* largest) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(at);
  bool any = false;
  for (int i = 0; i < count; ++i) {
    if (options.mask && !options.mask[i * options.mask_stride]) continue;
    const T bias = bias_at<S>(options, i);
    const double scaled = scaled_logit<T>(options.scale, x[i], bias);
    if (scaled > largest->scaled) *largest = {scaled, static_cast<double>(x[i]), static_cast<double>(bias)};
    any |= logit_overflows<T>(options.scale, x[i], bias, scaled);
  }
  return any;
}
template <class V, class S>
void logits_apart(const LogitOptions& options, int count, const LargestLogit& top, void* at) {
  using T = ElementOf<V>;
  T* const x = static_cast<T*>(at);
  for (int i = 0; i < count; ++i) x[i] = logit_apart<T>(options.scale, top, x[i], bias_at<S>(options, i));
  if (options.mask) leave_out_masked(options.mask, options.mask_stride, count, -Limits<T>::infinity, x);
}

template <class V>
void to_elements(const LogitOptions& options, int count, const void* elements, const void* gradient, void* to) {
  using T = ElementOf<V>;
  const T* const x = static_cast<const T*>(elements);
  const T* const from = static_cast<const T*>(gradient);
  T* const out = static_cast<T*>(to);
  const auto of = MaskedOptions<V>::of(options.scale);
  each_vector<V>(count, [&](std::int64_t i, auto memory) SUMEXP_INLINE {
    const V at = of.caps ? memory.template load<V>(x + i, T(0)) : V(T(0));
    memory.store(out + i, of.back(memory.template load<V>(from + i, T(0)), at));
  });
}

template <class V, class S>
void fill(char* out, std::int64_t stride, std::int64_t count, double value) {
  using T = ElementOf<V>;
  S s;
  narrow(static_cast<T>(value), s);
  std::int64_t i = 0;
  if (stride == sizeof(S))
    for (; i + V::W <= count; i += V::W) V::store(reinterpret_cast<S*>(out) + i, V(static_cast<T>(value)));
  for (; i < count; ++i) memcpy(out + i * stride, &s, sizeof(S));
}

template <class V, class S>
constexpr cpu::RaggedMoves moves_of() {
  cpu::RaggedMoves moves = {nullptr,         nullptr,        logits<V, S>, overflows<V, S>, logits_apart<V, S>,
                            leave_out<V, S>, to_elements<V>, fill<V, S>};
#if SUMEXP_REGISTERS
  moves.load_tile = load_tile<V, S>, moves.store_tile = store_tile<V, S>;
#endif
  return moves;
}
const cpu::RaggedKernels kKernels = {
    {moves_of<F32, f16>(), moves_of<F32, bf16>(), moves_of<F32, float>(), moves_of<F64, double>()}};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

SUMEXP_DEFINE_TABLE(RaggedKernels, ragged_kernels_, SUMEXP_NS::kKernels)
