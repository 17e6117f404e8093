// What one launch works on: the operands of each parameter, the options of each group, and the checks on both.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "formulas/adamw.h"
#include "formulas/moments.h"
#include "formulas/sgd.h"
#include "formulas/terms.h"

namespace pytl {

// Addresses of one parameter's operands; each holds `length` elements in one common order. Absent operands are null.
struct Parameter {
  char* weight;          // dtype
  char* compensation;    // dtype; the weight is the sum of the two (Kahan)
  const char* gradient;  // dtype; the task's
  const char* penalty;   // dtype; gradient of the feature penalties
  const char* start;     // start_dtype; w0
  char* state[3];        // float64 for float64 weights, else float32, bfloat16, or codes of 8 bits
  float* scale[3];       // of each block of a state's codes
  float* step;           // how many steps have been taken
  int64_t length;
  int32_t group;
  int32_t fresh;  // the momentum is new: it takes the first direction whole
  DType dtype, start_dtype;
  MomentFormat moments;
};

// Options that every optimizer has. A group is a parameter group of torch.optim.
struct Group {
  double lr, sp_decay, weight_decay;
  double gradient_factor;  // 1 / loss scale, negative to maximise
  bool decoupled;          // the pull moves the weight beside the moments, not through them
  bool together;           // granularity "global": one decision from the sums over all such tensors of the rule
  Rule rule;
};

struct SGDGroup : Group {
  double momentum, dampening;
  bool nesterov;

  static constexpr int most_states = 1;
  PYTL_INLINE int states() const { return momentum != 0; }
  PYTL_INLINE Momentum kind() const {
    return momentum == 0 ? Momentum::none : nesterov ? Momentum::nesterov : Momentum::heavy_ball;
  }
  void prepare(double) {}
  template <class Real>
  PYTL_INLINE SGD<Real> formula(double, bool fresh) const {
    return {static_cast<Real>(lr), static_cast<Real>(momentum), static_cast<Real>(fresh ? 1 : 1 - dampening)};
  }
};

struct AdamWGroup : Group {
  double beta1, beta2, eps;
  bool amsgrad;
  BiasCorrections corrections = {};

  static constexpr int most_states = 3;
  PYTL_INLINE int states() const { return amsgrad ? 3 : 2; }
  PYTL_INLINE bool kind() const { return amsgrad; }
  // Powers and roots are dear beside a small tensor's step, and most parameters of a group are at the same step.
  PYTL_INLINE void prepare(double step) {
    if (corrections.step != step) corrections = bias_corrections(beta1, beta2, step);
  }
  template <class Real>
  PYTL_INLINE AdamW<Real> formula(double step, bool) const {
    const BiasCorrections at = corrections.step == step ? corrections : bias_corrections(beta1, beta2, step);
    return {static_cast<Real>(beta1),     static_cast<Real>(1 - beta1),    static_cast<Real>(beta2),
            static_cast<Real>(1 - beta2), static_cast<Real>(lr / at.mean), static_cast<Real>(at.inverse_root),
            static_cast<Real>(eps)};
  }
};

PYTL_INLINE bool is_regularised(const Parameter& p, const Group& group) {
  return (p.start && group.sp_decay != 0) || group.weight_decay != 0 || p.penalty;
}

// A parameter's terms before anything is decided.
template <class Real>
PYTL_INLINE Terms<Real> plain_terms(const Parameter& p, const Group& group) {
  Terms<Real> t;
  t.pull = {static_cast<Real>(p.start ? group.sp_decay : 0), static_cast<Real>(group.weight_decay)};
  t.gradient_factor = static_cast<Real>(group.gradient_factor);
  t.lr = static_cast<Real>(group.lr);
  t.regularised = is_regularised(p, group);
  t.penalised = p.penalty != nullptr;
  t.decoupled = group.decoupled;
  t.take(plain_weights());
  return t;
}

class TensorList {
 public:
  explicit TensorList(std::vector<Parameter> parameters) : parameters_(std::move(parameters)) {
    for (size_t i = 0; i < parameters_.size(); i++) check(parameters_[i], i);
  }

  // The operands that are new in each step. No penalties: those of the list stay as they are.
  void renew(const std::vector<int64_t>& gradients, const std::vector<int64_t>& penalties) {
    if (gradients.size() != parameters_.size() || (!penalties.empty() && penalties.size() != parameters_.size()))
      throw std::invalid_argument("expected " + std::to_string(parameters_.size()) + " addresses of gradients; got " +
                                  std::to_string(gradients.size()) + ", and " + std::to_string(penalties.size()) +
                                  " of penalties");
    for (size_t i = 0; i < parameters_.size(); i++) {
      Parameter renewed = parameters_[i];
      take_addresses(renewed, i, gradients, penalties);
      check(renewed, i);
    }
    for (size_t i = 0; i < parameters_.size(); i++) take_addresses(parameters_[i], i, gradients, penalties);
  }

  void check_groups(size_t groups) const {
    for (const Parameter& p : parameters_)
      if (static_cast<size_t>(p.group) >= groups)
        throw std::invalid_argument("groups must hold more than " + std::to_string(p.group) + " entries; got " +
                                    std::to_string(groups));
  }

  // needed(parameter): how many states its optimizer reads.
  template <class Needed>
  void check_states(Needed needed) const {
    for (size_t i = 0; i < parameters_.size(); i++) {
      if (!parameters_[i].step) refuse(i, "step must have an address");
      for (int k = 0; k < needed(parameters_[i]); k++)
        if (parameters_[i].length && !(parameters_[i].state[k] && has_scale(parameters_[i], k)))
          refuse(i, "state " + std::to_string(k) + " must have an address, and its scales if it has any");
    }
  }

  void count_step() {
    for (Parameter& p : parameters_) *p.step += 1, p.fresh = 0;
  }

  const std::vector<Parameter>& parameters() const { return parameters_; }

 private:
  static void take_addresses(Parameter& p, size_t index, const std::vector<int64_t>& gradients,
                             const std::vector<int64_t>& penalties) {
    p.gradient = reinterpret_cast<const char*>(gradients[index]);
    if (!penalties.empty()) p.penalty = reinterpret_cast<const char*>(penalties[index]);
  }

  static bool has_scale(const Parameter& p, int k) { return p.moments != MomentFormat::eight_bits || p.scale[k]; }

  static void refuse(size_t index, const std::string& what) {
    throw std::invalid_argument("parameter " + std::to_string(index) + ": " + what);
  }

  static void check(const Parameter& p, size_t index) {
    if (p.length < 0) refuse(index, "length must be >= 0; got " + std::to_string(p.length));
    if (p.group < 0) refuse(index, "group must be >= 0; got " + std::to_string(p.group));
    if (p.length && !(p.weight && p.gradient)) refuse(index, "weight and gradient must have an address");
    const int64_t size = element_size(p.dtype);
    if (p.dtype == DType::float64 && p.moments != MomentFormat::full)
      refuse(index, "moments of float64 weights must be float64");
    const auto aligned = [&](const char* name, const void* address, int64_t to) {
      if (reinterpret_cast<uintptr_t>(address) % to)
        refuse(index, std::string(name) + " must be aligned to " + std::to_string(to) + " bytes");
    };
    aligned("weight", p.weight, size);
    aligned("compensation", p.compensation, size);
    aligned("gradient", p.gradient, size);
    aligned("penalty", p.penalty, size);
    aligned("start", p.start, element_size(p.start_dtype));
    for (const char* state : p.state) aligned("state", state, moment_size(p.moments, p.dtype));
    for (const float* scale : p.scale) aligned("scale", scale, 4);
    aligned("step", p.step, 4);
  }

  std::vector<Parameter> parameters_;
};

}  // namespace pytl
