// Look once, step once: the passes over a list of tensors on the CPU's threads.
#pragma once
#include "../tensor_list.h"

namespace pytl::cpu {

// How a list is cut for the threads. It depends on the lengths alone, never on the number of threads: sums are taken
// chunk by chunk and added in order, whoever computes them.
class Schedule {
 public:
  explicit Schedule(const TensorList& list);

  struct Chunk {
    int32_t parameter;
    int64_t offset, length;
  };
  struct Range {
    int32_t begin, end;
  };

  std::vector<Chunk> chunks;         // in parameter order
  std::vector<int32_t> first_chunk;  // of each parameter, and one past the last
  std::vector<Range> pieces;         // runs of chunks that one thread takes
  std::vector<int32_t> shared;       // parameters that all threads work on together
  std::vector<int32_t> owned;        // the others, longest first
  std::vector<Range> runs;           // of owned parameters that one thread takes
  std::vector<GramRow> sums;         // of each chunk: scratch
  std::vector<WeightsRow> weights;   // of each parameter: scratch
};

// rows[i]: parameter i's Gram numbers.
void gram(const TensorList&, Schedule&, const std::vector<Group>&, GramRow* rows);

// Who decides what is taken of g and of the regulariser.
struct Decision {
  const WeightsRow* weights;  // decided elsewhere; null: each group's rule decides
  double max_norm;            // of what feeds the moments, over all parameters, where the rules decide
};

// Takes the step; where the rules decide, rows receives the Gram numbers. Rules that look at one tensor only decide
// while it is in the cache.
void sgd(TensorList&, Schedule&, std::vector<SGDGroup>&, Decision, GramRow* rows);
void adamw(TensorList&, Schedule&, std::vector<AdamWGroup>&, Decision, GramRow* rows);

}  // namespace pytl::cpu
