// Parameters to step on, of every kind, and what the first AdamW step must make of them: a plain loop in float64.
#pragma once
#include <cmath>
#include <cstdio>
#include <deque>
#include <random>

#include "../../csrc/tensor_list.h"

namespace pytl::cases {

inline int failures = 0, checks = 0;

inline void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  if (failures++ < 20) std::printf("failed: %s\n", what.c_str());
}

inline int verdict() {
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures != 0;
}

// A dense operand of exactly `length` elements, `skew` elements off the allocation's alignment.
class Operand {
 public:
  Operand(DType dtype, int64_t length, int64_t skew)
      : dtype_(dtype),
        length_(length),
        skew_(skew * element_size(dtype)),
        bytes_(skew_ + length * element_size(dtype)) {}

  char* address() { return bytes_.data() + skew_; }

  void set(int64_t i, double x) {
    char* at = address() + i * element_size(dtype_);
    switch (dtype_) {
      case DType::float64:
        return put(at, x);
      case DType::float32:
        return put(at, static_cast<float>(x));
      case DType::bfloat16:
        return put(at, Narrow<bfloat16>::from(static_cast<float>(x)));
      case DType::float16:
        return put(at, Narrow<float16>::from(static_cast<float>(x)));
    }
  }

  double get(int64_t i) {
    const char* at = address() + i * element_size(dtype_);
    switch (dtype_) {
      case DType::float64:
        return take<double>(at);
      case DType::float32:
        return take<float>(at);
      case DType::bfloat16:
        return widen<double>(take<bfloat16>(at));
      case DType::float16:
        return widen<double>(take<float16>(at));
    }
    return 0;
  }

  // spread: of the logarithm of the magnitudes.
  void fill(std::mt19937& random, double scale, double spread = 0) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < length_; i++) {
      const double magnitude = spread > 0 ? scale * std::exp(spread * normal(random)) : scale;
      set(i, magnitude * normal(random));
    }
  }

  const std::vector<char>& bytes() const { return bytes_; }

 private:
  template <class T>
  static void put(char* at, T value) {
    memcpy(at, &value, sizeof value);
  }
  template <class T>
  static T take(const char* at) {
    T value;
    memcpy(&value, at, sizeof value);
    return value;
  }

  DType dtype_;
  int64_t length_, skew_;
  std::vector<char> bytes_;
};

// What the parameters of a list have in common. Those that are `skewed` lie one element off their allocation, each
// operand.
struct Case {
  DType dtype, start_dtype;
  Rule rule;
  bool decoupled, penalised, compensated, skewed;
  MomentFormat moments = MomentFormat::full;
};

inline std::string describe(const Case& c) {
  return "dtype " + std::to_string(int(c.dtype)) + ", start " + std::to_string(int(c.start_dtype)) + ", rule " +
         std::to_string(int(c.rule)) + (c.decoupled ? ", decoupled" : "") + (c.penalised ? ", penalty" : "") +
         (c.compensated ? ", compensated" : "") + (c.skewed ? ", skewed" : "") +
         (c.moments != MomentFormat::full ? ", moments " + std::to_string(int(c.moments)) : "");
}

// A moment in fewer bits.
struct NarrowMoment {
  NarrowMoment(const Case& c, int64_t length)
      : skew(c.skewed * moment_size(c.moments, c.dtype)),
        stored(skew + length * moment_size(c.moments, c.dtype)),
        scales((length + kMomentBlock - 1) / kMomentBlock * sizeof(float)) {}

  int64_t skew;
  std::vector<char> stored, scales;
};

struct Tensors {
  Tensors(const Case& c, int64_t count, std::mt19937& random, double spread)
      : length(count),
        weight(c.dtype, length, c.skewed),
        gradient(c.dtype, length, c.skewed),
        penalty(c.dtype, length, c.skewed),
        start(c.start_dtype, length, c.skewed),
        compensation(c.dtype, length, c.skewed),
        mean(c.dtype == DType::float64 ? DType::float64 : DType::float32, length, c.skewed),
        square(c.dtype == DType::float64 ? DType::float64 : DType::float32, length, c.skewed) {
    weight.fill(random, 1);
    gradient.fill(random, 0.1, spread);
    penalty.fill(random, 0.1);
    start.fill(random, 1);
    for (int k = 0; k < 3 && c.moments != MomentFormat::full; k++) narrow.emplace_back(c, length);
  }

  Parameter parameter(const Case& c) {
    Parameter p = {};
    p.weight = weight.address(), p.gradient = gradient.address(), p.start = start.address();
    p.penalty = c.penalised ? penalty.address() : nullptr;
    p.compensation = c.compensated ? compensation.address() : nullptr;
    p.state[0] = mean.address(), p.state[1] = square.address();
    for (size_t k = 0; k < narrow.size(); k++) {
      p.state[k] = narrow[k].stored.data() + narrow[k].skew;
      p.scale[k] = reinterpret_cast<float*>(narrow[k].scales.data());
    }
    p.moments = c.moments;
    p.step = &step;
    p.length = length, p.dtype = c.dtype, p.start_dtype = c.start_dtype;
    return p;
  }

  int64_t length;
  Operand weight, gradient, penalty, start, compensation, mean, square;
  std::vector<NarrowMoment> narrow;
  float step = 0;
};

// Parameters of these lengths, the same for a seed. spread: of the logarithm of the gradients' magnitudes.
struct Sample {
  Sample(const Case& c, const std::vector<int64_t>& lengths, unsigned seed, double spread = 0) : of(c) {
    std::mt19937 random(seed);
    for (int64_t length : lengths) tensors.emplace_back(c, length, random, spread);
  }

  std::vector<Parameter> parameters() {
    std::vector<Parameter> all;
    for (Tensors& t : tensors) all.push_back(t.parameter(of));
    return all;
  }

  // Of the weights and of all that goes with them.
  std::vector<std::vector<char>> bytes() const {
    std::vector<std::vector<char>> all;
    for (const Tensors& t : tensors) {
      for (const Operand* o : {&t.weight, &t.compensation, &t.mean, &t.square}) all.push_back(o->bytes());
      for (const NarrowMoment& m : t.narrow) all.push_back(m.stored), all.push_back(m.scales);
    }
    return all;
  }

  Case of;
  std::deque<Tensors> tensors;
};

// eps is large: the step must be well conditioned where d nearly vanishes.
inline AdamWGroup options(const Case& c) {
  AdamWGroup group = {};
  group.lr = 0.01, group.sp_decay = 0.3, group.weight_decay = 0.02, group.gradient_factor = -0.5;
  group.decoupled = c.decoupled, group.rule = c.rule;
  group.beta1 = 0.9, group.beta2 = 0.99, group.eps = 1e-2, group.amsgrad = false;
  return group;
}

struct Expected {
  GramRow row = {};
  std::vector<double> w, g, r, h;  // w becomes what it must be after the step
};

inline Expected looked_at(const AdamWGroup& o, const Case& c, Tensors& t) {
  Expected e;
  for (int64_t i = 0; i < t.length; i++) {
    const double w = t.weight.get(i), g = o.gradient_factor * t.gradient.get(i);
    double r = o.sp_decay * (w - t.start.get(i)) + o.weight_decay * w, h = c.penalised ? t.penalty.get(i) : 0;
    if (!c.decoupled) r += h, h = 0;
    e.w.push_back(w), e.g.push_back(g), e.r.push_back(r), e.h.push_back(h);
    e.row.gg += g * g, e.row.gr += g * r, e.row.rr += r * r, e.row.gh += g * h, e.row.hh += h * h;
  }
  return e;
}

// group.together and max_norm decide about all tensors at once.
inline std::vector<Expected> expected(Sample& sample, const AdamWGroup& o, double max_norm) {
  std::vector<Expected> all;
  GramRow sum = {};
  for (Tensors& t : sample.tensors) {
    all.push_back(looked_at(o, sample.of, t));
    sum += all.back().row;
  }
  struct Directions {
    DirectionWeights pull, apart;
  };
  const auto directions = [&](const Expected& e) -> Directions {
    const GramRow& n = o.together ? sum : e.row;
    return {direction_weights(o.rule, {n.gg, n.gr, n.rr}), direction_weights(o.rule, {n.gg, n.gh, n.hh})};
  };
  const auto fed = [&](const Expected& e, const Directions& d, size_t i) {
    return o.decoupled ? d.apart.g * e.g[i] + d.apart.r * e.h[i] : d.pull.g * e.g[i] + d.pull.r * e.r[i];
  };
  double squares = 0;
  for (const Expected& e : all)
    for (size_t i = 0; i < e.w.size(); i++) squares += std::pow(fed(e, directions(e), i), 2);
  const double scale = std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6));
  for (Expected& e : all) {
    const Directions now = directions(e);
    for (size_t i = 0; i < e.w.size(); i++) {
      const double d = scale * fed(e, now, i), mean = (1 - o.beta1) * d, square = (1 - o.beta2) * d * d;
      const double step = mean / (1 - o.beta1) / (std::sqrt(square / (1 - o.beta2)) + o.eps);
      e.w[i] -= o.lr * (step + (o.decoupled ? (now.pull.g - 1) * e.g[i] + now.pull.r * e.r[i] : 0));
    }
  }
  return all;
}

// row_tolerance: relative, of sums.
inline void compare(Sample& sample, const std::vector<Expected>& wanted, const GramRow* rows, double row_tolerance,
                    const std::string& where) {
  const Case& c = sample.of;
  for (size_t k = 0; k < wanted.size(); k++) {
    const GramRow &e = wanted[k].row, &row = rows[k];
    Tensors& t = sample.tensors[k];
    const std::string what = "length " + std::to_string(t.length) + ", " + describe(c) + ", " + where;
    const double scale = std::sqrt(e.gg * std::max(e.rr, e.hh));
    expect(std::abs(row.gg - e.gg) <= row_tolerance * e.gg, "<g,g> of " + what);
    expect(std::abs(row.gr - e.gr) <= row_tolerance * scale, "<g,r> of " + what);
    expect(std::abs(row.rr - e.rr) <= row_tolerance * e.rr, "<r,r> of " + what);
    expect(std::abs(row.gh - e.gh) <= row_tolerance * scale, "<g,h> of " + what);
    expect(std::abs(row.hh - e.hh) <= row_tolerance * e.hh, "<h,h> of " + what);
    expect(t.step == 1, "step count of " + what);
    const double rounding[] = {1e-12, 2e-6, 1.0 / 128, 1.0 / 1024};
    const double allowed = c.compensated ? 1.0 / 8192 : rounding[int(c.dtype)];
    for (int64_t i = 0; i < t.length; i++) {
      const double got = t.weight.get(i) + (c.compensated ? t.compensation.get(i) : 0), w = wanted[k].w[i];
      if (std::abs(got - w) <= allowed * (std::abs(w) + 0.05)) continue;
      expect(false, "weight " + std::to_string(i) + " of " + what);
      break;
    }
  }
}

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};
constexpr Rule kRules[] = {Rule::sum, Rule::dtnh, Rule::grod, Rule::pcgrad};

// Every dtype, dtype of w0, rule, coupling and penalty; 16-bit weights without a penalty are compensated.
template <class Check>
void for_each_case(Check check) {
  for (DType dtype : kDTypes)
    for (DType start : kDTypes)
      for (Rule rule : kRules)
        for (int flags = 0; flags < 8; flags++) {
          const bool decoupled = flags & 1, penalised = flags & 2, skewed = flags & 4;
          check(Case{dtype, start, rule, decoupled, penalised, dtype >= DType::bfloat16 && !penalised, skewed});
        }
}

}  // namespace pytl::cases
