// How many blocks a launch has: what the device runs at the same time, or fewer.
#pragma once
#include <algorithm>
#include <map>
#include <mutex>

#include "device.h"

namespace pytl::cuda {

// Asking CUDA costs microseconds, each time.
template <class Kernel>
int cached_blocks_at_once(Kernel kernel, int device) {
  static std::mutex mutex;
  static std::map<std::pair<Kernel, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({kernel, device});
  if (is_new) entry->second = blocks_at_once(kernel);
  return entry->second;
}

// Of blocks that take `items` in turn.
template <class Kernel>
int blocks_for(Kernel kernel, int64_t items, int device) {
  return static_cast<int>(std::min<int64_t>(items, cached_blocks_at_once(kernel, device)));
}

}  // namespace pytl::cuda
