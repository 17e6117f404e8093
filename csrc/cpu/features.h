// The feature regularisers' passes on the CPU. Sums are taken in float64 in an order that does not depend on the number
// of threads. Addresses are of dense tensors; Real is double for float64 and float for the other dtypes.
#pragma once
#include "../feature_list.h"

namespace pytl::cpu {

// 1/2 sum of weight * (x - source)^2, without the number of samples.
double feature_distance(const FeaturePair&);
// to = task + factor * weight * (x - source); task may be null.
void feature_distance_gradient(const FeaturePair&, const char* task, double factor, char* to);

// map: Real [samples, positions]; inverse_norms: float64 [samples]
void attention_map(const Activations&, char* map, double* inverse_norms);
// gradient: Real [samples, positions], of the map; to: as the activations
void attention_map_gradient(const Activations&, const char* map, const double* inverse_norms, const char* gradient,
                            char* to);

// The mean over the rows of T^2 KL(softmax(t / T) || softmax(s / T)); its gradient with respect to s, where to is not
// null.
double distillation(const Logits&, char* to);

}  // namespace pytl::cpu
