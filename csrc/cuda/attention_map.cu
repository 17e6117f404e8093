// Squares are added up to several partial energies of each position, in as many blocks as keep the device busy; a
// second launch adds those up and normalises.
#include "../formulas/attention_map.h"

#include <algorithm>
#include <numeric>

#include "features.h"
#include "occupancy.h"
#include "stored.h"
#include "sums.h"
#include "sweep.h"
#include "weights.h"

namespace pytl::cuda {
namespace {

constexpr int kMany = 4;  // vectors that a thread has in flight: 64 KB a processor
// Channels are cut until there are so many blocks: 2048 leave 264 that run at once 97% of their time with work.
constexpr int64_t kWorthBlocks = 4 * kThreads;

// Whether channels lie side by side: those of a single position do so in either order.
bool are_beside(const Activations& of) { return of.channels_last || of.positions == 1; }

// Activations whose channels lie side by side: some lanes of a warp take a part of the channels of one position.
struct Tokens {
  const char* a;
  Parts parts;  // of the channels
  int lanes;
  int64_t tasks;
  Divisor part_count, positions;

  Tokens(const Activations& of, int width) : Tokens(of, width, lanes_for(of.channels / width)) {}
  Tokens(const Activations& of, int width, int lanes)
      : a(of.a),
        parts(of.channels, kMany * lanes * width,
              std::max(kWorthBlocks * kThreads / lanes / std::max(of.samples * of.positions, int64_t{1}), int64_t{1})),
        lanes(lanes),
        tasks(of.samples * of.positions * parts.count),
        part_count(parts.count),
        positions(of.positions) {}

  static int lanes_for(int64_t vectors) {
    int lanes = 1;
    while (lanes < kWarp && lanes * kMany < vectors) lanes *= 2;
    return lanes;
  }
  static bool fits(const Activations& of, int width) { return of.channels % width == 0; }
  int64_t sums() const { return parts.count; }
  int64_t blocks() const { return (tasks * lanes + kThreads - 1) / kThreads; }
};

template <class Stored, int width>
__global__ void __launch_bounds__(kThreads, 2) add_up(const __grid_constant__ Tokens of, double* energies) {
  using Real = RealOf<Stored>;
  const bool wide = width == 1 || are_aligned(of.a);
  const int teams = kThreads / of.lanes, member = static_cast<int>(threadIdx.x) % of.lanes;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < of.tasks; first += int64_t{gridDim.x} * teams) {
    const int64_t task = first + static_cast<int>(threadIdx.x) / of.lanes;
    const int64_t token = of.part_count.quotient(task), part = of.part_count.remainder(task);
    const char* const a = of.a + token * of.parts.length * static_cast<int64_t>(sizeof(Stored));
    double sum = 0;
    const auto visit = [&](const auto& batch) {
      constexpr int count = std::decay_t<decltype(batch)>::count;
      Vector<Stored, width> v[count];
#pragma unroll
      for (int k = 0; k < count; k++) batch.template load<Kept::in_l2>(a, k, v[k]);
#pragma unroll
      for (int k = 0; k < count; k++) {
        Real squares = 0;
#pragma unroll
        for (int j = 0; j < width; j++) squares += widen<Real>(v[k].of[j]) * widen<Real>(v[k].of[j]);
        sum += squares;
      }
    };
    if (task < of.tasks)
      for_each_batch<width, kMany, width>(of.parts.begin(part) + member * width, of.lanes * width, of.parts.end(part),
                                          wide, visit);
    sum = over_lanes(sum, of.lanes);
    if (member > 0 || task >= of.tasks) continue;
    const int64_t sample = of.positions.quotient(token), position = of.positions.remainder(token);
    energies[(sample * of.parts.count + part) * of.positions.divisor() + position] = sum;
  }
}

// Activations whose positions lie side by side. So many channels make a row that it consists of whole vectors: 4 of
// 7 x 7 float32. A tile of vectors of a row is `groups` threads', each with every so-manieth row; `side` such tasks
// are a block's.
struct Maps {
  const char* a;
  int64_t row;  // elements
  int tile, groups, side;
  Parts parts;  // of the rows
  int64_t sum;  // elements of a partial sum: a row, or, where a block has the whole row, the positions
  int64_t positions, tasks;
  Divisor tiles, part_count;

  Maps(const Activations& of, int width)
      : a(of.a), row(folded(of, width) * of.positions), parts(0, 1), tiles(1), part_count(1) {
    const int64_t rows = of.channels / folded(of, width), vectors = row / width;
    const int64_t tile_count = (vectors - 1) / std::min(2 * kWarp, kThreads) + 1;
    tile = static_cast<int>((vectors - 1) / tile_count + 1);
    groups = std::min(kWarp, kThreads / tile), side = kThreads / (tile * groups);
    const int64_t together = of.samples * tile_count;
    parts = Parts(rows, groups * kMany, std::max(kWorthBlocks * side / together, int64_t{1}));
    sum = tile_count == 1 ? of.positions : row, positions = of.positions;
    tasks = together * parts.count, tiles = Divisor(tile_count), part_count = Divisor(parts.count);
  }
  static int64_t folded(const Activations& of, int width) { return width / std::gcd(of.positions, int64_t{width}); }
  static bool fits(const Activations& of, int width) { return of.channels % folded(of, width) == 0; }
  int64_t sums() const { return parts.count * (sum / positions); }
  int64_t blocks() const { return (tasks + side - 1) / side; }

  struct Task {
    int64_t sample, part, tile;
  };
  __device__ Task task(int64_t k) const {
    const int64_t whole = tiles.quotient(k);
    return {part_count.quotient(whole), part_count.remainder(whole), tiles.remainder(k)};
  }
};

// From the block's threads' sums in shared memory to those of each position.
template <int width>
__device__ void write_sums(const Maps& of, int64_t first, const double* sums, double* energies) {
  const int span = of.tile * width, all = of.groups * span;  // elements of a task, and what its threads have of them
  const int reach = of.sum < span ? static_cast<int>(of.sum) : span;
  for (int i = threadIdx.x; i < of.side * reach; i += kThreads) {
    const int own = i / reach, within = i % reach;
    const Maps::Task task = of.task(first + own);
    const int64_t to = task.tile * span + within;
    if (first + own >= of.tasks || to >= of.sum) continue;
    double energy = 0;
    for (int k = within; k < all; k += reach) energy += sums[own * all + k];
    energies[(task.sample * of.parts.count + task.part) * of.sum + to] = energy;
  }
}

template <class Stored, int width>
__global__ void __launch_bounds__(kThreads, 2) add_up(const __grid_constant__ Maps of, double* energies) {
  using Real = RealOf<Stored>;
  struct Sums {
    double of[kThreads * width];
  };
  double* const sums = shared<Sums>().of;
  const bool wide = width == 1 || are_aligned(of.a);
  const int thread = threadIdx.x, column = thread % of.tile, group = thread / of.tile % of.groups;
  const int own = thread / (of.tile * of.groups);
  for (int64_t first = int64_t{blockIdx.x} * of.side; first < of.tasks; first += int64_t{gridDim.x} * of.side) {
    const Maps::Task task = of.task(first + own);
    const int64_t at = (task.tile * of.tile + column) * width;
    const char* const a = of.a + task.sample * of.parts.length * of.row * static_cast<int64_t>(sizeof(Stored));
    double energy[width] = {};
    Real squares[width] = {};
    const auto visit = [&](const auto& batch) {
      constexpr int count = std::decay_t<decltype(batch)>::count;
      Vector<Stored, width> v[count];
#pragma unroll
      for (int k = 0; k < count; k++) batch.template load<Kept::in_l2>(a, k, v[k]);
#pragma unroll
      for (int k = 0; k < count; k++)
#pragma unroll
        for (int j = 0; j < width; j++) squares[j] += widen<Real>(v[k].of[j]) * widen<Real>(v[k].of[j]);
    };
    const auto move = [&] {  // a conversion to double costs as much as a dozen additions
#pragma unroll
      for (int j = 0; j < width; j++) energy[j] += squares[j], squares[j] = 0;
    };
    if (own < of.side && first + own < of.tasks && at < of.row)
      for_each_batch<width, kMany, width>((of.parts.begin(task.part) + group) * of.row + at, of.groups * of.row,
                                          of.parts.end(task.part) * of.row, wide, visit, move);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < width; j++) sums[thread * width + j] = energy[j];
    __syncthreads();
    write_sums<width>(of, first, sums, energies);
  }
}

// What a warp, or a block where there are more positions, has of one sample at a time.
struct Samples {
  int64_t count, positions, sums;
  int threads;  // kWarp or kThreads

  Samples(const Activations& of, int64_t sums)
      : count(of.samples), positions(of.positions), sums(sums), threads(of.positions <= 8 * kWarp ? kWarp : kThreads) {}
  int64_t blocks() const { return (count * threads + kThreads - 1) / kThreads; }

  // visit(sample) by the threads that have it, and, with nothing to do, by the others.
  template <class Visit>
  __device__ void for_each(Visit visit) const {
    const int teams = kThreads / threads;
    for (int64_t first = int64_t{blockIdx.x} * teams; first < count; first += int64_t{gridDim.x} * teams)
      visit(first + static_cast<int>(threadIdx.x) / threads);
  }
  template <class Visit>
  __device__ void for_each_position(int64_t sample, Visit visit) const {
    if (sample >= count) return;
    for (int64_t p = static_cast<int>(threadIdx.x) % threads; p < positions; p += threads) visit(p);
  }
  __device__ double total(double x) const { return threads == kWarp ? over_lanes(x) : over_block(x); }
};

template <class Real>
__global__ void __launch_bounds__(kThreads)
    normalise(const __grid_constant__ Samples of, double* energies, Real* map, double* inverse_norms) {
  of.for_each([&](int64_t sample) {
    double* const own = energies + sample * of.sums * of.positions;
    double square = 0;
    of.for_each_position(sample, [&](int64_t p) {
      double energy = own[p];
      for (int64_t k = 1; k < of.sums; k++) energy += own[k * of.positions + p];
      own[p] = energy, square += energy * energy;
    });
    const double inverse = inverse_norm(of.total(square));
    of.for_each_position(sample,
                         [&](int64_t p) { map[sample * of.positions + p] = static_cast<Real>(own[p] * inverse); });
    if (sample < of.count && threadIdx.x % of.threads == 0) inverse_norms[sample] = inverse;
  });
}

// Of each position: what its activations are multiplied by.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    write_slopes(const __grid_constant__ Samples of, const Real* map, const double* inverse_norms, const Real* gradient,
                 Real* slopes) {
  of.for_each([&](int64_t sample) {
    const int64_t at = sample * of.positions;
    double along = 0;
    of.for_each_position(
        sample, [&](int64_t p) { along += static_cast<double>(map[at + p]) * static_cast<double>(gradient[at + p]); });
    along = of.total(along);
    of.for_each_position(sample, [&](int64_t p) {
      slopes[at + p] = static_cast<Real>(attention_slope(map[at + p], gradient[at + p], along, inverse_norms[sample]));
    });
  });
}

// Runs of activations, those of a sample, or, where channels lie side by side, all; each run has its slopes.
template <class Stored_>
struct Scaled {
  using Stored = Stored_;
  using Real = RealOf<Stored>;
  static constexpr int width = 16 / sizeof(Stored);

  const char* a;
  char* to;
  int64_t slopes_apart;
  Weights<Real> slopes;
  Parts parts;
  int64_t tasks;
  Divisor part_count;

  Scaled(const Activations& of, const Real* slopes, char* to)
      : a(of.a),
        to(to),
        slopes_apart(are_beside(of) ? 0 : of.positions),
        slopes(are_beside(of) ? weights_of(slopes, of.samples * of.positions, of.channels)
                              : weights_of(slopes, of.positions, 1)),
        parts((are_beside(of) ? of.samples : 1) * of.channels * of.positions, 2 * kThreads * width),
        tasks((are_beside(of) ? 1 : of.samples) * parts.count),
        part_count(parts.count) {}
};

template <class Scaled, Weighting weighting>
__global__ void __launch_bounds__(kThreads, 2) scale(const __grid_constant__ Scaled of) {
  using Stored = typename Scaled::Stored;
  using Real = typename Scaled::Real;
  constexpr int many = 2;
  for (int64_t task = blockIdx.x; task < of.tasks; task += gridDim.x) {
    const int64_t run = of.part_count.quotient(task), part = of.part_count.remainder(task);
    const int64_t byte = run * of.parts.length * static_cast<int64_t>(sizeof(Stored));
    const char* const a = of.a + byte;
    char* const to = of.to + byte;
    Weights<Real> slopes = of.slopes;
    slopes.of += run * of.slopes_apart;
    for_each_batch_of_block<Scaled::width, many, 1>(
        of.parts.begin(part), of.parts.end(part), are_aligned(a, to), [&](const auto& batch) {
          using Batch = std::decay_t<decltype(batch)>;
          constexpr int count = Batch::count, width = Batch::width;
          Vector<Stored, width> v[count];
#pragma unroll
          for (int k = 0; k < count; k++) batch.template load<Kept::nowhere>(a, k, v[k]);
#pragma unroll
          for (int k = 0; k < count; k++) {
            const auto slope = weights_at<weighting, width>(slopes, batch.at(k));
#pragma unroll
            for (int j = 0; j < width; j++) v[k].of[j] = Narrow<Stored>::from(slope.of[j] * widen<Real>(v[k].of[j]));
            batch.store(to, k, v[k]);
          }
        });
  }
}

// visit(shape, stored, width as a type): of Maps or Tokens, with the widest vectors that it consists of.
template <class Shape, class Visit>
void with_width(const Activations& of, Visit visit) {
  with_stored(of.dtype, [&](auto stored) {
    constexpr int width = 16 / sizeof stored;
    if (Shape::fits(of, width)) return visit(Shape(of, width), stored, std::integral_constant<int, width>());
    visit(Shape(of, 1), stored, std::integral_constant<int, 1>());
  });
}

// Not for activations without positions.
template <class Visit>
void with_shape(const Activations& of, Visit visit) {
  if (of.samples * of.positions == 0) return;
  are_beside(of) ? with_width<Tokens>(of, visit) : with_width<Maps>(of, visit);
}

}  // namespace

int64_t attention_map_scratch(const Activations& of) {
  int64_t sums = 0;
  with_shape(of, [&](const auto& shape, auto, auto) { sums = shape.sums(); });
  return of.samples * of.positions * sums * sizeof(double);
}

void attention_map(const Activations& of, char* map, double* inverse_norms, const Site& site) {
  if (of.samples == 0) return;
  const DeviceGuard guard(site.device);
  const auto stream = static_cast<cudaStream_t>(site.stream);
  double* const energies = reinterpret_cast<double*>(site.scratch);
  int64_t sums = 0;
  with_shape(of, [&](const auto& shape, auto stored, auto width) {
    void (*const kernel)(std::decay_t<decltype(shape)>, double*) = &add_up<decltype(stored), width.value>;
    launch(kernel, blocks_for(kernel, shape.blocks(), site.device), stream, shape, energies);
    sums = shape.sums();
  });
  with_stored(of.dtype, [&](auto stored) {
    using Real = RealOf<decltype(stored)>;
    const Samples samples(of, sums);
    launch(&normalise<Real>, blocks_for(&normalise<Real>, samples.blocks(), site.device), stream, samples, energies,
           reinterpret_cast<Real*>(map), inverse_norms);
  });
}

int64_t attention_map_gradient_scratch(const Activations& of) {
  return of.samples * of.positions * (of.dtype == DType::float64 ? sizeof(double) : sizeof(float));
}

void attention_map_gradient(const Activations& of, const char* map, const double* inverse_norms, const char* gradient,
                            char* to, const Site& site) {
  if (of.samples * of.channels * of.positions == 0) return;
  const DeviceGuard guard(site.device);
  const auto stream = static_cast<cudaStream_t>(site.stream);
  with_stored(of.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using Real = RealOf<Stored>;
    Real* const slopes = reinterpret_cast<Real*>(site.scratch);
    const Samples samples(of, 0);
    launch(&write_slopes<Real>, blocks_for(&write_slopes<Real>, samples.blocks(), site.device), stream, samples,
           reinterpret_cast<const Real*>(map), inverse_norms, reinterpret_cast<const Real*>(gradient), slopes);
    const Scaled<Stored> scaled(of, slopes, to);
    with_weighting(weighting_of<scaled.width>(scaled.slopes), [&](auto weighting) {
      const auto kernel = &scale<Scaled<Stored>, weighting.value>;
      launch(kernel, blocks_for(kernel, scaled.tasks, site.device), stream, scaled);
    });
  });
}

}  // namespace pytl::cuda
