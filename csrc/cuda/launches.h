// The kernels of one optimizer, for each form of parameters; sgd.cu and adamw.cu instantiate them.
#pragma once
#include "tables.h"

namespace pytl::cuda {

template <class Options>
struct Launches {
  static void look(FormId, const Tables<Options>&, Range, cudaStream_t);
  static void step(FormId, const Tables<Options>&, Range, cudaStream_t);
  static void step_looking(FormId, const Tables<Options>&, Range, cudaStream_t);  // not for full forms
  static void look_and_step(FormId, const Tables<Options>&, Range, cudaStream_t);
  static void decide_each(const Tables<Options>&, const WeightsRow* weights, bool looked, cudaStream_t);
  static void decide_together(const Tables<Options>&, cudaStream_t);
};

}  // namespace pytl::cuda
