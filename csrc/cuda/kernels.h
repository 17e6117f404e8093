// Look once, step once, on the GPU. A parameter beyond kSmall elements is cut into pieces that blocks take in turn; who
// comes last adds up the pieces' sums. Smaller ones are a single warp's.
#pragma once
#include "decide.h"
#include "narrow.h"

namespace pytl::cuda {

// Gram numbers of all parameters.
template <class Form, class Options>
__global__ void __launch_bounds__(kThreads, Form::blocks_a_processor)
    look(const __grid_constant__ Tables<Options> t, Range pieces) {
  if (t.is_overflow()) return;
  for (int32_t k = pieces.begin + blockIdx.x; k < pieces.end; k += gridDim.x) look_at_piece<Form>(t, k);
}

// looking: in passing, which narrow forms do not.
template <bool looking, class Form, class Options>
__device__ void step_on_run(const Work<Form, Options>& work) {
  if constexpr (Form::narrow)
    step_on_blocks(work);
  else
    step_on<looking>(work);
}

// The step on all parameters, as it was decided before. looking: that needed no look, and the Gram numbers are taken in
// passing.
template <class Form, class Options, bool looking>
__global__ void __launch_bounds__(kThreads, Form::blocks_a_processor)
    step(const __grid_constant__ Tables<Options> t, Range pieces) {
  if (t.is_overflow()) return;
  for (int32_t k = pieces.begin + blockIdx.x; k < pieces.end; k += gridDim.x) {
    const Run run = run_of(t, k);
    if (run.parameter < 0) continue;
    const auto& work = work_to_step<Form>(t, run);
    step_on_run<looking>(work);
    if (looking) put_sums(t, k, work.run, shared_sums(), work.decision.terms.gram_numbers());
  }
}

// How many pieces of this block may be stepped on, once the looks of so many rounds are taken by all blocks: those of
// the parameters that were looked at to their end.
template <class Options>
__device__ int32_t ready(const Tables<Options>& t, Range pieces, int32_t rounds) {
  const int32_t blocks = gridDim.x, looked = pieces.begin + rounds * blocks;
  int32_t end = pieces.end;
  if (looked < pieces.end) {
    const int32_t i = t.pieces[looked].parameter;
    end = i < 0 ? looked : t.first_piece[i];
  }
  const int32_t before = end - pieces.begin - static_cast<int32_t>(blockIdx.x);
  return before > 0 ? (before - 1) / blocks + 1 : 0;
}

// Both in one launch, in rounds of one piece a block: looks R and steps S go R0 R1 S0 R2 S1 ..., so that a step finds
// what was looked at in the L2 cache, and the wait for a decision is filled with the next look. A parameter of many
// rounds is stepped on after its last, backwards. All blocks must run at the same time.
template <class Form, class Options>
__global__ void __launch_bounds__(kThreads, Form::blocks_a_processor)
    look_and_step(const __grid_constant__ Tables<Options> t, Range pieces) {
  if (t.is_overflow()) return;
  const auto launch = [&] { return observe(t.launches) + 1; };  // read again rather than kept in a register
  const int32_t blocks = gridDim.x, own = pieces.begin + blockIdx.x;
  for (int32_t round = 0; round == 0 || (round - 1) * blocks < pieces.end - pieces.begin; round++) {
    const int32_t piece = own + round * blocks;
    if (piece < pieces.end && look_at_piece<typename Form::Look>(t, piece) && lane() == 0) {
      const int32_t i = run_of(t, piece).parameter;
      decide_as<typename Form::Real>(t, i, own_weights(t, i));
      publish(&t.decided[i], launch());
    }
    if (round == 0) continue;
    for (int32_t k = ready(t, pieces, round) - 1; k >= ready(t, pieces, round - 1); k--) {
      const Run run = run_of(t, own + k * blocks);
      if (run.parameter < 0) continue;
      if (lane() == 0)
        while (observe(&t.decided[run.parameter]) != launch()) relax();
      step_on_run<false>(work_to_step<Form>(t, run));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && arrive(t.left) + 1 == gridDim.x) *t.left = 0, publish(t.launches, launch());
}

}  // namespace pytl::cuda
