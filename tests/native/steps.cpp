// The passes of csrc/cpu against a plain loop in float64, over dtypes, lengths around every boundary, odd addresses,
// rules, coupling and instruction sets. Buffers are as long as they must be and no longer: the sanitizers see the rest.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "../../csrc/cpu/loops.h"
#include "../../csrc/cpu/step.h"

using namespace pytl;

namespace {

int failures = 0, checks = 0;

const cpu::Decision kRules = {nullptr, std::numeric_limits<double>::infinity()};

void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  if (failures++ < 20) std::printf("failed: %s\n", what.c_str());
}

// A dense operand of exactly `length` elements, one element off the allocation's alignment.
class Operand {
 public:
  Operand(DType dtype, int64_t length) : dtype_(dtype), length_(length), bytes_((length + 1) * element_size(dtype)) {}

  char* address() { return bytes_.data() + element_size(dtype_); }

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

  void fill(std::mt19937& random, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (int64_t i = 0; i < length_; i++) set(i, normal(random));
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
  int64_t length_;
  std::vector<char> bytes_;
};

struct Case {
  DType dtype, start_dtype;
  int64_t length;
  Rule rule;
  bool decoupled, penalised, compensated;
};

std::string describe(const Case& c) {
  return "dtype " + std::to_string(int(c.dtype)) + ", start " + std::to_string(int(c.start_dtype)) + ", length " +
         std::to_string(c.length) + ", rule " + std::to_string(int(c.rule)) + (c.decoupled ? ", decoupled" : "") +
         (c.penalised ? ", penalty" : "") + (c.compensated ? ", compensated" : "") + ", " + cpu::instruction_set();
}

struct Tensors {
  Tensors(const Case& c, unsigned seed)
      : weight(c.dtype, c.length),
        gradient(c.dtype, c.length),
        penalty(c.dtype, c.length),
        start(c.start_dtype, c.length),
        compensation(c.dtype, c.length),
        mean(c.dtype == DType::float64 ? DType::float64 : DType::float32, c.length),
        square(c.dtype == DType::float64 ? DType::float64 : DType::float32, c.length) {
    std::mt19937 random(seed);
    weight.fill(random, 1);
    gradient.fill(random, 0.1);
    penalty.fill(random, 0.1);
    start.fill(random, 1);
  }

  Parameter parameter(const Case& c) {
    Parameter p = {};
    p.weight = weight.address(), p.gradient = gradient.address(), p.start = start.address();
    p.penalty = c.penalised ? penalty.address() : nullptr;
    p.compensation = c.compensated ? compensation.address() : nullptr;
    p.state[0] = mean.address(), p.state[1] = square.address();
    p.step = &step;
    p.length = c.length, p.dtype = c.dtype, p.start_dtype = c.start_dtype;
    return p;
  }

  Operand weight, gradient, penalty, start, compensation, mean, square;
  float step = 0;
};

// eps is large: the step must be well conditioned where d nearly vanishes.
AdamWGroup options(const Case& c) {
  AdamWGroup group = {};
  group.lr = 0.01, group.sp_decay = 0.3, group.weight_decay = 0.02, group.gradient_factor = -0.5;
  group.decoupled = c.decoupled, group.rule = c.rule;
  group.beta1 = 0.9, group.beta2 = 0.99, group.eps = 1e-2, group.amsgrad = false;
  return group;
}

// What the first AdamW step must give, element by element in float64.
struct Expected {
  GramRow row = {};
  std::vector<double> weight;
};

Expected expected(const Case& c, Tensors& t) {
  const AdamWGroup o = options(c);
  std::vector<double> w(c.length), g(c.length), r(c.length), h(c.length);
  Expected e;
  for (int64_t i = 0; i < c.length; i++) {
    w[i] = t.weight.get(i), g[i] = o.gradient_factor * t.gradient.get(i);
    r[i] = o.sp_decay * (w[i] - t.start.get(i)) + o.weight_decay * w[i];
    h[i] = c.penalised ? t.penalty.get(i) : 0;
    if (!c.decoupled) r[i] += h[i], h[i] = 0;
    e.row.gg += g[i] * g[i], e.row.gr += g[i] * r[i], e.row.rr += r[i] * r[i];
    e.row.gh += g[i] * h[i], e.row.hh += h[i] * h[i];
  }
  const DirectionWeights pull = direction_weights(o.rule, {e.row.gg, e.row.gr, e.row.rr});
  const DirectionWeights apart = direction_weights(o.rule, {e.row.gg, e.row.gh, e.row.hh});
  for (int64_t i = 0; i < c.length; i++) {
    const double d = c.decoupled ? apart.g * g[i] + apart.r * h[i] : pull.g * g[i] + pull.r * r[i];
    const double mean = (1 - o.beta1) * d, square = (1 - o.beta2) * d * d;
    const double step = mean / (1 - o.beta1) / (std::sqrt(square / (1 - o.beta2)) + o.eps);
    const double beside = c.decoupled ? (pull.g - 1) * g[i] + pull.r * r[i] : 0;
    e.weight.push_back(w[i] - o.lr * (step + beside));
  }
  return e;
}

void check_case(const Case& c) {
  Tensors t(c, 7);
  const Expected e = expected(c, t);
  TensorList list({t.parameter(c)});
  cpu::Schedule schedule(list);
  std::vector<AdamWGroup> groups = {options(c)};
  GramRow row = {};
  cpu::adamw(list, schedule, groups, kRules, &row);

  const double scale = std::sqrt(e.row.gg * e.row.rr), tolerance = c.dtype == DType::float64 ? 1e-13 : 1e-6;
  expect(std::abs(row.gg - e.row.gg) <= tolerance * e.row.gg, "<g,g> of " + describe(c));
  expect(std::abs(row.gr - e.row.gr) <= tolerance * scale, "<g,r> of " + describe(c));
  expect(std::abs(row.rr - e.row.rr) <= tolerance * e.row.rr, "<r,r> of " + describe(c));
  expect(std::abs(row.gh - e.row.gh) <= tolerance * scale, "<g,h> of " + describe(c));
  expect(t.step == 1, "step count of " + describe(c));
  const double rounding[] = {1e-12, 2e-6, 1.0 / 128, 1.0 / 1024};
  for (int64_t i = 0; i < c.length; i++) {
    const double got = t.weight.get(i) + (c.compensated ? t.compensation.get(i) : 0);
    const double allowed = c.compensated ? 1.0 / 8192 : rounding[int(c.dtype)];
    if (std::abs(got - e.weight[i]) <= allowed * (std::abs(e.weight[i]) + 0.05)) continue;
    return expect(false, "weight " + std::to_string(i) + " of " + describe(c));
  }
}

// Looking first and stepping with the weights of the look is what a custom direction does; the bits must not differ.
void check_two_passes(const Case& c) {
  Tensors one(c, 11), two(c, 11);
  std::vector<AdamWGroup> groups = {options(c)};
  const std::vector<Group> looks(groups.begin(), groups.end());
  GramRow row = {}, looked = {};
  TensorList list({one.parameter(c)}), same({two.parameter(c)});
  cpu::Schedule schedule(list), other(same);
  cpu::adamw(list, schedule, groups, kRules, &row);
  cpu::gram(same, other, looks, &looked);
  const DirectionWeights pull = direction_weights(c.rule, {looked.gg, looked.gr, looked.rr});
  const DirectionWeights apart = direction_weights(c.rule, {looked.gg, looked.gh, looked.hh});
  const WeightsRow weights =
      c.decoupled ? WeightsRow{1, apart.g - 1, apart.r, pull.g - 1, pull.r} : WeightsRow{1, pull.g - 1, pull.r, 0, 1};
  cpu::adamw(same, other, groups, {&weights, 0}, nullptr);
  expect(memcmp(&row, &looked, sizeof row) == 0, "two looks of " + describe(c));
  expect(one.weight.bytes() == two.weight.bytes(), "two passes of " + describe(c));
}

void check_conversions() {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const float16 half = {static_cast<uint16_t>(bits)};
    const bfloat16 brain = {static_cast<uint16_t>(bits)};
    const float a = widen<float>(half), b = widen<float>(brain);
    expect(a != a ? (bits & 0x7fff) > 0x7c00 : Narrow<float16>::from(a).bits == bits, "float16 round trip");
    expect(b != b ? (bits & 0x7fff) > 0x7f80 : Narrow<bfloat16>::from(b).bits == bits, "bfloat16 round trip");
  }
  // Between two neighbours lies the point where rounding turns, and at it the even one wins.
  for (uint32_t bits = 0; bits < 0x7bff; bits++) {
    const float low = widen<float>(float16{static_cast<uint16_t>(bits)});
    const float high = widen<float>(float16{static_cast<uint16_t>(bits + 1)});
    const float middle = (low + high) / 2;
    expect(Narrow<float16>::from(middle).bits == (bits & 1 ? bits + 1 : bits), "float16 tie");
    expect(Narrow<float16>::from(std::nextafter(middle, low)).bits == bits, "float16 below a tie");
    expect(Narrow<float16>::from(std::nextafter(middle, high)).bits == bits + 1, "float16 above a tie");
  }
  expect(Narrow<float16>::from(65519.99f).bits == 0x7bff, "largest float16");
  expect(Narrow<float16>::from(65520.f).bits == 0x7c00, "float16 overflow");
  expect(Narrow<bfloat16>::from(3.4e38f).bits == 0x7f80, "bfloat16 overflow");
}

template <class Check>
void for_each_case(Check check) {
  const int64_t lengths[] = {0, 1, 15, 16, 17, 511, 512, 513, 1025, 65535, 65536, 65537};
  const DType dtypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};
  for (DType dtype : dtypes)
    for (DType start : dtypes)
      for (int64_t length : lengths)
        for (Rule rule : {Rule::sum, Rule::dtnh, Rule::grod, Rule::pcgrad})
          for (int flags = 0; flags < 4; flags++)
            if (length < 1024 || (start == dtype && flags))
              check(Case{dtype, start, length, rule, flags % 2 == 1, flags / 2 == 1,
                         dtype >= DType::bfloat16 && flags / 2 == 0});
  check(Case{DType::float32, DType::bfloat16, (1 << 20) + 3, Rule::dtnh, true, true, false});
}

void check_refusals() {
  Case c = {DType::float32, DType::float32, 4, Rule::sum, true, false, false};
  Tensors t(c, 1);
  const auto refused = [](Parameter p) {
    try {
      TensorList list({p});
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  Parameter p = t.parameter(c);
  expect(!refused(p), "a sound parameter is taken");
  Parameter negative = p, odd = p, absent = p;
  negative.length = -1, odd.start += 1, absent.gradient = nullptr;
  expect(refused(negative) && refused(odd) && refused(absent), "an unsound parameter is refused");
}

}  // namespace

int main() {
  check_conversions();
  check_refusals();
  for (const std::string& name : cpu::instruction_sets()) {
    cpu::use_instruction_set(name);
    for_each_case(check_case);
    for_each_case(check_two_passes);
  }
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures != 0;
}
