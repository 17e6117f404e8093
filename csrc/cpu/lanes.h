// Sums in lanes, as the loops of each instruction set take them; included by those loops alone.
#pragma once
#include "loops.h"

namespace pytl::cpu::PYTL_ISA {
namespace {

// The product of two floats is exact in double, so fusing it with the sum changes no bit; that of two doubles is not.
template <class Real>
PYTL_INLINE void add_product(double& sum, double a, double b) {
#if defined(__FMA__)
  if (sizeof(Real) == sizeof(float)) {
    sum = __builtin_fma(a, b, sum);
    return;
  }
#endif
  sum += a * b;
}

// add(sums, lane, i) for each element of a run: element i goes to lane i % kLanes.
template <class Add>
PYTL_INLINE void by_lanes(int64_t n, LaneSums& sums, Add add) {
  const int64_t whole = n - n % kLanes;
  LaneSums kept = sums;  // a copy, so that the lanes stay in registers
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) add(kept, lane, i + lane);
  }
  for (int64_t i = whole; i < n; i++) add(kept, static_cast<int>(i - whole), i);
  sums = kept;
}

}  // namespace
}  // namespace pytl::cpu::PYTL_ISA
