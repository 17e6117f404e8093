// What sgd.cu and adamw.cu have in common.
#pragma once
#include "kernels.h"
#include "launches.h"
#include "occupancy.h"

namespace pytl::cuda {

// launch(form) for a form known at run time.
template <class Launch>
void with_form(FormId form, Launch launch) {
  switch (form) {
    case FormId::float32:
      return launch(Form<float, float, 4>());
    case FormId::float32_from_bfloat16:
      return launch(Form<float, pytl::bfloat16, 8>());
    case FormId::bfloat16:
      return launch(Form<pytl::bfloat16, pytl::bfloat16, 8>());
    case FormId::float16:
      return launch(Form<pytl::float16, pytl::float16, 8>());
    case FormId::full_float64:
      return launch(FullForm<double, 2>());
    case FormId::full_float32:
      return launch(FullForm<float, 4>());
    case FormId::full_bfloat16:
      return launch(FullForm<pytl::bfloat16, 8>());
    case FormId::full_float16:
      return launch(FullForm<pytl::float16, 8>());
    case FormId::narrow_float32:
      return launch(NarrowForm<float>());
    case FormId::narrow_bfloat16:
      return launch(NarrowForm<pytl::bfloat16>());
    case FormId::narrow_float16:
      return launch(NarrowForm<pytl::float16>());
  }
}

template <class Kernel>
int blocks_on(Kernel kernel, Range pieces, int device) {
  return blocks_for(kernel, pieces.end - pieces.begin, device);
}

template <class Kernel, class Options>
void launch_on(Kernel kernel, const Tables<Options>& t, Range pieces, cudaStream_t stream) {
  launch(kernel, blocks_on(kernel, pieces, t.device), stream, t, pieces);
}

template <class Options>
void Launches<Options>::look(FormId id, const Tables<Options>& t, Range pieces, cudaStream_t stream) {
  with_form(id, [&](auto form) { launch_on(&cuda::look<typename decltype(form)::Look, Options>, t, pieces, stream); });
}

template <class Options>
void Launches<Options>::step(FormId id, const Tables<Options>& t, Range pieces, cudaStream_t stream) {
  with_form(id, [&](auto form) { launch_on(&cuda::step<decltype(form), Options, false>, t, pieces, stream); });
}

template <class Options>
void Launches<Options>::step_looking(FormId id, const Tables<Options>& t, Range pieces, cudaStream_t stream) {
  with_form(id, [&](auto form) {
    if constexpr (!decltype(form)::full) launch_on(&cuda::step<decltype(form), Options, true>, t, pieces, stream);
  });
}

template <class Options>
void Launches<Options>::look_and_step(FormId id, const Tables<Options>& t, Range pieces, cudaStream_t stream) {
  with_form(id, [&](auto form) {
    const auto kernel = &cuda::look_and_step<decltype(form), Options>;
    launch_together(kernel, blocks_on(kernel, pieces, t.device), stream, t, pieces);
  });
}

template <class Options>
void Launches<Options>::decide_each(const Tables<Options>& t, const WeightsRow* weights, bool looked,
                                    cudaStream_t stream) {
  launch(&cuda::decide_each<Options>, (t.count + kThreads - 1) / kThreads, stream, t, weights, looked);
}

template <class Options>
void Launches<Options>::decide_together(const Tables<Options>& t, cudaStream_t stream) {
  launch(&cuda::decide_together<Options>, 1, stream, t);
}

}  // namespace pytl::cuda
