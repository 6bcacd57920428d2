// What a row's result should be, in long double, and how far off it may be. Nothing is timed that fails this.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "operations.hpp"

namespace bench {

using Real = long double;

// Sums whose own error does not grow with n (Neumaier 1974).
class Sum {
 public:
  void add(Real x) {
    const Real t = sum_ + x;
    rest_ += std::fabs(sum_) >= std::fabs(x) ? (sum_ - t) + x : (x - t) + sum_;
    sum_ = t;
  }
  Real value() const { return sum_ + rest_; }

 private:
  Real sum_ = 0, rest_ = 0;
};

// The distance of neighbouring numbers of a format around x.
inline Real ulp(const Format& format, Real x) {
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(Real(1), x == 0 ? format.lowest : std::max(exponent - format.digits, format.lowest));
}

struct Expected {
  std::vector<Real> value;    // n of them, or one for a row
  std::vector<Real> allowed;  // the error each may have
};

// The bounds. Forward results: what the library promises. Derivatives are sums that cancel: half an ulp of
// the result and 8 of the compute type at the size of what was added (`size`).
inline Real allowed_error(const Operation& operation, const Format& format, Real value, Real size) {
  const bool half = format.size == 2;
  switch (operation.op) {
    case Op::softmax:
    case Op::log_softmax: return (half ? 0.51L : 2.0L) * ulp(format, value);
    case Op::logsumexp: return (half ? 0.51L : 1.0L) * ulp(format, std::max(std::fabs(value), size));
    default: return 0.51L * ulp(format, value) + 8 * ulp(kFormats[format.dtype == DType::f64 ? 1 : 0], size);
  }
}

// in[k]: the row's inputs, of length n, or 1 for the row input
inline Expected expect(const Operation& operation, const Format& format, const std::vector<Real>* in) {
  const std::vector<Real>&a = in[0], &b = in[1], &c = in[2];
  const std::size_t n = a.size();
  Expected row;
  const auto result = [&](Real value, Real size) {
    row.value.push_back(value);
    row.allowed.push_back(allowed_error(operation, format, value, size));
  };
  // <p, q> and the sum of its terms' sizes
  const auto dot = [&](auto p, auto q, Real& size) {
    Sum sum, sizes;
    for (std::size_t i = 0; i < n; ++i) sum.add(p(i) * q(i)), sizes.add(std::fabs(p(i) * q(i)));
    size = sizes.value();
    return sum.value();
  };
  const auto of = [](const std::vector<Real>& v) { return [&v](std::size_t i) { return v[i]; }; };
  const auto one = [](std::size_t) { return Real(1); };

  if (operation.in[0] == Role::logits) {
    const std::size_t top = static_cast<std::size_t>(std::max_element(a.begin(), a.end()) - a.begin());
    const Real m = a[top];
    std::vector<Real> e(n);
    Sum others;  // without the maximum's own term, which is 1: log1p then keeps every digit
    for (std::size_t i = 0; i < n; ++i) {
      const Real d = a[i] - m, back = d - a[i], rest = (a[i] - (d - back)) - (m + back);  // d + rest is exact
      e[i] = std::exp(d) * (1 + rest);
      if (i != top) others.add(e[i]);
    }
    const Real total = 1 + others.value(), log_total = std::log1p(others.value());
    if (operation.op == Op::logsumexp) {
      result(m + log_total, std::fabs(m));
    } else if (operation.op == Op::logsumexp_jvp) {
      Real size;
      const Real value = dot(of(e), of(b), size) / total;
      result(value, size / total);
    } else {
      for (std::size_t i = 0; i < n; ++i) {
        const Real s = e[i] / total;
        if (operation.op == Op::softmax) result(s, s);
        if (operation.op == Op::log_softmax) result((a[i] - m) - log_total, 0);
        if (operation.op == Op::logsumexp_vjp) result(s * b[0], std::fabs(s * b[0]));
      }
    }
    return row;
  }

  // the derivatives from a saved output: g, y / t, y / g, v, y
  const bool second = operation.in[2] != Role::none;
  std::vector<Real> s = second ? c : b;
  if ((second ? operation.in[2] : operation.in[1]) == Role::log_probability)
    for (Real& y : s) y = std::exp(y);
  Real size_a = 0, size_b = 0, size_ab = 0;
  const Real sum = dot(of(a), one, size_ab), sa = dot(of(s), of(a), size_a);
  const Real sizes_sum = size_ab, sb = second ? dot(of(s), of(b), size_b) : 0;
  // centred, as the library has it: with y rounded to 16 bits, sum(y) is not quite 1, and other forms differ
  const Real sab =
      second ? dot([&](std::size_t i) { return s[i] * (a[i] - sa); }, [&](std::size_t i) { return b[i] - sb; }, size_ab) : 0;
  for (std::size_t i = 0; i < n; ++i) {
    switch (operation.op) {
      case Op::softmax_vjp: result(s[i] * (a[i] - sa), s[i] * (std::fabs(a[i]) + size_a)); break;
      case Op::log_softmax_vjp: result(a[i] - s[i] * sum, std::fabs(a[i]) + s[i] * sizes_sum); break;
      case Op::log_softmax_jvp: result(a[i] - sa, std::fabs(a[i]) + size_a); break;
      case Op::log_softmax_hvp: result(-s[i] * (b[i] - sb) * sum, s[i] * (std::fabs(b[i]) + size_b) * sizes_sum); break;
      default:  // softmax_hvp: the derivative of y (g - <y, g>) along v
        result(s[i] * ((b[i] - sb) * (a[i] - sa) - sab),
               s[i] * ((std::fabs(b[i]) + size_b) * (std::fabs(a[i]) + size_a) + size_ab + size_a * size_b));
    }
  }
  return row;
}

}  // namespace bench
