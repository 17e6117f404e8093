// What a launch reads and writes beside the operands: a plan's records in device memory.
#pragma once
#include <utility>

#include "device.h"
#include "groups.h"
#include "schedule.h"

namespace pytl::cuda {

// What a step on a parameter's elements needs to know, once it is decided.
template <class Formula, class Real>
struct Decision {
  Terms<Real> terms;
  Formula formula;
  int32_t kind, states;
  uint32_t step;  // from 1
};

template <class Options, class Real>
using FormulaOf = decltype(std::declval<Options>().template formula<Real>(0.0, false));

constexpr size_t kDecisionBytes = 192;

template <class Options>
struct Tables {
  Parameter* parameters;
  const char* const* gradients;  // of each parameter
  const char* const* penalties;
  const DeviceGroup<Options>* groups;
  const Piece* pieces;
  const int32_t* first_piece;  // of each parameter that is not small
  const int32_t* piece_count;  // of each parameter; 0: it is small
  const int32_t* small;        // parameters
  int32_t count;               // of parameters

  GramRow* sums;        // of each piece
  uint32_t* arrived;    // pieces of each parameter; 0 between launches
  uint32_t* decided;    // the launch that decided on each parameter, counted by `launches`
  uint32_t* launches;   // of kernels whose blocks wait for one another
  uint32_t* left;       // blocks that have ended such a launch; 0 between launches
  char* decisions;      // of each parameter, kDecisionBytes apart
  WeightsRow* weights;  // of each parameter
  GramRow* rows;        // of each parameter: what opt.gram shows
  int device;
  const float* found_inf;   // null, or not 0: nothing is to be changed
  const float* loss_scale;  // null: 1
  double max_norm;

  __device__ bool is_overflow() const { return found_inf && *found_inf != 0; }

  __device__ Parameter parameter(int32_t i) const {
    Parameter p = parameters[i];
    p.gradient = gradients[i], p.penalty = penalties[i];
    return p;
  }

  template <class Real>
  __device__ Terms<Real> plain_terms(const Parameter& p) const {
    Terms<Real> t = pytl::plain_terms<Real>(p, groups[p.group].now());
    if (loss_scale) t.gradient_factor *= Real(1) / static_cast<Real>(*loss_scale);
    return t;
  }

  template <class Real>
  __device__ Decision<FormulaOf<Options, Real>, Real>* decision(int32_t i) const {
    using D = Decision<FormulaOf<Options, Real>, Real>;
    static_assert(sizeof(D) <= kDecisionBytes, "decisions are kDecisionBytes apart");
    return reinterpret_cast<D*>(decisions + i * kDecisionBytes);
  }
};

}  // namespace pytl::cuda
