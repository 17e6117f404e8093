// What a number is: the stored types, the types arithmetic runs in, and the conversions between them.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PYTL_INLINE __host__ __device__ __forceinline__
#else
// always_inline: this header is compiled once per instruction set, and the linker would merge what is left out of line.
#define PYTL_INLINE inline __attribute__((always_inline))
#endif

namespace pytl {

enum class DType : int32_t { float64, float32, bfloat16, float16 };

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

PYTL_INLINE int64_t element_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

template <class To, class From>
PYTL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// widen: stored -> arithmetic. Exact. All conversions are free of branches, so that compilers vectorise them; a GPU has
// an instruction for each, of the same result.
template <class Real>
PYTL_INLINE Real widen(double x) {
  return static_cast<Real>(x);
}
template <class Real>
PYTL_INLINE Real widen(float x) {
  return static_cast<Real>(x);
}
template <class Real>
PYTL_INLINE Real widen(bfloat16 x) {
  return static_cast<Real>(bit_cast<float>(static_cast<uint32_t>(x.bits) << 16));
}
template <class Real>
PYTL_INLINE Real widen(float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return static_cast<Real>(wide);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t exponent_shift = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const uint32_t normal = (magnitude << 13) + exponent_shift;
  const uint32_t bits = magnitude < 0x0400u ? bit_cast<uint32_t>(subnormal) : normal;
  return static_cast<Real>(bit_cast<float>(bits | sign));
#endif
}

// narrow: arithmetic -> stored. Rounds to nearest, ties to even; NaN stays NaN; beyond the range lies infinity.
template <class Stored>
struct Narrow;

template <>
struct Narrow<double> {
  PYTL_INLINE static double from(double x) { return x; }
};
template <>
struct Narrow<float> {
  PYTL_INLINE static float from(float x) { return x; }
};
template <>
struct Narrow<bfloat16> {
  PYTL_INLINE static bfloat16 from(float x) {
#if defined(__CUDA_ARCH__)
    bfloat16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
#endif
  }
};
template <>
struct Narrow<float16> {
  PYTL_INLINE static float16 from(float x) {
#if defined(__CUDA_ARCH__)
    float16 narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 1/2 leaves the multiples of 2^-24, float16's smallest number, in the last bits of the sum.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t ranged = magnitude >= 0x477ff000u ? 0x7c00u : finite;  // 65520 is the first to round to infinity
    return {static_cast<uint16_t>(sign | (x != x ? 0x7e00u : ranged))};
#endif
  }
};

}  // namespace pytl
