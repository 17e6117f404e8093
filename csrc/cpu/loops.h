// The loops over one tile: a piece of a tensor that fits the L1 cache, all of whose operands are widened to Real.
// loops.cpp is compiled once per instruction set; which one runs is chosen when the library is loaded.
#pragma once
#include "../tensor_list.h"

namespace pytl::cpu {

constexpr int64_t kTile = 512;

template <class Real>
struct Tile {
  int64_t length;
  Real* weight;
  const Real* gradient;
  const Real* start;    // zeros where there is none, and sp_decay is 0
  const Real* penalty;  // zeros where there is none
  Real* state[3];
};

// Where a piece of a state lies, and how it is kept; `squares`: a mean of squares.
struct Moments {
  MomentFormat format;
  bool squares;
  char* stored;
  float* scales;
};

// Gram numbers on the way: element i of a chunk is summed in lane i % kLanes, in float64, and the lanes are added in
// one order at the chunk's end. So the bits depend neither on the vector width nor on the tiles.
constexpr int kLanes = 16;

struct LaneSums {
  double lanes[kLanes];

  double total() const {
    double half[kLanes / 2];
    for (int i = 0; i < kLanes / 2; i++) half[i] = lanes[i] + lanes[i + kLanes / 2];
    return ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
  }
};

struct GramSums {
  enum { gg, gr, rr, gh, hh, kCount };
  int used;  // how many there are: 1 without a regulariser, 3 with one, 5 with the penalty apart
  LaneSums of[kCount];

  explicit GramSums(int count) : used(count) {
    for (int k = 0; k < used; k++) of[k] = {};
  }

  GramRow total() const {
    const auto sum = [this](int k) { return k < used ? of[k].total() : 0.0; };
    return {sum(gg), sum(gr), sum(rr), sum(gh), sum(hh)};
  }
};

template <class Real>
struct Loops {
  void (*widen)(DType, const void* from, int64_t length, Real* to);
  void (*narrow)(DType, const Real* from, int64_t length, void* to);
  // A compensated weight is the unevaluated sum of two numbers of its dtype.
  void (*widen_sum)(DType, const void* high, const void* low, int64_t length, Real* to);
  void (*narrow_sum)(DType, const Real* from, int64_t length, void* high, void* low);
  // A piece of a state that is kept in fewer bits, from a block's first element on.
  void (*load_moments)(const Moments&, int64_t length, Real* to);
  void (*store_moments)(const Moments&, const Real* from, int64_t length, int64_t first, uint32_t seed);
  void (*gram)(const Tile<Real>&, const Terms<Real>&, GramSums&);
  void (*sgd)(const Tile<Real>&, const Terms<Real>&, const SGD<Real>&, Momentum);
  void (*adamw)(const Tile<Real>&, const Terms<Real>&, const AdamW<Real>&, bool amsgrad);
};

template <class Real>
const Loops<Real>& loops();  // those of the instruction set in use

const char* instruction_set();
void use_instruction_set(const std::string& name);  // throws std::invalid_argument where the processor lacks it
std::vector<std::string> instruction_sets();        // those that this processor has, best first

}  // namespace pytl::cpu
