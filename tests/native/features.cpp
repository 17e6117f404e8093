// The feature regularisers' passes of csrc/cpu against plain loops in float64, with every instruction set.
#include "../../csrc/cpu/features.h"

#include "../../csrc/cpu/loops.h"
#include "feature_cases.h"

using namespace pytl;
using namespace pytl::cases;

namespace {

struct OnCpu {
  static double feature_distance(const FeaturePair& pair) { return cpu::feature_distance(pair); }
  static void feature_distance_gradient(const FeaturePair& pair, const char* task, double factor, char* to) {
    cpu::feature_distance_gradient(pair, task, factor, to);
  }
  static void attention_map(const Activations& of, char* map, double* inverse_norms) {
    cpu::attention_map(of, map, inverse_norms);
  }
  static void attention_map_gradient(const Activations& of, const char* map, const double* inverse_norms,
                                     const char* gradient, char* to) {
    cpu::attention_map_gradient(of, map, inverse_norms, gradient, to);
  }
  static double distillation(const Logits& of, char* to) { return cpu::distillation(of, to); }
};

}  // namespace

int main() {
  Boundaries at;
  at.lengths = {0, 1, 15, 16, 17, 31, 33, 32767, 32768, 32769, 70001};  // lanes, chunks
  at.positions = {1, 2, 3, 4, 7, 16, 17, 49, 64, 197, 1000};
  at.channels = {300, 5000};
  at.columns = {1, 2, 3, 4, 7, 15, 16, 17, 100, 1000, 1025, 50257};
  for (const std::string& name : cpu::instruction_sets()) {
    cpu::use_instruction_set(name);
    check_features<OnCpu>(at);
  }
  return verdict();
}
