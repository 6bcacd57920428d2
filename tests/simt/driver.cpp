// A CUDA driver whose GPUs are those that SUMEXP_TEST_GPUS names by compute capability, such as "90 86": for the test of
// csrc/cuda/visible.cpp. Without the variable it finds no GPU, as a driver does.
#include <cstdlib>
#include <sstream>
#include <vector>

namespace {
std::vector<int> gpus;
}

extern "C" {
int cuInit(unsigned) {
  const char* const named = std::getenv("SUMEXP_TEST_GPUS");
  std::istringstream all(named ? named : "");
  for (int capability; all >> capability;) gpus.push_back(capability);
  return gpus.empty() ? 100 : 0;  // CUDA_ERROR_NO_DEVICE
}
int cuDeviceGetCount(int* count) {
  *count = int(gpus.size());
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int capability = gpus[std::size_t(device)];
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
  return 0;
}
}
