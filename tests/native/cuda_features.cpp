// The feature regularisers' kernels of csrc/cuda, as they stand, on the CPU (shim.h), against plain loops in float64:
// around every boundary of vectors, warps, parts and rounds; and their bits.
#include "../../csrc/cuda/features.h"

#include "feature_cases.h"
#include "shim.h"

using namespace pytl;
using namespace pytl::cases;

namespace {

// Memory that is not longer than it must be, and holds anything; on a device for each number of blocks that run at
// once.
struct Scratch {
  explicit Scratch(int64_t size) : bytes(size, '\xff'), site{cuda::shim::resident_blocks, nullptr, bytes.data()} {}
  std::vector<char> bytes;
  cuda::Site site;
};

struct OnShim {
  static double feature_distance(const FeaturePair& pair) {
    double value = kNaN;
    cuda::feature_distance(pair, &value, Scratch(cuda::feature_distance_scratch(pair)).site);
    return value;
  }
  static void feature_distance_gradient(const FeaturePair& pair, const char* task, double factor, char* to) {
    cuda::feature_distance_gradient(pair, task, &factor, to, Scratch(0).site);
  }
  static void attention_map(const Activations& of, char* map, double* inverse_norms) {
    cuda::attention_map(of, map, inverse_norms, Scratch(cuda::attention_map_scratch(of)).site);
  }
  static void attention_map_gradient(const Activations& of, const char* map, const double* inverse_norms,
                                     const char* gradient, char* to) {
    cuda::attention_map_gradient(of, map, inverse_norms, gradient, to,
                                 Scratch(cuda::attention_map_gradient_scratch(of)).site);
  }
  static double distillation(const Logits& of, char* to) {
    double value = kNaN;
    cuda::distillation(of, &value, to, Scratch(cuda::distillation_scratch(of)).site);
    return value;
  }
};

// What comes out of a case, as bytes that do not depend on where it lay.
std::vector<double> results(const DistanceCase& c) {
  Features f(c);
  std::vector<double> all = {run<OnShim>(f)};
  for (int64_t i = 0; i < f.length; i++) all.push_back(f.gradient.get(i));
  return all;
}
std::vector<double> results(const MapCase& c) {
  Maps m(c);
  run<OnShim>(m);
  std::vector<double> all;
  for (int64_t k = 0; k < c.samples * c.positions; k++) all.push_back(m.map.get(k));
  for (int64_t b = 0; b < c.samples; b++) all.push_back(m.inverse_norms.get(b));
  for (int64_t i = 0; i < m.length; i++) all.push_back(m.to.get(i));
  return all;
}
std::vector<double> results(const RowsCase& c) {
  LogitRows l(c);
  std::vector<double> all = {run<OnShim>(l)};
  for (int64_t i = 0; i < l.length; i++) all.push_back(l.gradient.get(i));
  return all;
}

// The same bits in any order, with any number of blocks, aligned or not.
template <class Case>
void check_bits(Case c) {
  const int parts = 10;  // of the longest row: so many blocks must run at once
  cuda::shim::resident_blocks = parts;
  const auto first = results(c);
  for (unsigned seed : {1, 2, 3}) {
    cuda::shim::seed(seed), cuda::shim::resident_blocks = parts + 3 * seed;
    expect(results(c) == first, "another order, bits of " + describe(c));
  }
  for (Skew skew : kSkews) {
    c.skew = skew;
    expect(results(c) == first, "bits of " + describe(c));
  }
  cuda::shim::resident_blocks = 3;
}

void check_all_bits(DType dtype) {
  check_bits(DistanceCase{dtype, 5, 24, 49, true, true, kAligned});
  check_bits(DistanceCase{dtype, 60, 128, 1, true, false, kAligned});
  check_bits(DistanceCase{dtype, 3, 5, 1024, true, false, kAligned});
  check_bits(DistanceCase{dtype, 1, 1, 40003, false, true, kAligned});
  for (bool last : {false, true}) {
    check_bits(MapCase{dtype, 3, 256, 49, last, kAligned});
    check_bits(MapCase{dtype, 2, 96, 784, last, kAligned});
    check_bits(MapCase{dtype, 2, 7, 30, last, kAligned});
  }
  for (int64_t columns : {8, 10, 1000, 1001, 3000, 40000}) check_bits(RowsCase{dtype, 5, columns, 2, true, kAligned});
}

// Several blocks share a row, as many as there may be, or none may wait; each way is right.
void check_teams(DType dtype) {
  for (int64_t columns : {1025, 40000, 300000}) {
    const RowsCase c = {dtype, columns > 100000 ? 2 : 7, columns, 2, true, kAligned};
    for (int resident : {1, 2, 5, 40}) {
      cuda::shim::resident_blocks = resident, cuda::shim::seed(resident);
      check<OnShim>(c);
    }
    cuda::shim::resident_blocks = 3, cuda::shim::cooperative = false;
    check<OnShim>(c);
    cuda::shim::cooperative = true;
  }
}

}  // namespace

int main() {
  const int64_t step = 2 * 16 * cuda::kThreads;  // bytes of a block's batch of vectors
  Boundaries at;
  at.lengths = {0, 1, 2, 3, 4, 5, 7, 8, 9, 100};
  for (int64_t edge : {step / 8, step / 4, step / 2, 7 * step / 4, 11 * step / 2})
    for (int64_t beside : {-1, 0, 1}) at.lengths.push_back(edge + beside);
  at.positions = {1, 2, 3, 4, 6, 7, 8, 12, 16, 49, 64, 65, 196, 197, 256, 257, 512, 784, 1000};
  at.channels = {300, 2048, 5000};
  at.columns = {1,   2,   3,   4,    5,    7,    8,    9,    16,   33,    100,   128,
                255, 256, 257, 1000, 1023, 1024, 1025, 1032, 2050, 16384, 16385, 40000};
  check_features<OnShim>(at);
  for (DType dtype : kDTypes) check_all_bits(dtype), check_teams(dtype);
  const int64_t parts = 8 * cuda::kThreads;  // beyond so many steps they have several each
  check<OnShim>(DistanceCase{DType::float32, 1, 1, (parts + 1) * step / 4 + 5, false, true, kAligned});
  return verdict();
}
