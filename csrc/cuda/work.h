// A warp's part of a parameter, and what its threads share of it.
#pragma once
#include "elements.h"
#include "tables.h"

namespace pytl::cuda {

// A warp's part of a piece: a run of a parameter's elements, which `of` threads take in turn.
struct Run {
  int32_t parameter;  // -1: there is nothing for this warp
  int32_t length;
  int64_t offset;
  int32_t of;

  // Where a thread's first vector begins, and its last; negative where it has none.
  template <int width>
  __device__ int32_t first(int32_t thread = threadIdx.x) const {
    return thread % of * width;
  }
  template <int width>
  __device__ int32_t last(int32_t thread = threadIdx.x) const {
    const int32_t beyond = length - 1 - first<width>(thread);
    return beyond < 0 ? -1 : length - 1 - beyond % (of * width);
  }
};

template <class Options>
__device__ Run run_of(const Tables<Options>& t, int32_t piece) {
  const Piece p = t.pieces[piece];
  if (p.parameter >= 0) return {p.parameter, p.length, p.offset, kThreads};
  const int32_t i = warp() < p.length ? t.small[p.offset + warp()] : -1;
  return {i, i < 0 ? 0 : static_cast<int32_t>(t.parameters[i].length), 0, kWarp};
}

// What a warp works on, from the run's first element on. It lies in shared memory: registers are for the elements.
template <class Form, class Options>
struct Work {
  using Real = typename Form::Real;
  char *weight, *compensation, *gradient, *penalty, *start, *states[3];
  float* scales[3];  // of narrow forms, as is `moments`
  MomentFormat moments;
  DType start_dtype;
  bool wide;  // all operands begin at a multiple of 16 bytes
  Run run;
  Decision<FormulaOf<Options, Real>, Real> decision;
};

// One lane fills the warp's work on a run, fill(decision) its decision; the others wait.
template <class Form, class Options, class Fill>
__device__ const Work<Form, Options>& work_on(const Tables<Options>& t, const Run& run, Fill fill) {
  struct Works {
    Work<Form, Options> of[kWarps];
  };
  Work<Form, Options>& work = shared<Works>().of[warp()];
  __syncwarp();
  if (lane() == 0) {
    work.run = run;
    const Parameter p = t.parameter(run.parameter);
    uintptr_t all = 0;
    const auto place = [&](char*& to, const char* base, int64_t size) {
      to = base ? const_cast<char*>(base) + run.offset * size : nullptr;
      all |= reinterpret_cast<uintptr_t>(to);
    };
    const int64_t stored = sizeof(typename Form::Stored);
    const int64_t moment = Form::narrow ? moment_size(p.moments, p.dtype) : sizeof(typename Form::Real);
    place(work.weight, p.weight, stored), place(work.compensation, p.compensation, stored);
    place(work.gradient, p.gradient, stored), place(work.penalty, p.penalty, stored);
    for (int k = 0; k < 3; k++) place(work.states[k], p.state[k], moment);
    if constexpr (Form::narrow) {
      work.moments = p.moments;
      for (int k = 0; k < 3; k++) work.scales[k] = p.scale[k] ? p.scale[k] + run.offset / kMomentBlock : nullptr;
    }
    fill(work.decision, p);
    work.start_dtype = p.start_dtype;
    place(work.start, work.decision.terms.pull.sp_decay != 0 ? p.start : nullptr, element_size(p.start_dtype));
    work.wide = all % 16 == 0;
  }
  __syncwarp();
  return work;
}

template <class Form, class Options>
__device__ const Work<Form, Options>& work_to_look(const Tables<Options>& t, const Run& run) {
  return work_on<Form>(t, run, [&](auto& decision, const Parameter& p) {
    decision.terms = t.template plain_terms<typename Form::Real>(p);
  });
}

template <class Form, class Options>
__device__ const Work<Form, Options>& work_to_step(const Tables<Options>& t, const Run& run) {
  return work_on<Form>(t, run, [&](auto& decision, const Parameter&) {
    decision = get(t.template decision<typename Form::Real>(run.parameter));
  });
}

// visit(i, count as a type): the elements that this thread takes from `first` on, together where they can be. One by
// one, the same thread has the same elements in the same order, so the bits are the same.
template <class Form, class Work, class Visit>
__device__ void for_each_part(const Work& work, int32_t first, Visit visit) {
  if (work.wide && first + Form::width <= work.run.length)
    return visit(first, std::integral_constant<int, Form::width>());
#pragma unroll 1
  for (int32_t i = first; i < first + Form::width && i < work.run.length; i++)
    visit(i, std::integral_constant<int, 1>());
}

}  // namespace pytl::cuda
