// Compiled once per instruction set, as loops.cpp is, with PYTL_ISA as the namespace and under the same restrictions.
#include "feature_loops.h"

#include "../formulas/feature_distance.h"
#include "lanes.h"

namespace pytl::cpu::PYTL_ISA {
namespace {

// visit(a null pointer to the stored type); Real is float for all but float64.
template <class Real, class Visit>
PYTL_INLINE void with_stored(DType dtype, Visit visit) {
  if constexpr (sizeof(Real) == 8) {
    visit(static_cast<double*>(nullptr));
  } else {
    if (dtype == DType::float32) visit(static_cast<float*>(nullptr));
    if (dtype == DType::bfloat16) visit(static_cast<bfloat16*>(nullptr));
    if (dtype == DType::float16) visit(static_cast<float16*>(nullptr));
  }
}

template <class Real, class Stored, bool each>
void distance_run(const Stored* __restrict x, const Stored* __restrict source, const Real* __restrict weights,
                  int64_t n, LaneSums& sums) {
  const Real weight = each ? Real(1) : *weights;
  const auto add = [&](LaneSums& to, int lane, int64_t i) __attribute__((always_inline)) {
    const Real a = widen<Real>(x[i]), b = widen<Real>(source[i]);
    add_product<Real>(to.lanes[lane], FeatureDistance<Real>::weighted(a, b, each ? weights[i] : weight),
                      FeatureDistance<Real>::plain(a, b));
  };
  by_lanes(n, sums, add);
}

template <class Real>
void distance(DType dtype, const void* x, const void* source, Weights<Real> weights, int64_t n, LaneSums& sums) {
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    const auto *a = static_cast<const Stored*>(x), *b = static_cast<const Stored*>(source);
    if (weights.each) return distance_run<Real, Stored, true>(a, b, weights.of, n, sums);
    return distance_run<Real, Stored, false>(a, b, weights.of, n, sums);
  });
}

template <class Real, class Stored, bool each, bool has_task>
void gradient_run(const Stored* __restrict x, const Stored* __restrict source, const Real* __restrict weights,
                  const Stored* __restrict task, Real factor, int64_t n, Stored* __restrict to) {
  const Real weight = each ? Real(1) : *weights;
  const FeatureDistance<Real> formula = {factor};
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    to[i] = Narrow<Stored>::from(formula.gradient(widen<Real>(x[i]), widen<Real>(source[i]), each ? weights[i] : weight,
                                                  has_task ? widen<Real>(task[i]) : Real(0)));
}

template <class Real>
void distance_gradient(DType dtype, const void* x, const void* source, Weights<Real> weights, const void* task,
                       Real factor, int64_t n, void* to) {
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    const auto *a = static_cast<const Stored*>(x), *b = static_cast<const Stored*>(source);
    const auto* g = static_cast<const Stored*>(task);
    auto* out = static_cast<Stored*>(to);
    if (weights.each && g) return gradient_run<Real, Stored, true, true>(a, b, weights.of, g, factor, n, out);
    if (weights.each) return gradient_run<Real, Stored, true, false>(a, b, weights.of, g, factor, n, out);
    if (g) return gradient_run<Real, Stored, false, true>(a, b, weights.of, g, factor, n, out);
    return gradient_run<Real, Stored, false, false>(a, b, weights.of, g, factor, n, out);
  });
}

template <class Real>
void squares(DType dtype, const void* from, int64_t n, LaneSums& sums) {
  with_stored<Real>(dtype, [&](auto* stored) {
    const auto* __restrict a = static_cast<decltype(stored)>(const_cast<void*>(from));
    by_lanes(n, sums, [&](LaneSums& to, int lane, int64_t i) __attribute__((always_inline)) {
      const Real wide = widen<Real>(a[i]);
      add_product<Real>(to.lanes[lane], wide, wide);
    });
  });
}

template <class Real>
void add_squares(DType dtype, const void* from, int64_t n, double* __restrict to) {
  with_stored<Real>(dtype, [&](auto* stored) {
    const auto* __restrict a = static_cast<decltype(stored)>(const_cast<void*>(from));
#pragma omp simd
    for (int64_t i = 0; i < n; i++) add_product<Real>(to[i], widen<Real>(a[i]), widen<Real>(a[i]));
  });
}

template <class Real>
void scale(DType dtype, const void* from, Weights<Real> weights, int64_t n, void* to) {
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    const Stored* __restrict a = static_cast<const Stored*>(from);
    Stored* __restrict out = static_cast<Stored*>(to);
    const Real* __restrict w = weights.of;
    const Real one = weights.each ? Real(1) : *w;
    if (weights.each) {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) out[i] = Narrow<Stored>::from(w[i] * widen<Real>(a[i]));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) out[i] = Narrow<Stored>::from(one * widen<Real>(a[i]));
    }
  });
}

template <class Real, class Stored>
PYTL_INLINE Real largest_of(const Stored* __restrict from, int64_t n) {
  Real largest = -std::numeric_limits<Real>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; i++) {
    const Real x = widen<Real>(from[i]);
    largest = x > largest ? x : largest;
  }
  return largest;
}

template <class Real>
Distillation<Real> largest(DType dtype, const void* s, const void* t, int64_t n, Real inverse_temperature) {
  Distillation<Real> row = {inverse_temperature, 0, 0};
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    row.largest_s = largest_of<Real>(static_cast<const Stored*>(s), n);
    row.largest_t = largest_of<Real>(static_cast<const Stored*>(t), n);
  });
  return row;
}

template <class Real, class Stored>
void exponentials_of(const Stored* __restrict s, const Stored* __restrict t, int64_t n, const Distillation<Real>& row,
                     Real* __restrict e_s, Real* __restrict e_t) {
  const Distillation<Real> formula = row;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    e_s[i] = formula.student(widen<Real>(s[i]));
    e_t[i] = formula.source(widen<Real>(t[i]));
  }
}

// Of a block in the L1 cache, in lanes of Real: n / kLanes rounded additions each, then in double.
template <class Real, class Stored>
void add_sums(const Stored* __restrict s, const Stored* __restrict t, int64_t n, const Real* __restrict e_s,
              const Real* __restrict e_t, RowSums& sums) {
  Real student[kLanes] = {}, source[kLanes] = {}, cross[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; lane++) {
      const int64_t k = i + lane;
      student[lane] += e_s[k], source[lane] += e_t[k];
      cross[lane] += e_t[k] * Distillation<Real>::gap(widen<Real>(s[k]), widen<Real>(t[k]), e_t[k]);
    }
  }
  for (int lane = 0; lane < kLanes; lane++)
    sums.student += student[lane], sums.source += source[lane], sums.cross += cross[lane];
  for (int64_t k = whole; k < n; k++) {
    sums.student += e_s[k], sums.source += e_t[k];
    sums.cross += e_t[k] * Distillation<Real>::gap(widen<Real>(s[k]), widen<Real>(t[k]), e_t[k]);
  }
}

template <class Real>
RowSums exponentials(DType dtype, const void* s, const void* t, int64_t n, const Distillation<Real>& row, Real* e_s,
                     Real* e_t) {
  constexpr int64_t kBlock = 1024;
  RowSums sums = {0, 0, 0};
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    const auto *a = static_cast<const Stored*>(s), *b = static_cast<const Stored*>(t);
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t length = n - i < kBlock ? n - i : kBlock;
      exponentials_of(a + i, b + i, length, row, e_s + i, e_t + i);
      add_sums(a + i, b + i, length, e_s + i, e_t + i, sums);
    }
  });
  return sums;
}

template <class Real>
void distillation_gradient(DType dtype, const Real* __restrict e_s, const Real* __restrict e_t, Real factor_s,
                           Real factor_t, int64_t n, void* to) {
  with_stored<Real>(dtype, [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    Stored* __restrict out = static_cast<Stored*>(to);
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      out[i] = Narrow<Stored>::from(Distillation<Real>::gradient(e_s[i], e_t[i], factor_s, factor_t));
  });
}

template <class Real>
constexpr FeatureLoops<Real> all() {
  return {distance<Real>, distance_gradient<Real>, squares<Real>,      add_squares<Real>,
          scale<Real>,    largest<Real>,           exponentials<Real>, distillation_gradient<Real>};
}

}  // namespace

extern const FeatureLoops<float> float_feature_loops;
extern const FeatureLoops<double> double_feature_loops;
const FeatureLoops<float> float_feature_loops = all<float>();
const FeatureLoops<double> double_feature_loops = all<double>();

}  // namespace pytl::cpu::PYTL_ISA
