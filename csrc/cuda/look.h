// Gram numbers: a thread's products and sums, a warp's, a block's, and those of all pieces of a parameter. All are
// taken in an order that depends on the lengths alone, without floating point atomics: the same bits in every run.
#pragma once
#include "work.h"

namespace pytl::cuda {

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

template <class Form, class Options>
__device__ GramRow look_at(const Work<Form, Options>& work) {
  const auto& t = work.decision.terms;
  GramRow sums = {};
#pragma unroll 1
  for (int32_t first = work.run.template first<Form::width>(); first < work.run.length;
       first += work.run.of * Form::width) {
    Products<Form> products;
    for_each_part<Form>(work, first, [&](int32_t i, auto count) {
      products.add(t, Elements<Form, decltype(count)::value>::template load<Kept::in_l2>(work, i, t.regularised));
    });
    products.add_to(sums);
  }
  return sums;
}

// visit(member, is_used) for each Gram number; `numbers` of them are used: 1, 3 or 5.
template <class Visit>
__device__ void for_each_number(int numbers, Visit visit) {
  visit(&GramRow::gg, true);
  visit(&GramRow::gr, numbers > 1), visit(&GramRow::rr, numbers > 1);
  visit(&GramRow::gh, numbers > 3), visit(&GramRow::hh, numbers > 3);
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

}  // namespace pytl::cuda
