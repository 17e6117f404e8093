// Chooses among the compilations of loops.cpp by what the processor can run.
#include <algorithm>

#include "feature_loops.h"

#define PYTL_DECLARE_LOOPS(isa)                           \
  namespace pytl::cpu::isa {                              \
  extern const Loops<float> float_loops;                  \
  extern const Loops<double> double_loops;                \
  extern const FeatureLoops<float> float_feature_loops;   \
  extern const FeatureLoops<double> double_feature_loops; \
  }
#define PYTL_LOOPS(isa) isa::float_loops, isa::double_loops, isa::float_feature_loops, isa::double_feature_loops
PYTL_DECLARE_LOOPS(baseline)
#if defined(PYTL_X86)
PYTL_DECLARE_LOOPS(avx2)
PYTL_DECLARE_LOOPS(avx512)
#endif

namespace pytl::cpu {
namespace {

struct InstructionSet {
  const char* name;
  bool available;
  const Loops<float>& float_loops;
  const Loops<double>& double_loops;
  const FeatureLoops<float>& float_feature_loops;
  const FeatureLoops<double>& double_feature_loops;
};

const std::vector<InstructionSet>& known() {
  static const std::vector<InstructionSet> sets = {
#if defined(PYTL_X86)
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"),
       PYTL_LOOPS(avx512)},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), PYTL_LOOPS(avx2)},
#endif
      {"baseline", true, PYTL_LOOPS(baseline)},
  };
  return sets;
}

const InstructionSet*& in_use() {
  static const InstructionSet* best =
      &*std::find_if(known().begin(), known().end(), [](const InstructionSet& set) { return set.available; });
  return best;
}

}  // namespace

template <>
const Loops<float>& loops<float>() {
  return in_use()->float_loops;
}

template <>
const Loops<double>& loops<double>() {
  return in_use()->double_loops;
}

template <>
const FeatureLoops<float>& feature_loops<float>() {
  return in_use()->float_feature_loops;
}

template <>
const FeatureLoops<double>& feature_loops<double>() {
  return in_use()->double_feature_loops;
}

const char* instruction_set() { return in_use()->name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : known())
    if (set.available) names.emplace_back(set.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& set : known())
    if (set.available && set.name == name) {
      in_use() = &set;
      return;
    }
  std::string choices;
  for (const std::string& known_name : instruction_sets()) choices += (choices.empty() ? "" : ", ") + known_name;
  throw std::invalid_argument("instruction set must be one of " + choices + "; got " + name);
}

}  // namespace pytl::cpu
