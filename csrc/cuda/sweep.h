// How threads share a run of elements: in batches of vectors that are in flight together. A thread has the same
// elements in the same batches wherever the operands lie, so the bits do not depend on their alignment.
#pragma once
#include "vector.h"

namespace pytl::cuda {

// A run in parts that blocks take in turn; an empty one is a part without elements. It depends on the numbers given
// alone, not on the device.
struct Parts {
  int64_t length, each, count;

  // At most so many, each of a multiple of `step` elements: 4096 leave 264 blocks 98% of their time with work.
  Parts(int64_t length, int64_t step, int64_t most = 8 * kThreads) : length(length) {
    const auto divided_up = [](int64_t n, int64_t by) { return n > 0 ? (n - 1) / by + 1 : 1; };
    each = divided_up(divided_up(length, most), step) * step;
    count = divided_up(length, each);
  }
  PYTL_INLINE int64_t begin(int64_t k) const { return k * each; }
  PYTL_INLINE int64_t end(int64_t k) const { return k + 1 < count ? (k + 1) * each : length; }
};

// `many` vectors of `width` elements, aligned to 16 bytes and `apart` elements from one another; those that do not lie
// within the run are 0.
template <int width_, int many>
struct Wide {
  static constexpr int width = width_, count = many;
  int64_t first, apart, end;

  __device__ int64_t at(int k) const { return first + k * apart; }
  __device__ bool any(int k) const { return at(k) + width <= end; }
  __device__ bool has(int k, int) const { return any(k); }

  template <Kept kept, class Stored>
  __device__ void load(const char* operand, int k, Vector<Stored, width>& v) const {
    v = load_vector<Stored, width, kept>(operand + at(k) * static_cast<int64_t>(sizeof(Stored)), 0, any(k));
  }
  template <class Stored>
  __device__ void store(char* operand, int k, const Vector<Stored, width>& v) const {
    if (any(k)) store_vector(operand + at(k) * static_cast<int64_t>(sizeof(Stored)), 0, v);
  }
};

// One vector, element by element: it is not aligned, or the run ends in it.
template <int width_>
struct Single {
  static constexpr int width = width_, count = 1;
  int64_t first;
  int length;  // of the run's elements

  __device__ int64_t at(int) const { return first; }
  __device__ bool any(int) const { return true; }
  __device__ bool has(int, int j) const { return j < length; }

  template <Kept kept, class Stored>
  __device__ void load(const char* operand, int, Vector<Stored, width>& v) const {
    v = {};
    const char* from = operand + first * static_cast<int64_t>(sizeof(Stored));
#pragma unroll
    for (int j = 0; j < width; j++)
      if (has(0, j)) v.of[j] = load_vector<Stored, 1, kept>(from, j).of[0];
  }
  template <class Stored>
  __device__ void store(char* operand, int, const Vector<Stored, width>& v) const {
    char* to = operand + first * static_cast<int64_t>(sizeof(Stored));
#pragma unroll
    for (int j = 0; j < width; j++)
      if (has(0, j)) store_vector(to, j, Vector<Stored, 1>{v.of[j]});
  }
};

// One thread's part of the elements up to `end`: vectors that begin at `first` and every `apart` from there. visit
// takes `many` at a time, or one, and after() follows each `many`. What is not whole or not wide is visited `single`
// elements at a time: those of a vector where they are added up together, else 1.
template <int width, int many, int single, class Visit, class After>
__device__ void for_each_batch(int64_t first, int64_t apart, int64_t end, bool wide, Visit visit, After after) {
#pragma unroll 1
  for (; first < end; first += many * apart) {
    if (wide) visit(Wide<width, many>{first, apart, end});
    if (!wide || first + (many - 1) * apart + width > end) {
#pragma unroll 1
      for (int64_t i = first; i < end && i < first + many * apart; i += apart) {
        if (wide && i + width <= end) continue;
        const int length = end - i < width ? static_cast<int>(end - i) : width;
#pragma unroll 1
        for (int j = 0; j < length; j += single)
          visit(Single<single>{i + j, length - j < single ? length - j : single});
      }
    }
    after();
  }
}
template <int width, int many, int single, class Visit>
__device__ void for_each_batch(int64_t first, int64_t apart, int64_t end, bool wide, Visit visit) {
  for_each_batch<width, many, single>(first, apart, end, wide, visit, [] {});
}

// The same for a block's threads side by side.
template <int width, int many, int single, class Visit>
__device__ void for_each_batch_of_block(int64_t begin, int64_t end, bool wide, Visit visit) {
  for_each_batch<width, many, single>(begin + static_cast<int>(threadIdx.x) * width, kThreads * width, end, wide,
                                      visit);
}

// Whether operands begin at a multiple of 16 bytes, all of them.
template <class... Addresses>
PYTL_INLINE bool are_aligned(const Addresses*... operands) {
  return ((reinterpret_cast<uintptr_t>(operands) | ... | 0) % 16) == 0;
}

}  // namespace pytl::cuda
