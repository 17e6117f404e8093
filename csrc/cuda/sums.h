// Warps, and sums over their lanes and over a block: in float64, in an order of their own, the same bits in every run.
#pragma once
#include "device.h"

namespace pytl::cuda {

constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline int warp() { return threadIdx.x / kWarp; }

// Of each group of `group` lanes, a power of 2, for all in it. All lanes of the warp take part.
__device__ inline double over_lanes(double x, int group = kWarp) {
#pragma unroll
  for (int lanes = group / 2; lanes; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// The largest of a warp's, for all its lanes.
__device__ inline uint32_t largest_of_lanes(uint32_t x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes; lanes /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, x, lanes);
    x = other > x ? other : x;
  }
  return x;
}

// A block's sum of one number a thread, for all of them.
__device__ inline double over_block(double x) {
  struct Sums {
    double of[kWarps];
  };
  double (&sums)[kWarps] = shared<Sums>().of;
  const double own = over_lanes(x);
  __syncthreads();
  if (lane() == 0) sums[warp()] = own;
  __syncthreads();
  double sum = 0;
  for (int k = 0; k < kWarps; k++) sum += sums[k];
  return sum;
}

}  // namespace pytl::cuda
