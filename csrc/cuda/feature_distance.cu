#include "../formulas/feature_distance.h"

#include "features.h"
#include "occupancy.h"
#include "stored.h"
#include "sums.h"
#include "sweep.h"
#include "total.h"
#include "weights.h"

namespace pytl::cuda {
namespace {

template <class Stored_>
struct Pair {
  using Stored = Stored_;
  using Real = RealOf<Stored>;
  static constexpr int width = 16 / sizeof(Stored);

  const char *x, *source;
  Weights<Real> weights;
  Parts parts;

  explicit Pair(const FeaturePair& of)
      : x(of.x),
        source(of.source),
        weights(weights_of(reinterpret_cast<const Real*>(of.weights), of.channels, of.inner)),
        parts(of.length(), 2 * kThreads * width) {}
};

template <class Pair, Weighting weighting>
__global__ void __launch_bounds__(kThreads, 2) add_up_parts(const __grid_constant__ Pair pair, double* sums) {
  using Real = typename Pair::Real;
  constexpr int many = 2;  // vectors of each operand that a thread has in flight: 64 KB a processor
  const bool wide = are_aligned(pair.x, pair.source);
  for (int64_t part = blockIdx.x; part < pair.parts.count; part += gridDim.x) {
    double sum = 0;
    const auto visit = [&](const auto& batch) {
      using Batch = std::decay_t<decltype(batch)>;
      constexpr int count = Batch::count, width = Batch::width;
      Vector<typename Pair::Stored, width> x[count], source[count];
#pragma unroll
      for (int k = 0; k < count; k++) {
        batch.template load<Kept::in_l2>(pair.x, k, x[k]);
        batch.template load<Kept::in_l2>(pair.source, k, source[k]);
      }
#pragma unroll
      for (int k = 0; k < count; k++) {
        const auto w = weights_at<weighting, width>(pair.weights, batch.at(k));
        Real terms = 0;
#pragma unroll
        for (int j = 0; j < width; j++) {
          const Real a = widen<Real>(x[k].of[j]), b = widen<Real>(source[k].of[j]);
          if (batch.has(k, j))
            terms += FeatureDistance<Real>::weighted(a, b, w.of[j]) * FeatureDistance<Real>::plain(a, b);
        }
        sum += terms;
      }
    };
    for_each_batch_of_block<Pair::width, many, Pair::width>(pair.parts.begin(part), pair.parts.end(part), wide, visit);
    sum = over_block(sum);
    if (threadIdx.x == 0) sums[part] = sum;
  }
}

// task may be null
template <class Pair, Weighting weighting>
__global__ void __launch_bounds__(kThreads, 2)
    write_gradient(const __grid_constant__ Pair pair, const char* task, const double* factor, char* to) {
  using Real = typename Pair::Real;
  constexpr int many = weighting < Weighting::two ? 2 : 1;  // a third of the traffic is writes
  const bool wide = are_aligned(pair.x, pair.source, task, to);
  const FeatureDistance<Real> formula = {static_cast<Real>(*factor)};
  const auto visit = [&](const auto& batch) {
    using Batch = std::decay_t<decltype(batch)>;
    constexpr int count = Batch::count, width = Batch::width;
    Vector<typename Pair::Stored, width> x[count], source[count], given[count] = {};
#pragma unroll
    for (int k = 0; k < count; k++) {
      batch.template load<Kept::nowhere>(pair.x, k, x[k]);
      batch.template load<Kept::nowhere>(pair.source, k, source[k]);
      if (task) batch.template load<Kept::nowhere>(task, k, given[k]);
    }
#pragma unroll
    for (int k = 0; k < count; k++) {
      const auto w = weights_at<weighting, width>(pair.weights, batch.at(k));
#pragma unroll
      for (int j = 0; j < width; j++) {
        const Real a = widen<Real>(x[k].of[j]), b = widen<Real>(source[k].of[j]), g = widen<Real>(given[k].of[j]);
        x[k].of[j] = Narrow<typename Pair::Stored>::from(formula.gradient(a, b, w.of[j], g));
      }
      batch.store(to, k, x[k]);
    }
  };
  for (int64_t part = blockIdx.x; part < pair.parts.count; part += gridDim.x)
    for_each_batch_of_block<Pair::width, many, 1>(pair.parts.begin(part), pair.parts.end(part), wide, visit);
}

// visit(pair, weighting as a type)
template <class Visit>
void with_pair(const FeaturePair& of, Visit visit) {
  with_stored(of.dtype, [&](auto stored) {
    const Pair<decltype(stored)> pair(of);
    with_weighting(weighting_of<pair.width>(pair.weights), [&](auto weighting) { visit(pair, weighting); });
  });
}

}  // namespace

int64_t feature_distance_scratch(const FeaturePair& of) {
  int64_t bytes = 0;
  with_stored(of.dtype, [&](auto stored) { bytes = Pair<decltype(stored)>(of).parts.count * sizeof(double); });
  return bytes;
}

void feature_distance(const FeaturePair& of, double* value, const Site& site) {
  const DeviceGuard guard(site.device);
  const auto stream = static_cast<cudaStream_t>(site.stream);
  double* sums = reinterpret_cast<double*>(site.scratch);
  with_pair(of, [&](const auto& pair, auto weighting) {
    const auto kernel = &add_up_parts<std::decay_t<decltype(pair)>, weighting.value>;
    launch(kernel, blocks_for(kernel, pair.parts.count, site.device), stream, pair, sums);
    add_up(sums, pair.parts.count, 0.5, value, stream);
  });
}

void feature_distance_gradient(const FeaturePair& of, const char* task, const double* factor, char* to,
                               const Site& site) {
  if (of.length() == 0) return;
  const DeviceGuard guard(site.device);
  with_pair(of, [&](const auto& pair, auto weighting) {
    const auto kernel = &write_gradient<std::decay_t<decltype(pair)>, weighting.value>;
    launch(kernel, blocks_for(kernel, pair.parts.count, site.device), static_cast<cudaStream_t>(site.stream), pair,
           task, factor, to);
  });
}

}  // namespace pytl::cuda
