// Prints a softmax and checks it, with nothing but the installed header and library.
#include <sumexp/sumexp.hpp>

#include <cmath>
#include <cstdio>

int main() {
  const float x[2][3] = {{1, 2, 3}, {1, 2, 1000}};
  const double want[2][3] = {{0.09003057317038046, 0.24472847105479764, 0.6652409557748218}, {0, 0, 1}};
  float y[2][3];
  const std::int64_t shape[2] = {2, 3};

  const sumexp::Status status = sumexp::softmax(x, y, sumexp::DType::f32, 2, shape, /*axis=*/-1);
  if (!status.ok()) {
    std::printf("softmax: %s\n", status.message);
    return 1;
  }
  bool right = true;
  for (int row = 0; row < 2; ++row) {
    for (int k = 0; k < 3; ++k) {
      std::printf("%.9g%c", y[row][k], k < 2 ? ' ' : '\n');
      right = right && std::abs(y[row][k] - want[row][k]) <= 1.2e-7 * want[row][k];  // 2 ulp
    }
  }
  std::printf("sumexp %s, %s, %d threads: %s\n", sumexp::version(), sumexp::isa(), sumexp::get_num_threads(),
              right ? "right" : "WRONG");

  // A bad axis comes back as a status that says so, and y is as it was.
  const float before = y[0][0];
  const sumexp::Status bad = sumexp::softmax(x, y, sumexp::DType::f32, 2, shape, /*axis=*/2);
  std::printf("axis 2: %s\n", bad.message);
  return right && !bad.ok() && y[0][0] == before ? 0 : 1;
}
