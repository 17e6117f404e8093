// How a list is cut for the blocks. It depends on the parameters alone, not on the device.
#pragma once
#include <array>
#include <vector>

#include "../tensor_list.h"
#include "sums.h"

namespace pytl::cuda {

static_assert(kThreads > kWarp, "a run is a warp's or a block's by the number of threads that share it");
constexpr int32_t kPiece = 8 * kThreads;  // elements: 4096, of which 132 x 2 blocks hold 13 MB of float32 w, g, w0
static_assert(kPiece % kMomentBlock == 0, "a piece begins where a block of moments does");
constexpr int32_t kMostPieces = 8 * kThreads;  // of a parameter: one warp adds up their sums
constexpr int32_t kSmall = 4 * kThreads;       // elements: up to here a parameter is one warp's

// What the parameters of one launch have in common: kernels.h has a type for each.
enum class FormId : int32_t {
  float32,
  float32_from_bfloat16,  // w0 in bfloat16
  bfloat16,
  float16,
  full_float64,
  full_float32,
  full_bfloat16,
  full_float16,
  narrow_float32,  // moments in fewer bits
  narrow_bfloat16,
  narrow_float16,
};
constexpr size_t kForms = 11;

inline bool is_full(FormId form) { return form >= FormId::full_float64; }

// What one block works on at a time: `length` elements of a parameter, or so many small parameters, one a warp.
struct Piece {
  int64_t offset;     // of the first element, or the place of the first parameter in Schedule::small
  int32_t parameter;  // or -1
  int32_t length;
};

struct Range {
  int32_t begin, end;
};

class Schedule {
 public:
  explicit Schedule(const std::vector<Parameter>&);

  std::vector<Piece> pieces;         // form by form; small parameters first
  std::array<Range, kForms> ranges;  // of the pieces of each form
  std::vector<int32_t> first_piece;  // of each parameter that is not small
  std::vector<int32_t> piece_count;  // of each parameter; 0: it is small
  std::vector<int32_t> small;        // parameters

 private:
  using Members = std::vector<int32_t>::iterator;
  void add_small(Members begin, Members end);
  void add_large(int32_t parameter, int64_t length);
};

}  // namespace pytl::cuda
