// Asks for a CUDA device, and checks that where there is none a call says so and touches nothing.
#include <sumexp/cuda.hpp>

#include <cstdio>
#include <cstring>

int main() {
  const int devices = sumexp::cuda::device_count();
  std::printf("built for %s; %d devices\n", sumexp::cuda::architectures(), devices);
  if (devices > 0) return 0;

  float x[3] = {1, 2, 3}, y[3] = {7, 7, 7};
  const std::int64_t shape[1] = {3}, strides[1] = {4};
  sumexp::Call call;
  call.ndim = 1;
  call.shape = shape;
  call.axes = 1;
  call.in[0] = {x, strides};
  call.out = {y, strides};
  sumexp::cuda::Target target;
  const sumexp::Status status = sumexp::cuda::run(call, target);
  std::printf("%s\n", status.message);
  return status.code == sumexp::Code::device_error && std::strstr(status.message, "CUDA error") && y[0] == 7 ? 0 : 1;
}
