// Look once, step once, on the GPU. A parameter beyond kSmall elements is cut into pieces that blocks take in turn; who
// comes last adds up the pieces' sums, in their order. Smaller ones are a single warp's. All sums are taken in an order
// that depends on the lengths alone, without floating point atomics: the same bits in every run.
#pragma once
#include <type_traits>

#include "operand.h"
#include "tables.h"

namespace pytl::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline int warp() { return threadIdx.x / kWarp; }

// What a launch's parameters have in common: the types of the weights and of w0, and how many elements a thread takes
// at a time. Two blocks share a processor, if 64 registers do for a thread.
template <class Stored_, class Start_, int width_>
struct Form {
  using Stored = Stored_;
  using Start = Start_;
  using Real = float;
  static constexpr int width = width_;
  static constexpr bool full = false;
  static constexpr bool compensates = sizeof(Stored) == 2;
  static constexpr int states = 2;
  static constexpr int blocks_a_processor = 2;
};

// The same with whatever there may be: w0 of any dtype, penalties, a third state.
template <class Stored_, int width_>
struct FullForm {
  using Stored = Stored_;
  using Real = std::conditional_t<sizeof(Stored) == 8, double, float>;
  using Start = Real;  // once it is loaded
  static constexpr int width = width_;
  static constexpr bool full = true;
  static constexpr bool compensates = sizeof(Stored) == 2;
  static constexpr int states = 3;
  static constexpr int blocks_a_processor = 1;
};

__device__ inline double over_lanes(double x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// visit(member, is_used) for each Gram number; `numbers` of them are used: 1, 3 or 5.
template <class Visit>
__device__ void for_each_number(int numbers, Visit visit) {
  visit(&GramRow::gg, true);
  visit(&GramRow::gr, numbers > 1), visit(&GramRow::rr, numbers > 1);
  visit(&GramRow::gh, numbers > 3), visit(&GramRow::hh, numbers > 3);
}

// A warp's part of a piece: a run of a parameter's elements, which `of` threads take in turn.
struct Run {
  int32_t parameter;  // -1: there is nothing for this warp
  int32_t length;
  int64_t offset;
  int32_t of;

  // Where this thread's first vector begins, and its last; negative where it has none.
  template <int width>
  __device__ int32_t first() const {
    return static_cast<int32_t>(threadIdx.x) % of * width;
  }
  template <int width>
  __device__ int32_t last() const {
    const int32_t beyond = length - 1 - first<width>();
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
  DType start_dtype;
  bool wide;  // all operands begin at a multiple of 16 bytes
  Run run;
  Decision<FormulaOf<Options, Real>, Real> decision;
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

  template <bool last, class Work>
  __device__ static Elements load(const Work& work, int32_t i, bool with_weight) {
    Elements e = {};
    e.gradient = load_vector<Stored, count, last>(work.gradient, i);
    if (with_weight) e.weight = load_vector<Stored, count, last>(work.weight, i);
    if constexpr (Form::compensates)
      if (with_weight && work.compensation) e.low = load_vector<Stored, count, last>(work.compensation, i);
    if constexpr (Form::full)
      if (work.penalty) e.penalty = load_vector<Stored, count, last>(work.penalty, i);
    if (with_weight && work.start) {
      if constexpr (Form::full)
        e.start = load_widened<Real, count, last>(work.start_dtype, work.start, i);
      else
        e.start = load_vector<typename Form::Start, count, last>(work.start, i);
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

  template <class Work>
  __device__ void store(const Work& work, int32_t i) const {
    store_vector(work.weight, i, weight);
    if constexpr (Form::compensates)
      if (work.compensation) store_vector(work.compensation, i, low);
  }
};

// Products over the elements that a thread takes at a time, in Real; beyond, sums are in float64.
template <class Form>
struct Products {
  using Real = typename Form::Real;
  Real gg = 0, gr = 0, rr = 0, gh = 0, hh = 0;

  template <int count>
  __device__ void add(const Terms<Real>& t, const Elements<Form, count>& e) {
    if (!t.regularised) return add<false, false>(t, e);
    if (Form::full && t.penalised && t.decoupled) return add<true, true>(t, e);
    add<true, false>(t, e);
  }

  __device__ void add_to(GramRow& sums) const {
    sums.gg += gg, sums.gr += gr, sums.rr += rr;
    if (Form::full) sums.gh += gh, sums.hh += hh;
  }

 private:
  template <bool regularised, bool penalty_apart, int count>
  __device__ void add(const Terms<Real>& t, const Elements<Form, count>& e) {
#pragma unroll
    for (int j = 0; j < count; j++) {
      const Real g = t.task(e.g(j)), h = e.h(j);
      gg += g * g;
      if (!regularised) continue;
      const Real r = t.template regulariser<penalty_apart>(e.w(j), e.w0(j), h);
      gr += g * r, rr += r * r;
      if (penalty_apart) gh += g * h, hh += h * h;
    }
  }
};

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

template <class Form, class Options>
__device__ GramRow look_at(const Work<Form, Options>& work) {
  const auto& t = work.decision.terms;
  GramRow sums = {};
#pragma unroll 1
  for (int32_t first = work.run.template first<Form::width>(); first < work.run.length;
       first += work.run.of * Form::width) {
    Products<Form> products;
    for_each_part<Form>(work, first, [&](int32_t i, auto count) {
      products.add(t, Elements<Form, decltype(count)::value>::template load<false>(work, i, t.regularised));
    });
    products.add_to(sums);
  }
  return sums;
}

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

// Steps on `some` elements, those from `from` on, whose states begin at element i of the run.
template <bool regularised, bool decoupled, int some, class Form, int count, class Work>
__device__ void step_some(const Work& work, Elements<Form, count>& e, int from, int32_t i) {
  using Real = typename Form::Real;
  const auto& decision = work.decision;
  const auto& t = decision.terms;
  Vector<Real, some> s[Form::states] = {};
  auto& third = s[Form::states - 1];
#pragma unroll
  for (int k = 0; k < Form::states; k++)
    if (k < decision.states) s[k] = load_vector<Real, some, true>(work.states[k], i);
#pragma unroll
  for (int k = 0; k < some; k++) {
    const int j = from + k;
    const Real w = e.w(j), g = e.g(j), w0 = e.w0(j);
    constexpr bool regulariser_is_fed = regularised && (Form::full || !decoupled);
    const Real d = t.template fed<regulariser_is_fed, decoupled>(w, g, w0, e.h(j));
    const Real step = step_by<Form::full>(decision.formula, decision.kind, d, s[0].of[k], s[1].of[k], third.of[k]);
    e.set_w(j, w - (step + t.template beside<regularised, decoupled>(w, g, w0)));
  }
#pragma unroll
  for (int k = 0; k < Form::states; k++)
    if (k < decision.states) store_vector(work.states[k], i, s[k]);
}

// In parts whose states are 16 bytes each: few of them are in registers at a time.
template <class Form, int count, class Work>
__device__ void step_elements(const Work& work, Elements<Form, count>& e, int32_t i) {
  constexpr int some = count == 1 ? 1 : 16 / sizeof(typename Form::Real);
  const auto& t = work.decision.terms;
#pragma unroll
  for (int from = 0; from < count; from += some) {
    if (!t.regularised)
      step_some<false, false, some>(work, e, from, i + from);
    else if (t.decoupled)
      step_some<true, true, some>(work, e, from, i + from);
    else
      step_some<true, false, some>(work, e, from, i + from);
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
    auto elements = Elements<Form, many>::template load<true>(work, i, true);
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
    const int64_t stored = sizeof(typename Form::Stored), real = sizeof(typename Form::Real);
    place(work.weight, p.weight, stored), place(work.compensation, p.compensation, stored);
    place(work.gradient, p.gradient, stored), place(work.penalty, p.penalty, stored);
    for (int k = 0; k < 3; k++) place(work.states[k], p.state[k], real);
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

// One thread decides what the step on a parameter is, and counts it.
template <class Real, class Options>
__device__ void decide_as(const Tables<Options>& t, int32_t i, const WeightsRow& weights) {
  const Parameter p = t.parameter(i);
  const Options o = t.groups[p.group].now();
  const double step = *p.step + 1.0;
  Terms<Real> terms = t.template plain_terms<Real>(p);
  terms.take(weights);
  put(t.template decision<Real>(i),
      {terms, o.template formula<Real>(step, p.fresh), static_cast<int32_t>(o.kind()), o.states()});
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

struct WarpRows {
  GramRow of[2][kWarps];
};

// A warp's sums over a small parameter.
__device__ inline void put_row(GramRow* to, const GramRow& sums, int numbers) {
  for_each_number(numbers, [&](double GramRow::* number, bool is_used) {
    const double sum = is_used ? over_lanes(sums.*number) : 0;
    if (lane() == 0) put(&(to->*number), sum);
  });
}

// A warp adds up the sums of a parameter's pieces.
template <class Options>
__device__ void gather_row(const Tables<Options>& t, int32_t i, int numbers) {
  const int32_t first = t.first_piece[i], count = t.piece_count[i];
  for_each_number(numbers, [&](double GramRow::* number, bool is_used) {
    double sum = 0;
    for (int32_t k = lane(); is_used && k < count; k += kWarp) sum += get(&(t.sums[first + k].*number));
    sum = over_lanes(sum);
    if (lane() == 0) put(&(t.rows[i].*number), sum);
  });
}

// A block's sums over a piece of a parameter; true for the warp that comes last of that parameter's. Pieces in
// turn use the halves of the rows in turn, so that one barrier is enough: a half is written again only after the
// barrier of the other half.
template <class Options>
__device__ bool hand_in(const Tables<Options>& t, int32_t piece, const GramRow& sums, int numbers) {
  GramRow(&rows)[kWarps] = shared<WarpRows>().of[piece / gridDim.x % 2];
  for_each_number(numbers, [&](double GramRow::* number, bool is_used) {
    const double sum = is_used ? over_lanes(sums.*number) : 0;
    if (lane() == 0) rows[warp()].*number = sum;
  });
  __syncthreads();
  if (warp() != 0) return false;
  for_each_number(numbers, [&](double GramRow::* number, bool is_used) {
    const double sum = is_used ? over_lanes(lane() < kWarps ? rows[lane()].*number : 0) : 0;
    if (lane() == 0) put(&(t.sums[piece].*number), sum);
  });
  const int32_t i = t.pieces[piece].parameter;
  uint32_t arrived = 0;
  if (lane() == 0) arrived = arrive(&t.arrived[i]) + 1;
  __syncwarp();
  const bool is_last = __shfl_sync(kAllLanes, arrived, 0) == static_cast<uint32_t>(t.piece_count[i]);
  if (is_last && lane() == 0) t.arrived[i] = 0;
  return is_last;
}

// Brings a thread's sums over its part of a piece into the parameter's row; true for the warp that completes the row.
template <class Options>
__device__ bool put_sums(const Tables<Options>& t, int32_t piece, const Run& run, const GramRow& sums, int numbers) {
  if (run.of == kWarp) {
    put_row(&t.rows[run.parameter], sums, numbers);
  } else {
    if (!hand_in(t, piece, sums, numbers)) return false;
    gather_row(t, run.parameter, numbers);
  }
  return true;
}

// True for the warp that completes the parameter's row.
template <class Form, class Options>
__device__ bool look_at_piece(const Tables<Options>& t, int32_t piece) {
  const Run run = run_of(t, piece);
  if (run.parameter < 0) return false;
  const auto& work = work_to_look<Form>(t, run);
  return put_sums(t, piece, work.run, look_at(work), work.decision.terms.gram_numbers());
}

// Gram numbers of all parameters.
template <class Form, class Options>
__global__ void __launch_bounds__(kThreads, Form::blocks_a_processor)
    look(const __grid_constant__ Tables<Options> t, Range pieces) {
  if (t.is_overflow()) return;
  for (int32_t k = pieces.begin + blockIdx.x; k < pieces.end; k += gridDim.x) look_at_piece<Form>(t, k);
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

// A block's sum of one number a thread, for all of them.
__device__ inline double over_block(double x) {
  struct Sums {
    double of[kWarps];
  };
  double (&sums)[kWarps] = shared<Sums>().of;
  const double own = over_lanes(x);
  __syncthreads();
  if (lane() == 0) sums[warp()] = own;
  __syncthreads();
  double sum = 0;
  for (int k = 0; k < kWarps; k++) sum += sums[k];
  return sum;
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
    step_on<looking>(work);
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
    if (piece < pieces.end && look_at_piece<Form>(t, piece) && lane() == 0) {
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
      step_on<false>(work_to_step<Form>(t, run));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && arrive(t.left) + 1 == gridDim.x) *t.left = 0, publish(t.launches, launch());
}

}  // namespace pytl::cuda
