// Prints the compute capabilities of the GPUs that this machine shows, such as "80;90": run by CMakeLists.txt where CUDA
// kernels are built for what is there. Asks the driver by itself, so that it builds and runs where there is no CUDA.
#include <dlfcn.h>

#include <cstdio>
#include <set>

int main() {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return 0;
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  const auto attribute = reinterpret_cast<int (*)(int*, int, int)>(dlsym(driver, "cuDeviceGetAttribute"));
  int devices = 0;
  if (!init || !count || !attribute || init(0) != 0 || count(&devices) != 0) return 0;
  std::set<int> found;
  for (int device = 0; device < devices; ++device) {
    int major = 0, minor = 0;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    if (attribute(&major, 75, device) == 0 && attribute(&minor, 76, device) == 0) found.insert(10 * major + minor);
  }
  const char* between = "";
  for (const int capability : found) std::printf("%s%d", between, capability), between = ";";
  return 0;
}
