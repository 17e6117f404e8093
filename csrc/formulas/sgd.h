// One element's SGD step, as torch.optim.SGD defines it; d is the direction, the result is subtracted from the weight.
#pragma once
#include "../element.h"

namespace pytl {

enum class Momentum : int32_t { none, heavy_ball, nesterov };

template <class Real>
struct SGD {
  Real lr, momentum;
  Real inflow;  // 1 - dampening, and 1 where the buffer is new

  template <Momentum kind>
  PYTL_INLINE Real step(Real d, Real& buffer) const {
    if (kind == Momentum::none) return lr * d;
    buffer = momentum * buffer + inflow * d;
    return lr * (kind == Momentum::nesterov ? d + momentum * buffer : buffer);
  }
};

}  // namespace pytl
