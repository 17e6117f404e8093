// One element's Adam step (Kingma & Ba 2015; AMSGrad: Reddi et al. 2018), as torch.optim.AdamW defines it;
// d is the direction, the result is subtracted from the weight.
#pragma once
#include <cmath>

#include "../element.h"

namespace pytl {

struct BiasCorrections {
  double step;          // t, from 1
  double mean;          // 1 - beta1^t
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
};

// By squaring: the same bits everywhere, and on a GPU a tenth of the registers of pow.
PYTL_INLINE double power(double base, uint32_t exponent) {
  double result = 1;
  for (; exponent; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

PYTL_INLINE BiasCorrections bias_corrections(double beta1, double beta2, double step) {
  const uint32_t t = static_cast<uint32_t>(step);
  return {step, 1 - power(beta1, t), 1 / std::sqrt(1 - power(beta2, t))};
}

template <class Real>
struct AdamW {
  Real beta1, inflow1;  // inflow = 1 - beta, rounded once, from double
  Real beta2, inflow2;
  Real corrected_lr;             // lr / (1 - beta1^t)
  Real inverse_root_correction;  // 1 / sqrt(1 - beta2^t)
  Real eps;

  template <bool amsgrad>
  PYTL_INLINE Real step(Real d, Real& mean, Real& square, Real& largest_square) const {
    mean = beta1 * mean + inflow1 * d;
    square = beta2 * square + inflow2 * d * d;
    if (amsgrad) largest_square = square > largest_square || square != square ? square : largest_square;
    const Real root = std::sqrt(amsgrad ? largest_square : square);
    // A weight that has never had a gradient stays where it is, with eps = 0 as well.
    return mean == Real(0) ? Real(0) : corrected_lr * mean / (root * inverse_root_correction + eps);
  }
};

}  // namespace pytl
