// The norm of d = g * (task gradient) + r * (regulariser's gradient) without another look, and what bounds it.
#pragma once
#include <cmath>

#include "directions.h"

namespace pytl {

PYTL_INLINE double squared_norm(DirectionWeights w, Gram n) {
  const double square = w.g * w.g * n.gg + 2 * w.g * w.r * n.gr + w.r * w.r * n.rr;
  return square < 0 ? 0.0 : square;  // rounding
}

// As torch's clip_grad_norm_ has it.
PYTL_INLINE double clip_factor(double squared_norm, double max_norm) {
  const double factor = max_norm / (std::sqrt(squared_norm) + 1e-6);
  return factor < 1 ? factor : 1.0;
}

}  // namespace pytl
