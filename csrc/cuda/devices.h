// Whether the kernels of this library run on a device, and if not, why.
#pragma once
#include <string>

namespace pytl::cuda {

// Empty where they do; else what is missing and what to do about it.
std::string why_not(int device);

const char* architectures();  // that this library was compiled for
int toolkit_version();        // 13000: 13.0; of the CUDA runtime in this library
int driver_version();         // the newest that the driver serves; 0: there is no driver

}  // namespace pytl::cuda
