// The end of a sum that many blocks have taken: one block adds up what they left.
#pragma once
#include "device.h"

namespace pytl::cuda {

// value = factor * the sum of so many numbers on the device, in one order.
void add_up(const double* numbers, int64_t count, double factor, double* value, cudaStream_t);

}  // namespace pytl::cuda
