// Compiled once per instruction set, with PYTL_ISA as the namespace. Nothing here may come from the standard library's
// templates: an out-of-line copy with wide instructions could replace the one that other processors run.
#include "lanes.h"

namespace pytl::cpu::PYTL_ISA {
namespace {

template <class Real, class Stored>
void widen_tile(const Stored* __restrict from, int64_t n, Real* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] = pytl::widen<Real>(from[i]);
}

template <class Real>
void widen(DType dtype, const void* from, int64_t n, Real* to) {
  switch (dtype) {
    case DType::float64:
      return widen_tile(static_cast<const double*>(from), n, to);
    case DType::float32:
      return widen_tile(static_cast<const float*>(from), n, to);
    case DType::bfloat16:
      return widen_tile(static_cast<const bfloat16*>(from), n, to);
    case DType::float16:
      return widen_tile(static_cast<const float16*>(from), n, to);
  }
}

template <class Real, class Stored>
void narrow_tile(const Real* __restrict from, int64_t n, Stored* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] = Narrow<Stored>::from(static_cast<float>(from[i]));
}

// Weights of float32 and float64 are updated where they lie; only those of 16 bits are narrowed.
template <class Real>
void narrow(DType dtype, const Real* from, int64_t n, void* to) {
  if (dtype == DType::bfloat16) narrow_tile(from, n, static_cast<bfloat16*>(to));
  if (dtype == DType::float16) narrow_tile(from, n, static_cast<float16*>(to));
}

template <class Real, class Stored>
void widen_sum_tile(const Stored* __restrict high, const Stored* __restrict low, int64_t n, Real* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] = pytl::widen<Real>(high[i]) + pytl::widen<Real>(low[i]);
}

template <class Real>
void widen_sum(DType dtype, const void* high, const void* low, int64_t n, Real* to) {
  if (dtype == DType::bfloat16)
    widen_sum_tile(static_cast<const bfloat16*>(high), static_cast<const bfloat16*>(low), n, to);
  if (dtype == DType::float16)
    widen_sum_tile(static_cast<const float16*>(high), static_cast<const float16*>(low), n, to);
}

// In two loops: GCC vectorises each, but not both in one.
template <class Real, class Stored>
void narrow_sum_tile(const Real* __restrict from, int64_t n, Stored* __restrict high, Stored* __restrict low) {
  narrow_tile(from, n, high);
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    low[i] = Narrow<Stored>::from(static_cast<float>(from[i]) - pytl::widen<float>(high[i]));
}

template <class Real>
void narrow_sum(DType dtype, const Real* from, int64_t n, void* high, void* low) {
  if (dtype == DType::bfloat16) narrow_sum_tile(from, n, static_cast<bfloat16*>(high), static_cast<bfloat16*>(low));
  if (dtype == DType::float16) narrow_sum_tile(from, n, static_cast<float16*>(high), static_cast<float16*>(low));
}

template <class Code, class Real>
void load_codes(const uint8_t* __restrict codes, const float* scales, int64_t n, Real* __restrict to) {
  for (int64_t block = 0; block < n; block += kMomentBlock, scales++) {
    const int64_t end = n - block < kMomentBlock ? n : block + kMomentBlock;
    const float scale = *scales;
#pragma omp simd
    for (int64_t i = block; i < end; i++) to[i] = Code::moment(codes[i], scale);
  }
}

template <class Real>
void load_moments(const Moments& m, int64_t n, Real* to) {
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(m.stored);
  if (m.format == MomentFormat::bfloat16) return widen_tile(reinterpret_cast<const bfloat16*>(m.stored), n, to);
  if (m.squares) return load_codes<RootCode>(codes, m.scales, n, to);
  load_codes<SignedCode>(codes, m.scales, n, to);
}

template <class Code, class Real>
float largest(const Real* __restrict from, int64_t n) {
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; i++) {
    const uint32_t magnitude = magnitude_bits(Code::kept(static_cast<float>(from[i])));
    largest = magnitude > largest ? magnitude : largest;
  }
  return bit_cast<float>(largest);
}

template <class Code, class Real>
void store_codes(const Real* __restrict from, int64_t n, int64_t first, uint32_t seed, uint8_t* __restrict codes,
                 float* scales) {
  for (int64_t block = 0; block < n; block += kMomentBlock, scales++) {
    const int64_t end = n - block < kMomentBlock ? n : block + kMomentBlock;
    const float scale = *scales = largest<Code>(from + block, end - block);
#pragma omp simd
    for (int64_t i = block; i < end; i++)
      codes[i] = Code::code(Code::kept(static_cast<float>(from[i])), scale, random_bits(seed, first + i));
  }
}

template <class Real>
void store_moments(const Moments& m, const Real* __restrict from, int64_t n, int64_t first, uint32_t seed) {
  uint8_t* codes = reinterpret_cast<uint8_t*>(m.stored);
  if (m.format == MomentFormat::bfloat16) {
    bfloat16* __restrict to = reinterpret_cast<bfloat16*>(m.stored);
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      to[i] = rounded_at_random(static_cast<float>(from[i]), random_bits(seed, first + i));
    return;
  }
  if (m.squares) return store_codes<RootCode>(from, n, first, seed, codes, m.scales);
  store_codes<SignedCode>(from, n, first, seed, codes, m.scales);
}

// penalty_apart: the penalty has rows of its own (decoupled), else it is part of r.
template <class Real, bool regularised, bool penalty_apart>
void gram_tile(const Tile<Real>& tile, const Terms<Real>& terms, GramSums& sums) {
  const Real* __restrict w = tile.weight, * __restrict grad = tile.gradient, * __restrict start = tile.start, * __restrict penalty = tile.penalty;
  const Terms<Real> t = terms;
  const auto add = [&](LaneSums* of, int lane, int64_t i) __attribute__((always_inline)) {
    const double g = t.task(grad[i]);
    add_product<Real>(of[GramSums::gg].lanes[lane], g, g);
    if constexpr (regularised) {
      const double r = t.template regulariser<penalty_apart>(w[i], start[i], penalty[i]);
      add_product<Real>(of[GramSums::gr].lanes[lane], g, r);
      add_product<Real>(of[GramSums::rr].lanes[lane], r, r);
    }
    if constexpr (penalty_apart) {
      const double h = penalty[i];
      add_product<Real>(of[GramSums::gh].lanes[lane], g, h);
      add_product<Real>(of[GramSums::hh].lanes[lane], h, h);
    }
  };
  constexpr int used = !regularised ? 1 : !penalty_apart ? 3 : 5;
  const int64_t whole = tile.length - tile.length % kLanes;
  if (whole) {  // a copy, so that the lanes stay in registers
    LaneSums of[used];
    for (int k = 0; k < used; k++) of[k] = sums.of[k];
    for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; lane++) add(of, lane, i + lane);
    }
    for (int k = 0; k < used; k++) sums.of[k] = of[k];
  }
  for (int64_t i = whole; i < tile.length; i++) add(sums.of, static_cast<int>(i - whole), i);
}

template <class Real>
void gram(const Tile<Real>& tile, const Terms<Real>& terms, GramSums& sums) {
  if (sums.used == 1) return gram_tile<Real, false, false>(tile, terms, sums);
  if (sums.used == 3) return gram_tile<Real, true, false>(tile, terms, sums);
  return gram_tile<Real, true, true>(tile, terms, sums);
}

// One tile's update: direction, the optimizer's step, and what moves the weight beside it.
template <class Real, bool regularised, bool decoupled, class Step>
void update_tile(const Tile<Real>& tile, const Terms<Real>& terms, Step step) {
  Real* __restrict w = tile.weight;
  const Real* __restrict grad = tile.gradient, * __restrict start = tile.start, * __restrict penalty = tile.penalty;
  const Terms<Real> t = terms;
#pragma omp simd
  for (int64_t i = 0; i < tile.length; i++) {
    const Real d = t.template fed<regularised, decoupled>(w[i], grad[i], start[i], penalty[i]);
    w[i] -= step(d, i) + t.template beside<regularised, decoupled>(w[i], grad[i], start[i]);
  }
}

template <class Real, class Step>
void update(const Tile<Real>& tile, const Terms<Real>& terms, Step step) {
  if (!terms.regularised) return update_tile<Real, false, false>(tile, terms, step);
  if (!terms.decoupled) return update_tile<Real, true, false>(tile, terms, step);
  return update_tile<Real, true, true>(tile, terms, step);
}

template <Momentum kind, class Real>
void sgd_tile(const Tile<Real>& tile, const Terms<Real>& terms, const SGD<Real>& formula) {
  Real* __restrict buffer = kind == Momentum::none ? tile.weight : tile.state[0];
  update(tile, terms,
         [=](Real d, int64_t i) __attribute__((always_inline)) { return formula.template step<kind>(d, buffer[i]); });
}

template <class Real>
void sgd(const Tile<Real>& tile, const Terms<Real>& terms, const SGD<Real>& formula, Momentum kind) {
  if (kind == Momentum::none) return sgd_tile<Momentum::none>(tile, terms, formula);
  if (kind == Momentum::heavy_ball) return sgd_tile<Momentum::heavy_ball>(tile, terms, formula);
  return sgd_tile<Momentum::nesterov>(tile, terms, formula);
}

template <bool amsgrad, class Real>
void adamw_tile(const Tile<Real>& tile, const Terms<Real>& terms, const AdamW<Real>& formula) {
  Real* __restrict mean = tile.state[0], * __restrict square = tile.state[1];
  Real* __restrict largest = amsgrad ? tile.state[2] : nullptr;
  update(tile, terms, [=](Real d, int64_t i) __attribute__((always_inline)) {
    Real unused = 0;
    return formula.template step<amsgrad>(d, mean[i], square[i], amsgrad ? largest[i] : unused);
  });
}

template <class Real>
void adamw(const Tile<Real>& tile, const Terms<Real>& terms, const AdamW<Real>& formula, bool amsgrad) {
  if (amsgrad) return adamw_tile<true>(tile, terms, formula);
  return adamw_tile<false>(tile, terms, formula);
}

}  // namespace

extern const Loops<float> float_loops;
extern const Loops<double> double_loops;
const Loops<float> float_loops = {widen<float>,      narrow<float>,       widen_sum<float>,
                                  narrow_sum<float>, load_moments<float>, store_moments<float>,
                                  gram<float>,       sgd<float>,          adamw<float>};
const Loops<double> double_loops = {widen<double>,      narrow<double>,       widen_sum<double>,
                                    narrow_sum<double>, load_moments<double>, store_moments<double>,
                                    gram<double>,       sgd<double>,          adamw<double>};

}  // namespace pytl::cpu::PYTL_ISA
