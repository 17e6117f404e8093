// Words that travel to the device by value, as the arguments of a kernel: no copy from host memory, which would have to
// stay as it is until the device has read it, and in a captured graph for ever.
#pragma once
#include <algorithm>
#include <vector>

#include "device.h"

namespace pytl::cuda {

template <size_t count>
struct Words {
  uint64_t of[count];
};

template <size_t count>
__global__ void write(const __grid_constant__ Words<count> words, int used, uint64_t* to) {
  for (int i = threadIdx.x; i < used; i += kThreads) to[i] = words.of[i];
}

template <size_t count>
void write_some(const uint64_t* from, size_t used, uint64_t* to, cudaStream_t stream) {
  Words<count> words;
  std::copy(from, from + used, words.of);
  launch(&write<count>, 1, stream, words, static_cast<int>(used), to);
}

inline void write_words(const std::vector<uint64_t>& words, uint64_t* to, cudaStream_t stream) {
  constexpr size_t kFew = 64, kSome = 500, kMany = 4000;  // a kernel's arguments take 4 KB, from CUDA 12.1 on 32 KB
  for (size_t begin = 0; begin < words.size(); begin += kMany) {
    const size_t used = std::min(kMany, words.size() - begin);
    const uint64_t* const from = words.data() + begin;
    if (used <= kFew)
      write_some<kFew>(from, used, to + begin, stream);
    else if (used <= kSome)
      write_some<kSome>(from, used, to + begin, stream);
    else
      write_some<kMany>(from, used, to + begin, stream);
  }
}

}  // namespace pytl::cuda
