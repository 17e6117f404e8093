// One element's g, r and h, and how they are joined into what feeds the moments and what moves the weight beside them;
// all in the arithmetic's type.
#pragma once
#include "decision.h"
#include "pull.h"

namespace pytl {

// c_g * g + c_r * r, where an infinite g that no part is taken of leaves no trace.
template <class Real>
PYTL_INLINE Real join(Real c_g, Real g, Real c_r, Real r) {
  return (c_g == 0 ? Real(0) : c_g * g) + c_r * r;
}

template <class Real>
struct Terms {
  Pull<Real> pull;
  Real gradient_factor, lr;
  Real scale, moments_g, moments_r, beside_g, beside_r;
  bool regularised;  // there is a pull or a penalty
  bool penalised;    // there is a penalty
  bool decoupled;

  // A weight that Real cannot hold counts for nothing: of g no part is taken, r is taken whole.
  PYTL_INLINE void take(const WeightsRow& w) {
    scale = held(w.scale, 1);
    moments_g = held(w.moments_g, 0), moments_r = held(w.moments_r, 1);
    beside_g = held(w.beside_g, 0), beside_r = held(w.beside_r, 1);
    regularised = regularised || w.moments_g != 0 || w.beside_g != 0;
    if (decoupled && !penalised) scale = held(w.scale * (1 + w.moments_g), 1), moments_g = 0;  // g alone is fed
  }

  PYTL_INLINE int gram_numbers() const { return !regularised ? 1 : penalised && decoupled ? 5 : 3; }

  PYTL_INLINE Real task(Real gradient) const { return gradient_factor * gradient; }

  // r: the pull, with the penalty where that is not decoupled.
  template <bool is_decoupled>
  PYTL_INLINE Real regulariser(Real w, Real start, Real penalty) const {
    return is_decoupled ? pull(w, start) : pull(w, start) + penalty;
  }

  // What feeds the moments.
  template <bool is_regularised, bool is_decoupled>
  PYTL_INLINE Real fed(Real w, Real gradient, Real start, Real penalty) const {
    const Real g = task(gradient);
    if (!is_regularised) return scale * g;
    return scale * (g + join(moments_g, g, moments_r, is_decoupled ? penalty : regulariser<false>(w, start, penalty)));
  }

  // What moves the weight beside them.
  template <bool is_regularised, bool is_decoupled>
  PYTL_INLINE Real beside(Real w, Real gradient, Real start) const {
    if (!is_regularised || !is_decoupled) return 0;
    return lr * join(beside_g, task(gradient), beside_r, pull(w, start));
  }

 private:
  PYTL_INLINE static Real held(double x, Real otherwise) {
    const Real y = static_cast<Real>(x);
    return y - y == 0 ? y : otherwise;
  }
};

}  // namespace pytl
