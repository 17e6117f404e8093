// The loops of the feature regularisers over runs of elements in their stored dtype. feature_loops.cpp is compiled once
// per instruction set, as loops.cpp is.
#pragma once
#include "../formulas/distillation.h"
#include "loops.h"

namespace pytl::cpu {

// A run's weights: one for all of its elements, or one each.
template <class Real>
struct Weights {
  const Real* of;
  bool each;
};

// What a row of logits adds up to.
struct RowSums {
  double student, source, cross;
};

template <class Real>
struct FeatureLoops {
  void (*distance)(DType, const void* x, const void* source, Weights<Real>, int64_t length, LaneSums&);
  // task may be null
  void (*distance_gradient)(DType, const void* x, const void* source, Weights<Real>, const void* task, Real factor,
                            int64_t length, void* to);
  void (*squares)(DType, const void* from, int64_t length, LaneSums&);
  void (*add_squares)(DType, const void* from, int64_t length, double* to);
  void (*scale)(DType, const void* from, Weights<Real>, int64_t length, void* to);
  // A row of logits; e_s and e_t take the exponentials.
  Distillation<Real> (*largest)(DType, const void* s, const void* t, int64_t length, Real inverse_temperature);
  RowSums (*exponentials)(DType, const void* s, const void* t, int64_t length, const Distillation<Real>&, Real* e_s,
                          Real* e_t);
  void (*distillation_gradient)(DType, const Real* e_s, const Real* e_t, Real factor_s, Real factor_t, int64_t length,
                                void* to);
};

template <class Real>
const FeatureLoops<Real>& feature_loops();  // those of the instruction set in use

}  // namespace pytl::cpu
