// What the step on a parameter is: with the weights that its rule, or somebody else, gives.
#pragma once
#include "look.h"

namespace pytl::cuda {

// One thread decides what the step on a parameter is, and counts it.
template <class Real, class Options>
__device__ void decide_as(const Tables<Options>& t, int32_t i, const WeightsRow& weights) {
  const Parameter p = t.parameter(i);
  const Options o = t.groups[p.group].now();
  const double step = *p.step + 1.0;
  Terms<Real> terms = t.template plain_terms<Real>(p);
  terms.take(weights);
  put(t.template decision<Real>(i), {terms, o.template formula<Real>(step, p.fresh), static_cast<int32_t>(o.kind()),
                                     o.states(), static_cast<uint32_t>(step)});
  *p.step = static_cast<float>(step);
  t.parameters[i].fresh = 0;
}

template <class Options>
__device__ void decide(const Tables<Options>& t, int32_t i, const WeightsRow& weights) {
  if (t.parameters[i].dtype == DType::float64) return decide_as<double>(t, i, weights);
  decide_as<float>(t, i, weights);
}

template <class Options>
__device__ WeightsRow own_weights(const Tables<Options>& t, int32_t i) {
  const Group& group = t.groups[t.parameters[i].group].options;
  return rule_weights(group.rule, group.decoupled, get(&t.rows[i]));
}

// What each parameter's step is: with the weights given, without them with its group's rule and its own row, or, where
// no look has been taken, the plain sum.
template <class Options>
__global__ void __launch_bounds__(kThreads)
    decide_each(const __grid_constant__ Tables<Options> t, const WeightsRow* weights, bool looked) {
  const int32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= t.count || t.is_overflow()) return;
  decide(t, i, weights ? weights[i] : looked ? own_weights(t, i) : plain_weights());
}

// One block decides on all parameters: granularity "global", and clipping.
template <class Options>
__global__ void __launch_bounds__(kThreads) decide_together(const __grid_constant__ Tables<Options> t) {
  if (t.is_overflow()) return;
  const auto group_of = [&](int32_t i) -> const Group& { return t.groups[t.parameters[i].group].options; };
  const auto norm_of = [&](int32_t i) { return fed_norm(group_of(i).decoupled, t.rows[i], t.weights[i]); };
  for (const Rule rule : {Rule::sum, Rule::dtnh, Rule::grod, Rule::pcgrad}) {
    GramRow sums = {};
    for (int32_t i = threadIdx.x; i < t.count; i += kThreads)
      if (group_of(i).together && group_of(i).rule == rule) sums += t.rows[i];
    for_each_number(5, [&](double GramRow::* number, bool) { sums.*number = over_block(sums.*number); });
    for (int32_t i = threadIdx.x; i < t.count; i += kThreads)
      if (group_of(i).rule == rule)
        t.weights[i] = rule_weights(rule, group_of(i).decoupled, group_of(i).together ? sums : t.rows[i]);
  }
  double norms = 0;
  for (int32_t i = threadIdx.x; i < t.count; i += kThreads) norms += is_finite(norm_of(i)) ? norm_of(i) : 0;
  const double factor = clip_factor(over_block(norms), t.max_norm);
  for (int32_t i = threadIdx.x; i < t.count; i += kThreads) {
    if (is_finite(norm_of(i))) t.weights[i].scale = factor;
    decide(t, i, t.weights[i]);
  }
}

}  // namespace pytl::cuda
