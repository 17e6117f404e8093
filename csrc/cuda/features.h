// The feature regularisers' passes on CUDA: those of cpu/features.h, on addresses of the device. Scalars are float64 on
// the device. Nothing waits for the device, and all can be captured in a graph.
#pragma once
#include "../feature_list.h"

namespace pytl::cuda {

// Where a call runs, and memory of its own there, aligned to 16 bytes and of any content, until its work is done: so
// many bytes as its ..._scratch tells.
struct Site {
  int device;
  void* stream;  // cudaStream_t
  char* scratch;
};

// Throw std::runtime_error where CUDA reports an error.
void feature_distance(const FeaturePair&, double* value, const Site&);
void feature_distance_gradient(const FeaturePair&, const char* task, const double* factor, char* to, const Site&);
void attention_map(const Activations&, char* map, double* inverse_norms, const Site&);
void attention_map_gradient(const Activations&, const char* map, const double* inverse_norms, const char* gradient,
                            char* to, const Site&);
void distillation(const Logits&, double* value, char* to, const Site&);

int64_t feature_distance_scratch(const FeaturePair&);
int64_t attention_map_scratch(const Activations&);
int64_t attention_map_gradient_scratch(const Activations&);
int64_t distillation_scratch(const Logits&);

}  // namespace pytl::cuda
