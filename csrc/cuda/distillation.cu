// One read of both rows of logits from memory: what they add up to is relative to the largest so far, and the gradient
// finds them in the caches. Short rows are some lanes' of a warp; longer ones a block's, or several blocks', which wait
// for one another's sums.
#include "../formulas/distillation.h"

#include <algorithm>
#include <limits>

#include "features.h"
#include "occupancy.h"
#include "stored.h"
#include "sums.h"
#include "sweep.h"
#include "total.h"

namespace pytl::cuda {
namespace {

constexpr int kMany = 2;             // vectors of each operand that a thread has in flight: 64 KB a processor
constexpr int64_t kShort = 1024;     // columns: up to here a row is a warp's
constexpr int64_t kPart = 32 << 10;  // bytes of a row for a block: two blocks' of both operands lie in an L1 cache
constexpr int kMostParts = kWarp;    // of a row: each lane has the sums of one
constexpr int kMostBlocks = 1024;    // that wait for one another

// ---- what a row adds up to ----

// Exponentials relative to the largest logits among those added.
template <class Real>
struct RowSums {
  static constexpr Real lowest = -std::numeric_limits<Real>::infinity();
  Real largest_s, largest_t;
  double s, t, cross;

  __device__ static RowSums none() { return {lowest, lowest, 0, 0, 0}; }

  // Relative to these where they are larger. What then vanishes leaves nothing, not even of a distance that is
  // infinite.
  __device__ void raise(Real to_s, Real to_t, Real inverse_temperature) {
    if (to_s > largest_s) s *= exponential((largest_s - to_s) * inverse_temperature), largest_s = to_s;
    if (to_t > largest_t) {
      const double factor = exponential((largest_t - to_t) * inverse_temperature);
      t *= factor, cross = factor > 0 ? cross * factor : 0, largest_t = to_t;
    }
  }

  // A vector of both logits.
  template <class Stored, int width>
  __device__ void add(const Vector<Stored, width>& a, const Vector<Stored, width>& b, Real inverse_temperature) {
    Real top_s = largest_s, top_t = largest_t;
#pragma unroll
    for (int j = 0; j < width; j++)
      top_s = std::fmax(widen<Real>(a.of[j]), top_s), top_t = std::fmax(widen<Real>(b.of[j]), top_t);
    raise(top_s, top_t, inverse_temperature);
    const Distillation<Real> formula = {inverse_temperature, top_s == lowest ? 0 : top_s, top_t == lowest ? 0 : top_t};
    Real sum_s = 0, sum_t = 0, sum_cross = 0;
#pragma unroll
    for (int j = 0; j < width; j++) {
      const Real x = widen<Real>(a.of[j]), y = widen<Real>(b.of[j]);
      const Real e_s = formula.student(x), e_t = formula.source(y);
      sum_s += e_s, sum_t += e_t, sum_cross += e_t * formula.gap(x, y, e_t);
    }
    s += sum_s, t += sum_t, cross += sum_cross;
  }

  // Of each group of lanes, for all in it.
  __device__ void over_lanes(int group, Real inverse_temperature) {
    Real top_s = largest_s, top_t = largest_t;
    for (int lanes = group / 2; lanes; lanes /= 2) {
      const Real other_s = __shfl_xor_sync(kAllLanes, top_s, lanes), other_t = __shfl_xor_sync(kAllLanes, top_t, lanes);
      top_s = std::fmax(other_s, top_s), top_t = std::fmax(other_t, top_t);
    }
    raise(top_s, top_t, inverse_temperature);
    s = cuda::over_lanes(s, group), t = cuda::over_lanes(t, group), cross = cuda::over_lanes(cross, group);
  }
};

// The rows of both logits, and what a thread does with its part of one.
template <class Stored_, int width_>
struct Rows {
  using Stored = Stored_;
  using Real = RealOf<Stored>;
  static constexpr int width = width_, blocks_a_processor = sizeof(Stored) == 8 ? 1 : 2;

  const char *s, *t;
  char* to;  // null: no gradient is asked for
  int64_t count, columns;
  Real inverse_temperature;
  double share;  // of a row in the gradient: temperature / rows

  // Of `threads` that have elements [begin, end) of a row.
  struct Part {
    int64_t row, begin, end;
    int threads;
  };

  // visit(batch, k, its vector k of s, and of t)
  template <int many, int single, class Visit>
  __device__ void for_each_pair(const Part& part, Visit visit) const {
    const int64_t byte = part.row * columns * static_cast<int64_t>(sizeof(Stored));
    const int64_t first = part.begin + static_cast<int>(threadIdx.x) % part.threads * width;
    const auto both = [&](const auto& batch) {
      using Batch = std::decay_t<decltype(batch)>;
      Vector<Stored, Batch::width> a[Batch::count], b[Batch::count];
#pragma unroll
      for (int k = 0; k < Batch::count; k++)
        batch.template load<Kept::in_l1>(s + byte, k, a[k]), batch.template load<Kept::in_l1>(t + byte, k, b[k]);
#pragma unroll
      for (int k = 0; k < Batch::count; k++)
        if (batch.any(k)) visit(batch, k, a[k], b[k]);
    };
    const bool wide = width == 1 || are_aligned(s, t, to);
    for_each_batch<width, many, single>(first, part.threads * width, part.end, wide, both);
  }
  __device__ RowSums<Real> look(const Part& part) const {
    RowSums<Real> sums = RowSums<Real>::none();
    for_each_pair<kMany, width>(
        part, [&](const auto&, int, const auto& a, const auto& b) { sums.add(a, b, inverse_temperature); });
    return sums;
  }
  __device__ void write_gradient(const Part& part, const RowSums<Real>& sums) const {
    const Distillation<Real> formula = {inverse_temperature, sums.largest_s, sums.largest_t};
    const Real factor_s = static_cast<Real>(share / sums.s), factor_t = static_cast<Real>(share / sums.t);
    for_each_pair<kMany, 1>(part, [&](const auto& batch, int k, const auto& a, const auto& b) {
      constexpr int width = std::decay_t<decltype(batch)>::width;
      Vector<Stored, width> gradient;
#pragma unroll
      for (int j = 0; j < width; j++) {
        const Real e_s = formula.student(widen<Real>(a.of[j])), e_t = formula.source(widen<Real>(b.of[j]));
        gradient.of[j] = Narrow<Stored>::from(formula.gradient(e_s, e_t, factor_s, factor_t));
      }
      batch.store(to + part.row * columns * static_cast<int64_t>(sizeof(Stored)), k, gradient);
    });
  }
  __device__ double value(const RowSums<Real>& sums) const {
    const Distillation<Real> formula = {inverse_temperature, sums.largest_s, sums.largest_t};
    return formula.value(sums.s, sums.t, sums.cross);
  }
};

// Some lanes of a warp have a row; a block has a part of the rows.
template <class Rows>
__global__ void __launch_bounds__(kThreads, Rows::blocks_a_processor)
    short_rows(const __grid_constant__ Rows of, const __grid_constant__ Parts parts, int lanes, double* values) {
  struct Values {
    double of[kThreads];
  };
  double& value = shared<Values>().of[threadIdx.x];  // there are no registers for it
  const int team = static_cast<int>(threadIdx.x) / lanes;
  for (int64_t part = blockIdx.x; part < parts.count; part += gridDim.x) {
    value = 0;
    for (int64_t first = parts.begin(part); first < parts.end(part); first += kThreads / lanes) {
      const int64_t row = first + team;
      const bool exists = row < parts.end(part);
      const typename Rows::Part own = {row, 0, exists ? of.columns : 0, lanes};
      auto sums = of.look(own);
      sums.over_lanes(lanes, of.inverse_temperature);
      if (!exists) continue;
      if (threadIdx.x % lanes == 0) value += of.value(sums);
      if (of.to) of.write_gradient(own, sums);
    }
    const double sum = over_block(value);
    if (threadIdx.x == 0) values[part] = sum;
  }
}

// Of each block of teams that share a row: its sums of this row or the one before, and how often those of its team have
// left theirs.
template <class Real>
struct Meetings {
  RowSums<Real> sums[2][kMostBlocks];
  uint32_t arrived[kMostBlocks];
};

template <class Real>
__global__ void __launch_bounds__(kThreads) clear(Meetings<Real>* meetings) {
  for (int i = threadIdx.x; i < kMostBlocks; i += kThreads) meetings->arrived[i] = 0;
}

// Rows in turn use the halves in turn, so that one barrier is enough: a half is written again only after the barrier of
// the other half.
template <class Real>
__device__ RowSums<Real> over_block(RowSums<Real> sums, uint32_t round, Real inverse_temperature) {
  struct Warps {
    RowSums<Real> of[2][kWarps];
  };
  RowSums<Real>(&warps)[kWarps] = shared<Warps>().of[round % 2];
  sums.over_lanes(kWarp, inverse_temperature);
  if (lane() == 0) warps[warp()] = sums;
  __syncthreads();
  sums = lane() < kWarps ? warps[lane()] : RowSums<Real>::none();
  sums.over_lanes(kWarp, inverse_temperature);
  return sums;
}

// Over the blocks that share a row. The halves serve as above: a block is never two rows ahead of another.
template <class Real>
__device__ RowSums<Real> over_team(Meetings<Real>& meetings, RowSums<Real> sums, int parts, uint32_t round,
                                   Real inverse_temperature) {
  const int own = blockIdx.x, first = own - own % parts;
  RowSums<Real>* const all = meetings.sums[round % 2];
  if (threadIdx.x == 0) {
    put(&all[own], sums);
    arrive(&meetings.arrived[first]);
    while (observe(&meetings.arrived[first]) < (round + 1) * parts) relax();
  }
  __syncthreads();
  sums = lane() < parts ? get(&all[first + lane()]) : RowSums<Real>::none();
  sums.over_lanes(kWarp, inverse_temperature);
  return sums;
}

// A team of blocks, one for each part of the columns, has a row at a time.
template <class Rows>
__global__ void __launch_bounds__(kThreads, Rows::blocks_a_processor)
    long_rows(const __grid_constant__ Rows of, const __grid_constant__ Parts parts,
              Meetings<typename Rows::Real>* meetings, double* values) {
  const int count = static_cast<int>(parts.count), part = static_cast<int>(blockIdx.x) % count;
  const auto inverse_temperature = of.inverse_temperature;
  uint32_t round = 0;
  for (int64_t row = blockIdx.x / count; row < of.count; row += gridDim.x / count, round++) {
    const typename Rows::Part own = {row, parts.begin(part), parts.end(part), kThreads};
    auto sums = over_block(of.look(own), round, inverse_temperature);
    if (count > 1) sums = over_team(*meetings, sums, count, round, inverse_temperature);
    if (part == 0 && threadIdx.x == 0) values[row] = of.value(sums);
    if (of.to) of.write_gradient(own, sums);
  }
}

// ---- launches ----

template <class Stored, int width>
Rows<Stored, width> rows_of(const Logits& of, char* to) {
  const auto inverse_temperature = static_cast<RealOf<Stored>>(1 / of.temperature);
  return {of.s, of.t, to, of.rows, of.columns, inverse_temperature, of.temperature / static_cast<double>(of.rows)};
}

// visit(rows) of vectors, or of single elements where the rows are not of whole vectors.
template <class Visit>
void with_rows(const Logits& of, char* to, Visit visit) {
  with_stored(of.dtype, [&](auto stored) {
    constexpr int width = 16 / sizeof stored;
    if (of.columns % width == 0) return visit(rows_of<decltype(stored), width>(of, to));
    visit(rows_of<decltype(stored), 1>(of, to));
  });
}

template <class Rows>
int lanes_of(const Rows& rows) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 * rows.width < rows.columns) lanes *= 2;
  return lanes;
}

template <class Rows>
Parts parts_of_short(const Rows& rows) {
  return Parts(rows.count, kThreads / lanes_of(rows));
}

template <class Rows>
void launch_short(const Rows& rows, double* value, const Site& site) {
  const auto stream = static_cast<cudaStream_t>(site.stream);
  const Parts parts = parts_of_short(rows);
  double* const values = reinterpret_cast<double*>(site.scratch);
  launch(&short_rows<Rows>, blocks_for(&short_rows<Rows>, parts.count, site.device), stream, rows, parts,
         lanes_of(rows), values);
  add_up(values, parts.count, 1.0 / static_cast<double>(rows.count), value, stream);
}

template <class Rows>
void launch_long(const Rows& rows, double* value, const Site& site) {
  const auto stream = static_cast<cudaStream_t>(site.stream);
  const int64_t bytes = rows.columns * static_cast<int64_t>(sizeof(typename Rows::Stored));
  const int at_once = blocks_for(&long_rows<Rows>, kMostBlocks, site.device);
  const int most = can_launch_together() ? std::min(kMostParts, at_once) : 1;
  const Parts parts(rows.columns, rows.width, std::min<int64_t>(most, (bytes - 1) / kPart + 1));
  const int count = static_cast<int>(parts.count);
  const int blocks = static_cast<int>(std::min<int64_t>(rows.count, at_once / count)) * count;
  auto* const meetings = reinterpret_cast<Meetings<typename Rows::Real>*>(site.scratch);
  double* const values = reinterpret_cast<double*>(meetings + 1);
  if (count == 1) {
    launch(&long_rows<Rows>, blocks, stream, rows, parts, meetings, values);
  } else {
    launch(&clear<typename Rows::Real>, 1, stream, meetings);
    launch_together(&long_rows<Rows>, blocks, stream, rows, parts, meetings, values);
  }
  add_up(values, rows.count, 1.0 / static_cast<double>(rows.count), value, stream);
}

}  // namespace

int64_t distillation_scratch(const Logits& of) {
  int64_t bytes = 0;
  with_rows(of, nullptr, [&](const auto& rows) {
    using Real = typename std::decay_t<decltype(rows)>::Real;
    bytes = of.columns <= kShort ? parts_of_short(rows).count * sizeof(double)
                                 : sizeof(Meetings<Real>) + of.rows * sizeof(double);
  });
  return bytes;
}

void distillation(const Logits& of, double* value, char* to, const Site& site) {
  const DeviceGuard guard(site.device);
  if (of.rows * of.columns == 0) return add_up(nullptr, 0, 1, value, static_cast<cudaStream_t>(site.stream));
  with_rows(of, to, [&](const auto& rows) {
    of.columns <= kShort ? launch_short(rows, value, site) : launch_long(rows, value, site);
  });
}

}  // namespace pytl::cuda
