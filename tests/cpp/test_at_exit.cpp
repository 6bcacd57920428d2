// Calls from the destructor of a static object, after the main thread's own objects are gone.
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include <sumexp/sumexp.hpp>

#include "check.hpp"

namespace {

// Over columns of which each takes scratch memory.
std::vector<float> softmax_of(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  const std::int64_t shape[2] = {static_cast<std::int64_t>(x.size()) / 2, 2}, strides[2] = {8, 4};
  sumexp::Call call;
  call.ndim = 2, call.shape = shape, call.axes = 1;
  call.in[0] = {const_cast<float*>(x.data()), strides}, call.out = {y.data(), strides};
  call.temperature = 2;
  if (!sumexp::run(call).ok()) y.clear();
  return y;
}

struct Last {
  std::vector<float> x = std::vector<float>(5000, 1.0f), y = softmax_of(x);
  std::string usable = sumexp::usable_isas(), compiled = sumexp::compiled_isas();

  ~Last() {
    for (int i = 0; i < 3; ++i) CHECK(softmax_of(x) == y, "softmax at exit, call %d", i);
    CHECK(usable == sumexp::usable_isas() && compiled == sumexp::compiled_isas(), "names at exit");
    CHECK(std::string(sumexp::set_isa("none").message).find(usable) != std::string::npos, "an error at exit");
    if (check::finish()) _exit(1);
  }
};

}  // namespace

int main() {
  static const Last last;
  CHECK(last.y.size() == last.x.size(), "softmax");
  softmax_of(last.x);
  return check::failures;
}
