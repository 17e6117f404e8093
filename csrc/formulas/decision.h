// What is decided between looking and stepping: Gram numbers -> what is taken of g and of each regulariser.
#pragma once
#include "clip.h"

namespace pytl {

// One row a parameter: the numbers that one look at the operands gives. r is the pull, with the penalty where the
// group is coupled; h is the penalty where it is decoupled (else 0).
struct GramRow {
  double gg, gr, rr, gh, hh;

  PYTL_INLINE void operator+=(const GramRow& other) {
    gg += other.gg, gr += other.gr, rr += other.rr, gh += other.gh, hh += other.hh;
  }
};

// One row a parameter: what the directions make of the regularisers. The moments are fed
//   scale * (g + (moments_g * g + moments_r * their regulariser))
// and lr * (beside_g * g + beside_r * r) moves the weight beside them. g stands apart, so that nothing overflows where
// g and the regulariser are huge and opposed.
struct WeightsRow {
  double scale, moments_g, moments_r, beside_g, beside_r;
};

// Nothing is projected, nothing clipped.
PYTL_INLINE WeightsRow plain_weights() { return {1, 0, 1, 0, 1}; }

PYTL_INLINE WeightsRow rule_weights(Rule rule, bool decoupled, const GramRow& row) {
  const DirectionWeights pull = direction_weights(rule, {row.gg, row.gr, row.rr});
  if (!decoupled) return {1, pull.g - 1, pull.r, 0, 1};
  const DirectionWeights penalty = direction_weights(rule, {row.gg, row.gh, row.hh});
  return {1, penalty.g - 1, penalty.r, pull.g - 1, pull.r};
}

// The squared norm of what feeds the moments, before it is scaled.
PYTL_INLINE double fed_norm(bool decoupled, const GramRow& row, const WeightsRow& weights) {
  const Gram fed = decoupled ? Gram{row.gg, row.gh, row.hh} : Gram{row.gg, row.gr, row.rr};
  return squared_norm({1 + weights.moments_g, weights.moments_r}, fed);
}

// For sums over tensors: one that is not finite must not take the others with it.
PYTL_INLINE bool is_finite(double x) { return x - x == 0; }

}  // namespace pytl
