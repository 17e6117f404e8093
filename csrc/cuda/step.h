// The step on a thread's elements.
#pragma once
#include "look.h"

namespace pytl::cuda {

template <bool, class Real>
__device__ Real step_by(const SGD<Real>& formula, int32_t kind, Real d, Real& buffer, Real&, Real&) {
  if (kind == static_cast<int32_t>(Momentum::none)) return formula.template step<Momentum::none>(d, buffer);
  if (kind == static_cast<int32_t>(Momentum::heavy_ball)) return formula.template step<Momentum::heavy_ball>(d, buffer);
  return formula.template step<Momentum::nesterov>(d, buffer);
}
template <bool full, class Real>
__device__ Real step_by(const AdamW<Real>& formula, int32_t amsgrad, Real d, Real& mean, Real& square, Real& largest) {
  return full && amsgrad ? formula.template step<true>(d, mean, square, largest)
                         : formula.template step<false>(d, mean, square, largest);
}

// Steps on `some` elements, those from `from` on, and on their states.
template <bool regularised, bool decoupled, class Form, int count, class Real, int some, class Work>
__device__ void step_with(const Work& work, Elements<Form, count>& e, int from, Vector<Real, some> (&s)[Form::states]) {
  const auto& decision = work.decision;
  const auto& t = decision.terms;
  auto& third = s[Form::states - 1];
#pragma unroll
  for (int k = 0; k < some; k++) {
    const int j = from + k;
    const Real w = e.w(j), g = e.g(j), w0 = e.w0(j);
    constexpr bool regulariser_is_fed = regularised && (Form::full || !decoupled);
    const Real d = t.template fed<regulariser_is_fed, decoupled>(w, g, w0, e.h(j));
    const Real step = step_by<Form::full>(decision.formula, decision.kind, d, s[0].of[k], s[1].of[k], third.of[k]);
    e.set_w(j, w - (step + t.template beside<regularised, decoupled>(w, g, w0)));
  }
}
template <class Form, int count, class Real, int some, class Work>
__device__ void step_with(const Work& work, Elements<Form, count>& e, int from, Vector<Real, some> (&s)[Form::states]) {
  const auto& t = work.decision.terms;
  if (!t.regularised) return step_with<false, false>(work, e, from, s);
  if (t.decoupled) return step_with<true, true>(work, e, from, s);
  step_with<true, false>(work, e, from, s);
}

// In parts whose states are 16 bytes each: few of them are in registers at a time.
template <class Form, int count, class Work>
__device__ void step_elements(const Work& work, Elements<Form, count>& e, int32_t i) {
  using Real = typename Form::Real;
  constexpr int some = count == 1 ? 1 : 16 / sizeof(Real);
  const int32_t states = work.decision.states;
#pragma unroll
  for (int from = 0; from < count; from += some) {
    Vector<Real, some> s[Form::states] = {};
#pragma unroll
    for (int k = 0; k < Form::states; k++)
      if (k < states) s[k] = load_vector<Real, some, Kept::nowhere>(work.states[k], i + from);
    step_with(work, e, from, s);
#pragma unroll
    for (int k = 0; k < Form::states; k++)
      if (k < states) store_vector(work.states[k], i + from, s[k]);
  }
}

// A thread's sums, where there are no registers for them.
__device__ inline GramRow& shared_sums() {
  struct Sums {
    GramRow of[kThreads];
  };
  return shared<Sums>().of[threadIdx.x];
}

template <bool looking, class Form, class Options>
__device__ void step_on_vector(const Work<Form, Options>& work, int32_t first) {
  Products<Form> products;
  for_each_part<Form>(work, first, [&](int32_t i, auto count) {
    constexpr int many = decltype(count)::value;
    auto elements = Elements<Form, many>::template load<Kept::nowhere>(work, i, true);
    if (looking) products.add(work.decision.terms, elements);
    if (looking && (i + many == first + Form::width || i + many == work.run.length)) products.add_to(shared_sums());
    if (looking && Form::compensates) elements.compute_anew();
    step_elements(work, elements, i);
    elements.store(work, i);
  });
}

// Walks backwards: what was looked at last is still in the cache. looking: in passing, into shared_sums(), and
// forwards, as look_at adds up.
template <bool looking, class Form, class Options>
__device__ void step_on(const Work<Form, Options>& work) {
  constexpr int width = Form::width;
  if (looking) {
    shared_sums() = GramRow();
#pragma unroll 1
    for (int32_t first = work.run.template first<width>(); first < work.run.length; first += work.run.of * width)
      step_on_vector<true>(work, first);
  } else {
#pragma unroll 1
    for (int32_t first = work.run.template last<width>(); first >= 0; first -= work.run.of * width)
      step_on_vector<false>(work, first);
  }
}

}  // namespace pytl::cuda
