// A weight for each element: that of its channel, which is (i / inner) % channels for element i.
#pragma once
#include "vector.h"

namespace pytl::cuda {

PYTL_INLINE uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// Division of 0 <= n < 2^62 by a number that is known before the launch, as a product and a shift: a tenth of the
// instructions (Granlund & Montgomery 1994).
class Divisor {
 public:
  explicit Divisor(int64_t divisor) : divisor_(divisor) {
    while ((int64_t{1} << shift_) < divisor) shift_++;
    const auto rest = static_cast<unsigned __int128>((int64_t{1} << shift_) - divisor) << 64;
    factor_ = static_cast<uint64_t>(rest / static_cast<uint64_t>(divisor)) + 1;
  }
  PYTL_INLINE int64_t quotient(int64_t n) const {
    return static_cast<int64_t>((high_product(static_cast<uint64_t>(n), factor_) + static_cast<uint64_t>(n)) >> shift_);
  }
  PYTL_INLINE int64_t remainder(int64_t n) const { return n - quotient(n) * divisor_; }
  PYTL_INLINE int64_t divisor() const { return divisor_; }

 private:
  int64_t divisor_;
  uint64_t factor_;
  int shift_ = 0;
};

// What the elements of a vector have: 1; one weight; two, up to where a channel ends; each its own, side by side and
// aligned to 16 bytes; or any.
enum class Weighting { none, one, two, side_by_side, any };

template <class Real>
struct Weights {
  const Real* of;  // null: all are 1
  Divisor inner, channels;
};

// A channel that is alone, or that has no elements, ends nowhere.
template <class Real>
Weights<Real> weights_of(const Real* of, int64_t channels, int64_t inner) {
  if (!of || channels <= 1 || inner == 0) channels = 1, inner = int64_t{1} << 62;
  return {of, Divisor(inner), Divisor(channels)};
}

template <int width, class Real>
Weighting weighting_of(const Weights<Real>& weights) {
  const int64_t inner = weights.inner.divisor();
  if (!weights.of) return Weighting::none;
  if (inner % width == 0) return Weighting::one;
  if (inner > width) return Weighting::two;
  const bool is_aligned = weights.channels.divisor() % width == 0 && reinterpret_cast<uintptr_t>(weights.of) % 16 == 0;
  return inner == 1 && is_aligned ? Weighting::side_by_side : Weighting::any;
}

// visit(the weighting as a type)
template <class Visit>
void with_weighting(Weighting weighting, Visit visit) {
  switch (weighting) {
    case Weighting::none:
      return visit(std::integral_constant<Weighting, Weighting::none>());
    case Weighting::one:
      return visit(std::integral_constant<Weighting, Weighting::one>());
    case Weighting::two:
      return visit(std::integral_constant<Weighting, Weighting::two>());
    case Weighting::side_by_side:
      return visit(std::integral_constant<Weighting, Weighting::side_by_side>());
    case Weighting::any:
      return visit(std::integral_constant<Weighting, Weighting::any>());
  }
}

// Of `width` elements from i on. They stay in the L1 cache: all rows have the same.
template <Weighting weighting, int width, class Real>
__device__ Vector<Real, width> weights_at(const Weights<Real>& weights, int64_t i) {
  Vector<Real, width> v;
  if constexpr (weighting == Weighting::side_by_side) {
    const Real* const from = weights.of + weights.channels.remainder(i);
    v = load_vector<Real, width, Kept::in_l1>(reinterpret_cast<const char*>(from), 0);
  } else if constexpr (weighting == Weighting::any) {
    const int64_t run = weights.inner.quotient(i);
    const int inner = static_cast<int>(weights.inner.divisor());  // <= width
    int left = inner - static_cast<int>(i - run * inner);         // elements of the channel
    const Real* of = weights.of + weights.channels.remainder(run);
#pragma unroll
    for (int j = 0; j < width; j++) {
      v.of[j] = *of;
      if (--left > 0) continue;
      left = inner, of = of + 1 == weights.of + weights.channels.divisor() ? weights.of : of + 1;
    }
  } else {
    Real first = 1, second = 1;
    int64_t left = width;  // elements of the first one's channel
    if constexpr (weighting != Weighting::none) {
      const int64_t run = weights.inner.quotient(i), channel = weights.channels.remainder(run);
      first = second = weights.of[channel];
      if (weighting == Weighting::two) left = (run + 1) * weights.inner.divisor() - i;
      if (left < width) second = weights.of[channel + 1 < weights.channels.divisor() ? channel + 1 : 0];
    }
#pragma unroll
    for (int j = 0; j < width; j++) v.of[j] = j < left ? first : second;
  }
  return v;
}

}  // namespace pytl::cuda
