// exp(x) for x <= 0, within 3 units in the last place, on a GPU within 2 + |x|; free of branches so that compilers
// vectorise it. NaN stays NaN.
#pragma once
#include <cmath>

#include "../element.h"

namespace pytl {

PYTL_INLINE double exponential(double x) { return std::exp(x); }

// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial of least relative error, 1.05e-7; 2^n by its exponent
// bits.
PYTL_INLINE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  // Two instructions instead of eight, for which 16-bit logits would wait longer than for memory.
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 0x1.715476p+0f));
  return y;
#else
  constexpr float smallest = -87.0f, to_integer = 0x1.8p23f;
  const float bounded = x < smallest ? smallest : x;
  const float shifted = bounded * 0x1.715476p+0f + to_integer;  // its last bits are n
  const float n = shifted - to_integer;
  const float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 8.31252e-3f;
  y = y * r + 4.189016e-2f;
  y = y * r + 1.6667114e-1f;
  y = y * r + 4.999923e-1f;
  y = y * r * r + r + 1.0f;
  const uint32_t exponent = (bit_cast<uint32_t>(shifted) + 127u) << 23;
  return x < smallest ? 0.0f : y * bit_cast<float>(exponent);
#endif
}

}  // namespace pytl
