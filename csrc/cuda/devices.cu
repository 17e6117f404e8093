#include "devices.h"

#include "device.h"
#include "words.h"

namespace pytl::cuda {

const char* architectures() { return PYTL_ARCHITECTURES; }

#if defined(__CUDACC__)

namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

std::string why_not(int device) {
  if (driver_version() == 0) return "there is no NVIDIA driver: install one";
  // A driver serves every runtime of its major version.
  if (driver_version() / 1000 < toolkit_version() / 1000)
    return "the NVIDIA driver serves CUDA " + version(driver_version()) + ", and pytl was built with " +
           version(toolkit_version()) + ": update the driver, or build pytl with an older toolkit";
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && device >= devices) error = cudaErrorInvalidDevice;
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string("CUDA cannot use the device: ") + cudaGetErrorString(error);
  }
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, &write<64>);
  if (error == cudaSuccess) return "";
  cudaGetLastError();
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's properties");
  return std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", and pytl was built for " + architectures() + " (" +
         cudaGetErrorString(error) + "): build it with PYTL_CUDA_ARCHITECTURES=native";
}

#else

int toolkit_version() { return 0; }
int driver_version() { return 0; }
std::string why_not(int) { return ""; }

#endif

}  // namespace pytl::cuda
