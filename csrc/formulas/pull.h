// The regulariser's gradient, where it is a formula of the weight alone (L2-SP, Li et al. 2018, arXiv:1802.01483):
//   r = sp_decay * (w - w0) + weight_decay * w
#pragma once
#include "../element.h"

namespace pytl {

template <class Real>
struct Pull {
  Real sp_decay, weight_decay;

  PYTL_INLINE Real operator()(Real w, Real w0) const { return sp_decay * (w - w0) + weight_decay * w; }
};

}  // namespace pytl
