// Gram numbers -> the weights of d = g * (task gradient) + r * (regulariser's gradient).
//   sum     d = g + r
//   dtnh    g's share of r is taken out where it opposes g                     (Wan et al. 2019, arXiv:1911.07489)
//   grod    g's share of r is taken out always                                 (GrOD, TKDD 2022)
//   pcgrad  each is projected off the other where they oppose one another      (Yu et al. 2020, arXiv:2001.06782)
#pragma once
#include "../element.h"

namespace pytl {

enum class Rule : int32_t { sum, dtnh, grod, pcgrad };

struct Gram {
  double gg, gr, rr;
};

struct DirectionWeights {
  double g, r;
};

// Share of the vector of squared norm `square` in one whose dot product with it is `dot`; 0 where that says nothing:
// a square that is zero, subnormal or not finite, or a quotient beyond float64.
PYTL_INLINE double share(double dot, double square) {
  constexpr double smallest_normal = 0x1p-1022, largest = 0x1.fffffffffffffp+1023;
  const double quotient = dot / square;
  const bool known = square >= smallest_normal && square <= largest && quotient >= -largest && quotient <= largest;
  return known ? quotient : 0.0;
}

PYTL_INLINE DirectionWeights direction_weights(Rule rule, Gram n) {
  const double conflict = n.gr < 0 ? n.gr : 0.0;
  switch (rule) {
    case Rule::dtnh:
      return {1.0 - share(conflict, n.gg), 1.0};
    case Rule::grod:
      return {1.0 - share(n.gr, n.gg), 1.0};
    case Rule::pcgrad:
      return {1.0 - share(conflict, n.gg), 1.0 - share(conflict, n.rr)};
    case Rule::sum:
      break;
  }
  return {1.0, 1.0};
}

}  // namespace pytl
