// How moments are kept in fewer than 32 bits. Rounding is at random, up or down so that the mean is right: what a step
// changes below their resolution, a decay of 1 - beta2 = 0.001 above all, is not lost.
#pragma once
#include <cmath>

#include "../element.h"

namespace pytl {

enum class MomentFormat : int32_t { full, bfloat16, eight_bits };

// Elements that share a scale, the largest magnitude among them (blockwise: Dettmers et al., ICLR 2022,
// arXiv:2110.02861; the codes here are small floats in place of its table: our own).
constexpr int64_t kMomentBlock = 256;

// Bytes of one element of a state.
PYTL_INLINE int64_t moment_size(MomentFormat format, DType dtype) {
  if (format == MomentFormat::full) return dtype == DType::float64 ? 8 : 4;
  return format == MomentFormat::bfloat16 ? 2 : 1;
}

// 32 random bits for an element in a step: the same wherever and by whomever they are asked for. (The mixing is
// MurmurHash3's, which is in the public domain.)
PYTL_INLINE uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}
PYTL_INLINE uint32_t moment_seed(uint32_t step, int state) { return mixed(3 * step + static_cast<uint32_t>(state)); }
PYTL_INLINE uint32_t random_bits(uint32_t seed, int64_t element) {
  return mixed(static_cast<uint32_t>(element) * 0x9e3779b1u + seed);
}

// Codes for numbers from 0 to 1: 0, then 2^mantissa to the octave, up to `highest` for 1.
template <int mantissa, int highest>
struct SmallFloat {
  static constexpr int shift = 23 - mantissa;
  static constexpr int32_t base = (127 << mantissa) - highest;

  PYTL_INLINE static float value(int32_t code) {
    return code == 0 ? 0.0f : bit_cast<float>(static_cast<uint32_t>(code + base) << shift);
  }
  PYTL_INLINE static int32_t code(float x, uint32_t random) {
    const uint32_t rounded = bit_cast<uint32_t>(x) + (random & ((1u << shift) - 1));
    const int32_t code = static_cast<int32_t>(rounded >> shift) - base;
    return code < 0 ? 0 : code > highest ? highest : code;
  }
};

// A moment of either sign.
struct SignedCode {
  using Magnitude = SmallFloat<3, 127>;
  PYTL_INLINE static float kept(float moment) { return moment; }
  PYTL_INLINE static float moment(uint8_t code, float scale) {
    const float magnitude = scale * Magnitude::value(code & 127);
    return code & 128 ? -magnitude : magnitude;
  }
  PYTL_INLINE static uint8_t code(float x, float scale, uint32_t random) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const float share = scale == 0 ? 0.0f : bit_cast<float>(bits & 0x7fffffffu) / scale;
    return static_cast<uint8_t>((bits >> 24 & 128u) | static_cast<uint32_t>(Magnitude::code(share, random)));
  }
};

// A mean of squares, kept as its root: its range is that of the mean beside it. What is not 0 does not become 0, which
// would make a leap of the next step.
struct RootCode {
  using Magnitude = SmallFloat<4, 255>;
  PYTL_INLINE static float kept(float moment) { return std::sqrt(moment); }
  PYTL_INLINE static float moment(uint8_t code, float scale) {
    const float root = scale * Magnitude::value(code);
    return root * root;
  }
  PYTL_INLINE static uint8_t code(float x, float scale, uint32_t random) {
    const int32_t code = scale == 0 ? 0 : Magnitude::code(x / scale, random);
    return static_cast<uint8_t>(code == 0 && x != 0 ? 1 : code);
  }
};

// Magnitudes in their order, with NaN above all: a block's scale is the largest of what is kept.
PYTL_INLINE uint32_t magnitude_bits(float x) { return bit_cast<uint32_t>(x) & 0x7fffffffu; }

// To bfloat16. What is not finite is cut, and stays what it is.
PYTL_INLINE bfloat16 rounded_at_random(float x, uint32_t random) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  const uint32_t quiet = x != x ? 0x400000u : 0u;
  return {static_cast<uint16_t>((is_finite ? bits + (random & 0xffffu) : bits | quiet) >> 16)};
}

}  // namespace pytl
