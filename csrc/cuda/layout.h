// Where a plan's records lie in its device memory.
#pragma once
#include <algorithm>

#include "tables.h"

namespace pytl::cuda {

// Arrays one after the other in a piece of memory, or, without one, how long it must be.
class Layout {
 public:
  explicit Layout(char* memory) : memory_(memory) {}

  template <class T>
  T* next(size_t count) {
    char* const at = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (count * sizeof(T) + 15) / 16 * 16;
    return reinterpret_cast<T*>(at);
  }

  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  size_t bytes_ = 0;
};

inline constexpr size_t kGroupBytes = std::max(sizeof(DeviceGroup<SGDGroup>), sizeof(DeviceGroup<AdamWGroup>));

struct StaticTables {
  Parameter* parameters;
  Piece* pieces;
  int32_t *first_piece, *piece_count, *small;

  StaticTables(Layout& at, size_t count, const Schedule& s)
      : parameters(at.next<Parameter>(count)),
        pieces(at.next<Piece>(s.pieces.size())),
        first_piece(at.next<int32_t>(count)),
        piece_count(at.next<int32_t>(count)),
        small(at.next<int32_t>(s.small.size())) {}
};

struct Scratch {
  uint64_t *addresses, *groups;
  GramRow* sums;
  WeightsRow* weights;
  char* decisions;
  uint32_t *arrived, *decided, *launches, *left;

  Scratch(Layout& at, size_t count, size_t group_count, const Schedule& s)
      : addresses(at.next<uint64_t>(2 * count)),
        groups(at.next<uint64_t>(group_count * kGroupBytes / 8)),
        sums(at.next<GramRow>(s.pieces.size())),
        weights(at.next<WeightsRow>(count)),
        decisions(at.next<char>(count * kDecisionBytes)),
        arrived(at.next<uint32_t>(count)),
        decided(at.next<uint32_t>(count)),
        launches(at.next<uint32_t>(1)),
        left(at.next<uint32_t>(1)) {}
};

}  // namespace pytl::cuda
