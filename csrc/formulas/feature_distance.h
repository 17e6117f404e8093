// Distance of a network's features from those of its source (DELTA, Li et al. 2019, arXiv:1901.09229; without weights
// FitNets' hints, Romero et al. 2015, arXiv:1412.6550), of one element whose channel has the weight w:
//   term      w * (x - source)^2
//   gradient  task + factor * w * (x - source)
#pragma once
#include "../element.h"

namespace pytl {

template <class Real>
struct FeatureDistance {
  Real factor;  // of the gradient: that of the value, divided by the number of samples

  // The two factors whose product is an element's term: of floats it is exact in double.
  PYTL_INLINE static Real weighted(Real x, Real source, Real w) { return w * (x - source); }
  PYTL_INLINE static Real plain(Real x, Real source) { return x - source; }

  PYTL_INLINE Real gradient(Real x, Real source, Real w, Real task) const { return task + factor * w * (x - source); }
};

}  // namespace pytl
