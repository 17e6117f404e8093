// A thread's elements of a parameter: as many as 16 bytes of the narrowest operand hold, or one.
#pragma once
#include "../formulas/moments.h"
#include "sums.h"
#include "vector.h"

namespace pytl::cuda {

// What a launch's parameters have in common: the type of the weights, and how many elements a thread takes at a time.
template <class Stored_, int width_>
struct AnyForm {
  using Stored = Stored_;
  static constexpr int width = width_;
  static constexpr bool compensates = sizeof(Stored) == 2;
  static constexpr bool narrow = false;
};

// The usual: w0 of one dtype, no penalty, up to two states. Two blocks share a processor, as 64 registers do for a
// thread.
template <class Stored, class Start_, int width>
struct Form : AnyForm<Stored, width> {
  using Look = Form;
  using Real = float;
  using Start = Start_;
  static constexpr bool full = false;
  static constexpr int states = 2;
  static constexpr int blocks_a_processor = 2;
};

// Whatever there may be: w0 of any dtype, penalties, a third state.
template <class Stored, int width>
struct FullForm : AnyForm<Stored, width> {
  using Look = FullForm;
  using Real = RealOf<Stored>;
  using Start = Real;  // once it is loaded
  static constexpr bool full = true;
  static constexpr int states = 3;
  static constexpr int blocks_a_processor = 1;
};

// The same with moments in fewer bits: what a warp takes at a time is a block of them. A look does not see them.
template <class Stored>
struct NarrowForm : FullForm<Stored, kMomentBlock / kWarp> {
  using Look = FullForm<Stored, 16 / sizeof(Stored)>;
  static constexpr bool narrow = true;
};

// `count` elements' operands but for the states, as they are stored.
template <class Form, int count>
struct Elements {
  using Stored = typename Form::Stored;
  using Real = typename Form::Real;
  struct Nothing {};
  template <bool exists>
  using If = std::conditional_t<exists, Vector<Stored, count>, Nothing>;

  Vector<Stored, count> weight, gradient;
  Vector<typename Form::Start, count> start;
  If<Form::compensates> low;
  If<Form::full> penalty;

  template <Kept kept, class Work>
  __device__ static Elements load(const Work& work, int32_t i, bool with_weight) {
    Elements e = {};
    e.gradient = load_vector<Stored, count, kept>(work.gradient, i);
    if (with_weight) e.weight = load_vector<Stored, count, kept>(work.weight, i);
    if constexpr (Form::compensates)
      if (with_weight && work.compensation) e.low = load_vector<Stored, count, kept>(work.compensation, i);
    if constexpr (Form::full)
      if (work.penalty) e.penalty = load_vector<Stored, count, kept>(work.penalty, i);
    if (with_weight && work.start) {
      if constexpr (Form::full)
        e.start = load_widened<Real, count, kept>(work.start_dtype, work.start, i);
      else
        e.start = load_vector<typename Form::Start, count, kept>(work.start, i);
    }
    return e;
  }

  __device__ Real w(int j) const {
    Real w = widen<Real>(weight.of[j]);
    if constexpr (Form::compensates) w += widen<Real>(low.of[j]);
    return w;
  }
  __device__ Real g(int j) const { return widen<Real>(gradient.of[j]); }
  __device__ Real w0(int j) const { return widen<Real>(start.of[j]); }
  __device__ Real h(int j) const {
    if constexpr (Form::full) return widen<Real>(penalty.of[j]);
    return 0;
  }

  __device__ void set_w(int j, Real w) {
    weight.of[j] = Narrow<Stored>::from(w);
    if constexpr (Form::compensates) low.of[j] = Narrow<Stored>::from(w - widen<Real>(weight.of[j]));
  }

  // Conversions are cheaper than the registers that would keep their results.
  __device__ void compute_anew() { widen_anew(weight), widen_anew(gradient), widen_anew(start); }

  __device__ void set(int j, const Elements<Form, 1>& one) {
    weight.of[j] = one.weight.of[0], gradient.of[j] = one.gradient.of[0], start.of[j] = one.start.of[0];
    if constexpr (Form::compensates) low.of[j] = one.low.of[0];
    if constexpr (Form::full) penalty.of[j] = one.penalty.of[0];
  }

  template <class Work>
  __device__ void store(const Work& work, int32_t i) const {
    store_vector(work.weight, i, weight);
    if constexpr (Form::compensates)
      if (work.compensation) store_vector(work.compensation, i, low);
  }
};

}  // namespace pytl::cuda
