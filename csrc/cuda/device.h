// What kernels and their launches may use beside CUDA's own threadIdx, blockIdx, gridDim, __syncthreads, __syncwarp,
// __shfl_sync and __shfl_xor_sync. tests/native/shim.h has the same on a CPU thread.
#pragma once
#if !defined(__CUDACC__)
#include "shim.h"
#else
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pytl::cuda {

constexpr int kThreads = 512;  // a block's

// One object a block, shared by its threads; the same one for each T.
template <class T>
__device__ T& shared() {
  __shared__ T storage;
  return storage;
}

// What one thread leaves for another block of the same launch: the reader sees all that was put before an `arrive` or
// `publish` once its own `arrive` or `observe` has seen that. Other threads join in through __syncwarp or
// __syncthreads.
template <class T>
__device__ void put(T* to, const T& value) {
  *to = value;
}
template <class T>
__device__ T get(const T* from) {
  return *from;
}
// Counts up; how many came before.
__device__ inline uint32_t arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
__device__ inline void publish(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline uint32_t observe(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void relax() { __nanosleep(64); }

// Accesses to operands, and where they stay for their next use in this launch: in the L1 cache of this processor, in
// the L2 cache, or in neither, which they then leave first.
enum class Kept { in_l1, in_l2, nowhere };
template <Kept kept, class T>
__device__ T load(const T* from) {
  if (kept == Kept::in_l1) return __ldca(from);
  return kept == Kept::in_l2 ? __ldcg(from) : __ldcs(from);
}
template <class T>
__device__ void store_last(T* to, T value) {
  __stcs(to, value);
}

// What was computed from a word is computed again after this, and not kept in registers.
__device__ inline void compute_anew(uint32_t& word) { asm volatile("" : "+r"(word)); }

// Throws std::runtime_error where CUDA reports an error.
inline void check(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // what is no defect of the device must not be reported a second time
  throw std::runtime_error(std::string("CUDA: ") + doing + ": " + cudaGetErrorString(code));
}

template <class... Parameters, class... Arguments>
void launch_with(unsigned attributes, cudaLaunchAttribute* attribute, void (*kernel)(Parameters...), int blocks,
                 cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks), config.blockDim = dim3(kThreads), config.stream = stream;
  config.attrs = attribute, config.numAttrs = attributes;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int blocks, cudaStream_t stream, const Arguments&... arguments) {
  launch_with(0, nullptr, kernel, blocks, stream, arguments...);
}

// All blocks run at the same time, so that they can wait for one another.
template <class... Parameters, class... Arguments>
void launch_together(void (*kernel)(Parameters...), int blocks, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  launch_with(1, &cooperative, kernel, blocks, stream, arguments...);
}

// How many blocks of the kernel the current device runs at the same time.
template <class... Parameters>
int blocks_at_once(void (*kernel)(Parameters...)) {
  int device = 0, processors = 0, each = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for its processors");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0), "asking for a kernel's blocks");
  return processors * each;
}

inline bool can_launch_together() {
  int device = 0, can = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, device), "asking for cooperative launches");
  return can != 0;
}

// Makes a device the current one, and the former one again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "asking for the device");
    if (device != before_) check(cudaSetDevice(device), "choosing the device");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace pytl::cuda
#endif
