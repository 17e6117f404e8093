// Every formula, as a kernel would use it: the headers that g++ compiles for the CPU must compile for the GPU as they
// are.
#include "../../csrc/formulas/adamw.h"
#include "../../csrc/formulas/clip.h"
#include "../../csrc/formulas/directions.h"
#include "../../csrc/formulas/pull.h"
#include "../../csrc/formulas/sgd.h"

using namespace pytl;

template <class Stored, class Real>
__global__ void step(Stored* w, const Stored* g, const Stored* w0, Real* mean, Real* square, Real* largest, Gram gram,
                     Rule rule, Pull<Real> pull, SGD<Real> sgd, AdamW<Real> adamw) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const DirectionWeights weights = direction_weights(rule, gram);
  const Real clip = Real(clip_factor(squared_norm(weights, gram), 1.0));
  const Real x = widen<Real>(w[i]), r = pull(x, widen<Real>(w0[i]));
  const Real d = clip * (Real(weights.g) * widen<Real>(g[i]) + Real(weights.r) * r);
  const Real first = adamw.template step<true>(d, mean[i], square[i], largest[i]);
  const Real second = sgd.template step<Momentum::nesterov>(d, mean[i]);
  w[i] = Narrow<Stored>::from(x - first - second);
}

#define PYTL_STEP(Stored, Real)                                                                                       \
  template __global__ void step<Stored, Real>(Stored*, const Stored*, const Stored*, Real*, Real*, Real*, Gram, Rule, \
                                              Pull<Real>, SGD<Real>, AdamW<Real>);
PYTL_STEP(double, double)
PYTL_STEP(float, float)
PYTL_STEP(bfloat16, float)
PYTL_STEP(float16, float)
