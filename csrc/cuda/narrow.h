// The step on elements whose moments are kept in fewer bits. What a warp takes at a time is a block of moments, which
// shares a scale: all its lanes take part, those beyond the run's end as well.
#pragma once
#include "step.h"

namespace pytl::cuda {

// A lane's elements of a block, from element i of the run on, of which there are `left`; together: all of them, wide.
struct Part {
  int32_t i, left;
  bool together;
};

template <class Stored, int width>
__device__ Vector<Stored, width> load_part(const char* operand, const Part& part) {
  if (part.together) return load_vector<Stored, width, Kept::nowhere>(operand, part.i);
  Vector<Stored, width> v = {};
#pragma unroll
  for (int j = 0; j < width; j++)
    if (j < part.left) v.of[j] = load_vector<Stored, 1, Kept::nowhere>(operand, part.i + j).of[0];
  return v;
}

// Together by words: a vector of several would pass through local memory.
template <class Stored, int width>
__device__ void store_part(char* operand, const Part& part, const Vector<Stored, width>& v) {
  constexpr int some = width * sizeof(Stored) > 16 ? 16 / sizeof(Stored) : width;
#pragma unroll
  for (int from = 0; from < width; from += some) {
    Vector<Stored, some> word;
#pragma unroll
    for (int j = 0; j < some; j++) word.of[j] = v.of[from + j];
    if (part.together) store_vector(operand, part.i + from, word);
  }
#pragma unroll
  for (int j = 0; j < width; j++)
    if (!part.together && j < part.left) store_vector(operand, part.i + j, Vector<Stored, 1>{v.of[j]});
}

template <class Form, class Work>
__device__ Elements<Form, Form::width> load_elements(const Work& work, const Part& part) {
  if (part.together) return Elements<Form, Form::width>::template load<Kept::nowhere>(work, part.i, true);
  Elements<Form, Form::width> e = {};
#pragma unroll
  for (int j = 0; j < Form::width; j++)
    if (j < part.left) e.set(j, Elements<Form, 1>::template load<Kept::nowhere>(work, part.i + j, true));
  return e;
}

template <class Form, class Work>
__device__ void store_elements(const Work& work, const Part& part, const Elements<Form, Form::width>& e) {
  store_part(work.weight, part, e.weight);
  if constexpr (Form::compensates)
    if (work.compensation) store_part(work.compensation, part, e.low);
}

// State k of a part; `scale`: its block's.
template <class Code, int width>
__device__ void load_codes(const char* state, const float* scale, const Part& part, Vector<float, width>& to) {
  const auto codes = load_part<uint8_t, width>(state, part);
  const float unit = load<Kept::nowhere>(scale);
#pragma unroll
  for (int j = 0; j < width; j++) to.of[j] = Code::moment(codes.of[j], unit);
}

template <class Code, int width>
__device__ void store_codes(const Vector<float, width>& from, uint32_t seed, int64_t element, const Part& part,
                            char* state, float* scale) {
  float kept[width];
  uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < width; j++) {
    kept[j] = Code::kept(from.of[j]);
    const uint32_t magnitude = j < part.left ? magnitude_bits(kept[j]) : 0;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float unit = bit_cast<float>(largest_of_lanes(largest));
  Vector<uint8_t, width> codes;
#pragma unroll
  for (int j = 0; j < width; j++) codes.of[j] = Code::code(kept[j], unit, random_bits(seed, element + j));
  store_part(state, part, codes);
  if (lane() == 0) store_last(scale, unit);
}

template <int width>
__device__ void load_halves(const char* state, const Part& part, Vector<float, width>& to) {
  const auto halves = load_part<bfloat16, width>(state, part);
#pragma unroll
  for (int j = 0; j < width; j++) to.of[j] = widen<float>(halves.of[j]);
}

template <int width>
__device__ void store_halves(const Vector<float, width>& from, uint32_t seed, int64_t element, const Part& part,
                             char* state) {
  Vector<bfloat16, width> halves;
#pragma unroll
  for (int j = 0; j < width; j++) halves.of[j] = rounded_at_random(from.of[j], random_bits(seed, element + j));
  store_part(state, part, halves);
}

// A warp's step on the block that begins at an element of the run. The first state is a mean, or momentum; those behind
// it are of squares.
template <class Form, class Options>
__device__ void step_on_block(const Work<Form, Options>& work, int32_t begin) {
  constexpr int width = Form::width;
  const int32_t i = begin + lane() * width, left = work.run.length - i;
  const Part part = {i, left, work.wide && left >= width};
  const int32_t states = work.decision.states, block = begin / kMomentBlock;
  const bool halves = work.moments == MomentFormat::bfloat16;
  auto elements = load_elements<Form>(work, part);
  Vector<float, width> s[Form::states] = {};
#pragma unroll
  for (int k = 0; k < Options::most_states; k++) {
    if (k >= states) continue;
    if (halves)
      load_halves(work.states[k], part, s[k]);
    else if (k == 0)
      load_codes<SignedCode>(work.states[k], work.scales[k] + block, part, s[k]);
    else
      load_codes<RootCode>(work.states[k], work.scales[k] + block, part, s[k]);
  }
  step_with(work, elements, 0, s);
  const int64_t element = work.run.offset + i;
#pragma unroll
  for (int k = 0; k < Options::most_states; k++) {
    if (k >= states) continue;
    const uint32_t seed = moment_seed(work.decision.step, k);
    if (halves)
      store_halves(s[k], seed, element, part, work.states[k]);
    else if (k == 0)
      store_codes<SignedCode>(s[k], seed, element, part, work.states[k], work.scales[k] + block);
    else
      store_codes<RootCode>(s[k], seed, element, part, work.states[k], work.scales[k] + block);
  }
  store_elements(work, part, elements);
}

// A warp's blocks of a run, backwards: what was looked at last is still in the cache.
template <class Form, class Options>
__device__ void step_on_blocks(const Work<Form, Options>& work) {
  constexpr int width = Form::width;
  const int32_t first_lane = static_cast<int32_t>(threadIdx.x) - lane();
#pragma unroll 1
  for (int32_t begin = work.run.template last<width>(first_lane); begin >= 0; begin -= work.run.of * width)
    step_on_block(work, begin);
}

}  // namespace pytl::cuda
