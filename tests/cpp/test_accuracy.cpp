// Cross-entropy and its gradient against long double: loss and every element within 4 ulp (0.51 where they have 16 bits),
// however confident the row is and wherever it lies, in every layout; and what infinities and NaN give. usage: test_accuracy
// [ISA]
#include <cmath>
#include <limits>

#include "cases.hpp"

using namespace cases;

namespace {

using Real = long double;

double worst[4][2];  // by dtype: of losses, of gradients

// The distance between neighbours at `value` in a dtype.
Real ulp(DType dtype, Real value) {
  const int digits = dtype == DType::f16 ? 11 : dtype == DType::bf16 ? 8 : dtype == DType::f32 ? 24 : 53;
  const int lowest = dtype == DType::f16 ? -14 : dtype == DType::f64 ? -1022 : -126;
  int e = 0;
  std::frexp(value, &e);
  return std::ldexp(Real(1), std::max(e - 1, lowest) - digits + 1);
}

void compare(const char* what, const DTypeCase& type, double got, Real want, int which, std::int64_t n, std::int64_t j) {
  if (std::isnan(want) || std::isinf(want)) {
    CHECK(std::isnan(want) ? std::isnan(got) : got == static_cast<double>(want), "%s %s n=%lld, %lld: %a, not %a", what,
          type.name, static_cast<long long>(n), static_cast<long long>(j), got, static_cast<double>(want));
    return;
  }
  const Real largest = type.dtype == DType::f16 ? 65504.0L : static_cast<Real>(std::numeric_limits<float>::max());
  if (std::isinf(got) && type.size < 8 && std::abs(want) >= largest) return;
  const double error = static_cast<double>(std::abs(got - want) / ulp(type.dtype, want));
  double& most = worst[static_cast<int>(type.dtype)][which];
  most = std::max(most, error);
  CHECK(error <= (type.size == 2 ? 0.51 : 4.0), "%s %s n=%lld, %lld: %a, not %La (%.2f ulp)", what, type.name,
        static_cast<long long>(n), static_cast<long long>(j), got, want, error);
}

struct Reference {
  Real loss;
  std::vector<Real> gradient;
};
Reference reference(const std::vector<Real>& x, std::size_t target) {
  const Real nan = std::numeric_limits<Real>::quiet_NaN(), infinity = std::numeric_limits<Real>::infinity();
  Real m = -infinity, others = 0, all_but_target = 0;
  std::size_t top = 0;
  bool number = true;
  for (std::size_t j = 0; j < x.size(); ++j) {
    number &= !std::isnan(x[j]) && x[j] != infinity;
    if (x[j] > m) m = x[j], top = j;
  }
  if (!number || m == -infinity) return {nan, std::vector<Real>(x.size(), nan)};
  for (std::size_t j = 0; j < x.size(); ++j) {
    const Real term = std::exp(x[j] - m);
    if (j != top) others += term;
    if (j != target) all_but_target += term;
  }
  Reference r{(m - x[target]) + std::log1p(others), {}};
  for (std::size_t j = 0; j < x.size(); ++j)
    r.gradient.push_back(j == target ? -all_but_target / (1 + others) : std::exp(x[j] - m) / (1 + others));
  return r;
}

// Rows of n elements, one after the other or side by side, some in place.
void check_rows(const DTypeCase& type, const std::vector<std::vector<double>>& given, std::int64_t n,
                const std::vector<std::int64_t>& targets, bool side_by_side, bool in_place) {
  const std::int64_t rows = static_cast<std::int64_t>(given.size());
  const auto place = [&](std::int64_t r, std::int64_t j) { return (side_by_side ? j * rows + r : r * n + j) * type.size; };
  const std::size_t bytes = static_cast<std::size_t>(rows * n * type.size);
  Bytes x(bytes), gradient(bytes), loss(static_cast<std::size_t>(rows * type.size)), second(loss);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < n; ++j)
      put(type.dtype, x.data() + place(r, j), given[static_cast<std::size_t>(r)][static_cast<std::size_t>(j)]);
  const Bytes before = x;
  const std::int64_t shape[2] = {rows, n}, index[2] = {8, 0}, row[2] = {type.size, 0};
  const std::int64_t full[2] = {place(1, 0), place(0, 1)};
  Call call;
  call.dtype = type.dtype, call.ndim = 2, call.shape = shape, call.axes = 2;
  call.in[0] = {x.data(), full}, call.in[1] = {const_cast<std::int64_t*>(targets.data()), index};
  call.op = Op::cross_entropy, call.out = {loss.data(), row};
  Status status = run(call);
  CHECK(status.ok(), "%s", status.message);
  call.op = Op::cross_entropy_with_grad, call.out = {in_place ? x.data() : gradient.data(), full},
  call.extra = {second.data(), row};
  status = run(call);
  CHECK(status.ok(), "%s", status.message);
  CHECK(loss == second, "%s: the losses of both functions", type.name);
  const Bytes& result = in_place ? x : gradient;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<Real> logits;
    for (std::int64_t j = 0; j < n; ++j) logits.push_back(get(type.dtype, before.data() + place(r, j)));
    const Reference want = reference(logits, static_cast<std::size_t>(targets[static_cast<std::size_t>(r)]));
    compare("loss", type, get(type.dtype, loss.data() + r * type.size), want.loss, 0, n, r);
    for (std::int64_t j = 0; j < n; ++j)
      compare("gradient", type, get(type.dtype, result.data() + place(r, j)), want.gradient[static_cast<std::size_t>(j)], 1, n,
              j);
  }
}

void check_lengths(const DTypeCase& type) {
  const double offsets[] = {0.0, 1e4, type.size == 2 ? -3e4 : 1e8, type.dtype == DType::f16 ? 6e4 : 1e30};
  Random random(7);
  int turn = 0;
  std::vector<std::int64_t> lengths = {1, 2, 3, 10, 16, 17, 40, 100, 300, 1100, 2049, 9000};
  if (check::slow()) lengths = {1, 3, 16, 40, 300, 2049};
  for (const std::int64_t n : lengths)
    for (const std::int64_t rows : {1, 3, 40})
      for (const bool side_by_side : {false, true})
        for (const double offset : offsets) {
          if (n > 300 && rows == 40 && (offset != 0.0 || check::slow())) continue;
          std::vector<std::vector<double>> x(static_cast<std::size_t>(rows));
          std::vector<std::int64_t> targets;
          for (auto& row : x) {
            const double scale = turn % 3 == 0 ? 20.0 : 1.0, step = offset == 1e30 && type.size != 2 ? 1e30 * 0x1p-22 : 1.0;
            for (std::int64_t j = 0; j < n; ++j) row.push_back(offset + step * scale * random.normal());
            std::int64_t target = random.below(n);
            // the target's lead: none, some, and up to where p is 1 and the others are subnormal
            if (turn % 4 == 1) row[static_cast<std::size_t>(target)] = offset + step * static_cast<double>(random.below(110));
            if (turn % 4 == 2 && n > 1)
              row[static_cast<std::size_t>((target + 1) % n)] = offset + step * static_cast<double>(random.below(110));
            if (turn % 4 == 3 && n > 1)
              row[static_cast<std::size_t>((target + 1) % n)] = row[static_cast<std::size_t>(target)] = offset + step * 30.0;
            targets.push_back(target);
            ++turn;
          }
          check_rows(type, x, n, targets, side_by_side, turn % 2);
        }
}

void check_specials(const DTypeCase& type) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const std::int64_t n : check::slow() ? std::vector<std::int64_t>{16, 3000} : std::vector<std::int64_t>{3, 16, 100, 3000})
    for (const bool side_by_side : {false, true})
      for (const bool in_place : {false, true}) {
        // of rows 0 to 5, elements 0 and 1 in turn: the target is element 1, of row 3 element 2
        const double first[] = {-infinity(), 1.0, infinity(), nan, -infinity(), 2.0},
                     second[] = {-1.0, -infinity(), 1.0, 1.0, -infinity(), 2.0};
        std::vector<std::vector<double>> x;
        std::vector<std::int64_t> targets;
        for (int r = 0; r < 36; ++r) {
          std::vector<double> row(static_cast<std::size_t>(n), r % 6 == 4 ? -infinity() : 0.5);
          row[0] = first[r % 6], row[1] = second[r % 6];
          x.push_back(row);
          targets.push_back(r % 6 == 3 ? 2 : 1);
        }
        check_rows(type, x, n, targets, side_by_side, in_place);
        for (int r = 0; r < 6; ++r)
          check_rows(type, {x[static_cast<std::size_t>(r)]}, n, {targets[static_cast<std::size_t>(r)]}, side_by_side, in_place);
      }
}

}  // namespace

int main(int argc, char** argv) {
  if (!choose_isa(argc > 1 ? argv[1] : std::getenv("SUMEXP_ISA"))) return check::kSkipped;
  sumexp::set_num_threads(1);
  for (const DTypeCase& type : kDTypes) check_lengths(type), check_specials(type);
  for (const DTypeCase& type : kDTypes)
    std::printf("%s: at most %.3f ulp in losses, %.3f in gradients\n", type.name, worst[static_cast<int>(type.dtype)][0],
                worst[static_cast<int>(type.dtype)][1]);
  return check::finish();
}
