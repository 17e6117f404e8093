// Attention maps (Zagoruyko & Komodakis 2017, arXiv:1612.03928) of one sample's activations a[c, p]:
//   energy_p    sum over channels of a[c, p]^2
//   map_p       energy_p / |energy|                          0 where all activations are
//   gradient    a[c, p] * 2 (g_p - map_p <map, g>) / |energy|      for the map's gradient g
#pragma once
#include <cmath>

#include "../element.h"

namespace pytl {

PYTL_INLINE double inverse_norm(double square) { return square > 0 ? 1 / std::sqrt(square) : square == 0 ? 0 : square; }

// What an activation is multiplied by; along = <map, g>.
PYTL_INLINE double attention_slope(double map, double gradient, double along, double inverse_norm) {
  return 2 * (gradient - map * along) * inverse_norm;
}

}  // namespace pytl
