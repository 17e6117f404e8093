#include <algorithm>

#include "step.h"

namespace pytl::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;   // elements: 256 KiB an operand in float32
constexpr int64_t kShared = 1 << 20;  // elements: from here on the threads share a tensor
constexpr int64_t kRun = 1 << 15;     // elements: small tensors are handed out in runs of at least this many

template <class Length>
std::vector<Schedule::Range> runs_of(size_t count, Length length) {
  std::vector<Schedule::Range> runs;
  int64_t gathered = kRun;
  for (int32_t i = 0; i < static_cast<int32_t>(count); i++) {
    if (gathered >= kRun) runs.push_back({i, i}), gathered = 0;
    runs.back().end = i + 1;
    gathered += length(i);
  }
  return runs;
}

}  // namespace

Schedule::Schedule(const TensorList& list) {
  const std::vector<Parameter>& parameters = list.parameters();
  for (int32_t i = 0; i < static_cast<int32_t>(parameters.size()); i++) {
    const int64_t length = parameters[i].length;
    first_chunk.push_back(static_cast<int32_t>(chunks.size()));
    for (int64_t offset = 0; offset < length; offset += kChunk)
      chunks.push_back({i, offset, std::min(kChunk, length - offset)});
    (length >= kShared ? shared : owned).push_back(i);
  }
  first_chunk.push_back(static_cast<int32_t>(chunks.size()));
  sums.resize(chunks.size());
  weights.resize(parameters.size());

  const auto length = [&](int32_t i) { return parameters[i].length; };
  std::stable_sort(owned.begin(), owned.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  pieces = runs_of(chunks.size(), [&](int32_t i) { return chunks[i].length; });
  runs = runs_of(owned.size(), [&](int32_t i) { return length(owned[i]); });
}

}  // namespace pytl::cpu
