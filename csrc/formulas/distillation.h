// Soft labels (Hinton et al. 2015, arXiv:1503.02531): T^2 KL(p || q) of one row, p = softmax(t / T) the source's,
// q = softmax(s / T), with e = exp((. - max) / T) and its sum Z:
//   value     T^2 (sum p (t - s) / T + log Z_s + max_s / T - log Z_t - max_t / T)
//   gradient  T (q - p)                                                        with respect to s
#pragma once
#include "exponential.h"

namespace pytl {

// Rounded before anything is taken from it: no fused multiply-add, so that equal logits have a gradient of 0.
PYTL_INLINE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
PYTL_INLINE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class Real>
struct Distillation {
  Real inverse_temperature, largest_s, largest_t;

  PYTL_INLINE Real student(Real s) const { return exponential((s - largest_s) * inverse_temperature); }
  PYTL_INLINE Real source(Real t) const { return exponential((t - largest_t) * inverse_temperature); }

  // An element's part of sum e_t (t - s); a class that the source excludes has none, whatever the student says.
  PYTL_INLINE static Real gap(Real s, Real t, Real e_t) { return e_t == 0 ? Real(0) : t - s; }

  // cross: sum e_t (t - s) over the row.
  PYTL_INLINE double value(double sum_s, double sum_t, double cross) const {
    const double T = 1 / static_cast<double>(inverse_temperature);
    const double shift = static_cast<double>(largest_s) - static_cast<double>(largest_t);
    return T * (cross / sum_t + shift) + T * T * (std::log(sum_s) - std::log(sum_t));
  }
  PYTL_INLINE static Real gradient(Real e_s, Real e_t, Real factor_s, Real factor_t) {
    return rounded_product(factor_s, e_s) - rounded_product(factor_t, e_t);
  }
};

}  // namespace pytl
