// The kernels of csrc/cuda, as they stand, on the CPU (shim.h), against a plain loop in float64: over dtypes,
// addresses, lengths around every boundary of vectors, warps, small parameters, pieces and rounds, and every way to a
// decision.
#include <limits>
#include <memory>

#include "../../csrc/cpu/step.h"
#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/schedule.h"
#include "cases.h"

using namespace pytl;
using namespace pytl::cases;

namespace {

constexpr double kManyMagnitudes = 8;  // standard deviation of their logarithm: sums then show their order
constexpr double kNoClipping = std::numeric_limits<double>::infinity();

using Groups = std::vector<cuda::DeviceGroup<AdamWGroup>>;

Groups groups_of(const AdamWGroup& options) { return {{options, {}}}; }

// A plan with its memory, which is not larger than it must be.
struct Placed {
  explicit Placed(const std::vector<Parameter>& parameters)
      : plan(parameters, 0), tables(plan.tables()), scratch(plan.scratch_bytes()), rows(parameters.size()) {
    plan.place(tables.data(), scratch.data());
  }
  explicit Placed(Sample& sample) : Placed(sample.parameters()) {}

  void step(const Groups& groups, double max_norm = kNoClipping, const WeightsRow* weights = nullptr,
            const cuda::Call& call = {}) {
    plan.step(groups, weights, max_norm, rows.data(), call);
  }

  cuda::Plan plan;
  std::vector<char> tables, scratch;
  std::vector<GramRow> rows;
};

// Around vectors, small parameters, pieces, and several rounds of three blocks.
std::vector<int64_t> lengths() {
  std::vector<int64_t> all = {0, 1, 2, 3, 4, 5, 7, 8, 9, 127, 128};
  for (int64_t edge : {cuda::kSmall, cuda::kPiece, 4 * cuda::kPiece, 9 * cuda::kPiece})
    for (int64_t beside : {-1, 0, 1}) all.push_back(edge + beside);
  all.insert(all.end(), {0, 1, 64, 3 * cuda::kPiece + 5});
  return all;
}

double row_tolerance(const Case& c) { return c.dtype == DType::float64 ? 1e-13 : 1e-6; }

void check_case(const Case& c, const std::vector<int64_t>& of, const std::string& where) {
  Sample sample(c, of, 7);
  const AdamWGroup o = options(c);
  const auto wanted = expected(sample, o, kNoClipping);
  Placed placed(sample);
  placed.step(groups_of(o));
  compare(sample, wanted, placed.rows.data(), row_tolerance(c), where);
}

// All tensors decide together, or the step is clipped, or both.
void check_together(const Case& c, bool together, double max_norm, const std::vector<int64_t>& of = lengths()) {
  Sample sample(c, of, 13);
  AdamWGroup o = options(c);
  o.together = together;
  const auto wanted = expected(sample, o, max_norm);
  Placed placed(sample);
  placed.step(groups_of(o), max_norm);
  compare(sample, wanted, placed.rows.data(), row_tolerance(c), "together");
}

// The same bits in one launch and in several, with decisions made elsewhere, with any number of blocks, in any order.
void check_bits(const Case& c, const std::vector<int64_t>& of) {
  const AdamWGroup o = options(c);
  Sample first(c, of, 11, kManyMagnitudes);
  Placed placed(first);
  placed.step(groups_of(o));
  const auto is_same = [&](const Sample& sample, const Placed& other, const std::string& how) {
    expect(sample.bytes() == first.bytes(), how + ", weights of " + describe(c));
    expect(memcmp(other.rows.data(), placed.rows.data(), other.rows.size() * sizeof(GramRow)) == 0,
           how + ", rows of " + describe(c));
  };
  for (unsigned seed : {1, 2, 3}) {
    cuda::shim::seed(seed), cuda::shim::resident_blocks = 1 + 3 * seed;
    Sample sample(c, of, 11, kManyMagnitudes);
    Placed again(sample);
    again.step(groups_of(o));
    is_same(sample, again, "another order");
  }
  cuda::shim::resident_blocks = 3, cuda::shim::cooperative = false;
  Sample second(c, of, 11, kManyMagnitudes);
  Placed apart(second);
  apart.step(groups_of(o));
  is_same(second, apart, "several launches");
  cuda::shim::cooperative = true;

  Sample third(c, of, 11, kManyMagnitudes);
  Placed elsewhere(third);
  elsewhere.plan.gram(groups_of(o), elsewhere.rows.data(), {});
  std::vector<WeightsRow> weights;
  for (const GramRow& row : elsewhere.rows) weights.push_back(rule_weights(c.rule, c.decoupled, row));
  elsewhere.step(groups_of(o), kNoClipping, weights.data());
  is_same(third, elsewhere, "decided elsewhere");
}

// Alignment decides how elements are read, not which thread adds them up.
void check_skewed_bits(Case c) {
  std::vector<std::vector<double>> weights;
  for (bool skewed : {false, true}) {
    c.skewed = skewed;
    Sample sample(c, lengths(), 5);
    Placed(sample).step(groups_of(options(c)));
    for (Tensors& t : sample.tensors) {
      weights.emplace_back();
      for (int64_t i = 0; i < t.length; i++) weights.back().push_back(t.weight.get(i));
    }
  }
  const auto half = weights.begin() + static_cast<int64_t>(weights.size() / 2);
  expect(std::equal(weights.begin(), half, half), "bits of skewed operands, " + describe(c));
}

// What the device reads: overflow, loss scale, options.
void check_device_values(const Case& c) {
  AdamWGroup o = options(c);
  o.lr = 1.0 / 128;  // a float32 holds it
  const float overflow = 1, none = 0, scale = 8, lr = static_cast<float>(o.lr);
  Sample sample(c, lengths(), 3), untouched(c, lengths(), 3);
  const auto wanted = expected(sample, o, kNoClipping);
  Placed placed(sample);
  Groups groups = groups_of(o);
  groups[0].options.lr = 123, groups[0].sources.lr = {&lr, sizeof lr};
  groups[0].options.beta1 = 0, groups[0].sources.beta1 = {&o.beta1, sizeof(double)};
  groups[0].options.beta2 = 0, groups[0].sources.beta2 = {&o.beta2, sizeof(double)};
  groups[0].options.sp_decay = 1, groups[0].sources.sp_decay = {&o.sp_decay, sizeof(double)};
  groups[0].options.weight_decay = 1, groups[0].sources.weight_decay = {&o.weight_decay, sizeof(double)};
  groups[0].options.gradient_factor *= 8;
  placed.step(groups, kNoClipping, nullptr, {nullptr, &overflow, &scale, nullptr});
  placed.step(groups, 1.0, nullptr, {nullptr, &overflow, &scale, nullptr});
  expect(sample.bytes() == untouched.bytes() && sample.tensors[3].step == 0 && placed.rows[3].gg == 0,
         "nothing changes in an overflow, " + describe(c));
  placed.step(groups, kNoClipping, nullptr, {nullptr, &none, &scale, nullptr});
  compare(sample, wanted, placed.rows.data(), row_tolerance(c), "values of the device");
  Placed(untouched).step(groups_of(o));
  expect(sample.bytes() == untouched.bytes(), "bits with values of the device, " + describe(c));
  placed.step(groups, kNoClipping, nullptr, {nullptr, &overflow, &scale, nullptr});
  placed.step(groups, 1.0, nullptr, {nullptr, &overflow, &scale, nullptr});
  expect(sample.bytes() == untouched.bytes(), "nothing changes in a later overflow, " + describe(c));
}

// Several forms and groups in one list.
struct Mixed {
  explicit Mixed(bool together) {
    std::vector<Parameter> parameters;
    for (const Case& c : {Case{DType::float32, DType::float32, Rule::grod, true, false, false, false},
                          Case{DType::bfloat16, DType::bfloat16, Rule::dtnh, false, false, true, false},
                          Case{DType::float64, DType::float64, Rule::grod, true, true, false, false}}) {
      samples.emplace_back(c, lengths(), 17 + groups.size());
      for (Parameter p : samples.back().parameters()) {
        p.group = static_cast<int32_t>(groups.size());
        parameters.push_back(p);
      }
      groups.push_back({options(c), {}});
      groups.back().options.together = together && groups.size() < 3;
    }
    placed = std::make_unique<Placed>(parameters);
  }

  std::deque<Sample> samples;
  Groups groups;
  std::unique_ptr<Placed> placed;
};

void check_mixed(bool together) {
  Mixed mixed(together);
  std::vector<std::vector<Expected>> wanted;
  for (size_t k = 0; k < 3; k++) wanted.push_back(expected(mixed.samples[k], mixed.groups[k].options, kNoClipping));
  mixed.placed->step(mixed.groups);
  const GramRow* rows = mixed.placed->rows.data();
  for (size_t k = 0; k < 3; rows += wanted[k].size(), k++)
    compare(mixed.samples[k], wanted[k], rows, row_tolerance(mixed.samples[k].of), "among others");
}

// Step after step, in one launch and in several.
void check_repeated() {
  Mixed one(false), several(false);
  for (int step = 0; step < 4; step++) {
    one.placed->step(one.groups);
    cuda::shim::cooperative = false;
    several.placed->step(several.groups);
    cuda::shim::cooperative = true;
  }
  for (size_t k = 0; k < 3; k++) expect(one.samples[k].bytes() == several.samples[k].bytes(), "bits after four steps");
}

// A tensor whose norm is not finite is not clipped, and does not clip the others.
void check_clipped_beside_infinity() {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, false, false, false, false};
  const AdamWGroup o = options(c);
  Sample clipped(c, {700, 64, 5}, 3), alone(c, {700, 64, 5}, 3), finite(c, {700, 64}, 3);
  for (Sample* sample : {&clipped, &alone}) sample->tensors[2].gradient.set(1, std::numeric_limits<double>::infinity());
  const auto wanted = expected(finite, o, 0.5);
  Placed placed(clipped);
  placed.step(groups_of(o), 0.5);
  Placed(alone).step(groups_of(o));
  compare(clipped, wanted, placed.rows.data(), row_tolerance(c), "beside infinity");
  expect(clipped.tensors[2].mean.bytes() == alone.tensors[2].mean.bytes(), "infinity is not clipped");
}

// The buffer takes the first direction whole, and later ones dampened.
void check_sgd(bool nesterov) {
  const Case c = {DType::float32, DType::float32, Rule::sum, true, false, false, false};
  SGDGroup o = {};
  o.lr = 0.125, o.gradient_factor = 1, o.momentum = 0.5, o.dampening = 0.25, o.nesterov = nesterov;
  Sample sample(c, lengths(), 3), before(c, lengths(), 3);
  std::vector<Parameter> parameters = sample.parameters();
  for (Parameter& p : parameters) p.fresh = 1;
  Placed placed(parameters);
  for (int step = 0; step < 2; step++)
    placed.plan.step<SGDGroup>({{o, {}}}, nullptr, kNoClipping, placed.rows.data(), {});
  bool holds = true;
  for (size_t k = 0; k < parameters.size(); k++)
    for (int64_t i = 0; i < parameters[k].length; i++) {
      const double moved = (nesterov ? 1.5 + 1.625 : 1 + 1.25) * o.lr * before.tensors[k].gradient.get(i);
      holds &= std::abs(before.tensors[k].weight.get(i) - moved - sample.tensors[k].weight.get(i)) < 1e-6;
    }
  expect(holds, nesterov ? "two steps of SGD with Nesterov's momentum" : "two steps of SGD");
}

// amsgrad: after a step without a gradient the largest square is still the first.
void check_amsgrad(bool amsgrad) {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, false, false, false, false};
  AdamWGroup o = options(c);
  o.sp_decay = o.weight_decay = 0, o.amsgrad = amsgrad;
  Sample sample(c, {1000}, 3), before(c, {1000}, 3);
  std::vector<Parameter> parameters = sample.parameters();
  std::vector<float> largest(1000), zeros(1000);
  parameters[0].state[2] = reinterpret_cast<char*>(largest.data());
  Placed placed(parameters);
  placed.step(groups_of(o));
  placed.plan.renew({static_cast<int64_t>(reinterpret_cast<uintptr_t>(zeros.data()))}, {});
  placed.step(groups_of(o));
  bool holds = true;
  for (int64_t i = 0; i < 1000; i++) {
    const double g = o.gradient_factor * before.tensors[0].gradient.get(i), mean = 0.1 * g, square = 0.01 * g * g;
    const double root = std::sqrt((amsgrad ? square : 0.99 * square) / (1 - 0.99 * 0.99));
    const double moved = o.lr * (g / (std::abs(g) + o.eps) + 0.9 * mean / (1 - 0.9 * 0.9) / (root + o.eps));
    holds &= std::abs(before.tensors[0].weight.get(i) - moved - sample.tensors[0].weight.get(i)) < 1e-6;
  }
  expect(holds, "two steps of AdamW, the second without a gradient");
}

// Addresses that are new reach the device, a captured call's in memory of its own.
void check_renewed() {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, true, false, false, false};
  const Groups groups = groups_of(options(c));
  Sample renewed(c, lengths(), 3), captured(c, lengths(), 3), anew(c, lengths(), 3), other(c, lengths(), 4);
  std::vector<int64_t> gradients;
  for (Tensors& t : other.tensors) gradients.push_back(reinterpret_cast<uintptr_t>(t.gradient.address()));
  Placed first(renewed), second(captured), third(anew);
  for (Placed* placed : {&first, &second, &third}) placed->step(groups);
  std::vector<uint64_t> addresses(second.plan.address_count());
  first.plan.renew(gradients, {}), second.plan.renew(gradients, {});
  first.step(groups);
  second.step(groups, kNoClipping, nullptr, {nullptr, nullptr, nullptr, addresses.data()});
  std::vector<Parameter> parameters = anew.parameters();
  for (size_t k = 0; k < parameters.size(); k++) parameters[k].gradient = other.tensors[k].gradient.address();
  Placed(parameters).step(groups);
  expect(renewed.bytes() == anew.bytes(), "new addresses");
  expect(captured.bytes() == anew.bytes(), "new addresses of a captured call");
}

// Pieces cover a parameter, begin where vectors do, and are few enough for a warp.
void check_schedule() {
  for (int64_t length :
       {int64_t{cuda::kSmall} + 1, 5 * int64_t{cuda::kPiece} - 1, 2 * int64_t{cuda::kPiece} * cuda::kMostPieces + 77,
        (int64_t{1} << 31) + 3, int64_t{8} << 30}) {
    Parameter p = {};
    p.length = length, p.dtype = p.start_dtype = DType::float32;
    int64_t end = 0;
    bool holds = true;
    const cuda::Schedule schedule({p});
    for (const cuda::Piece& piece : schedule.pieces) {
      holds &= piece.offset == end && piece.offset % cuda::kPiece == 0 && piece.length > 0;
      end += piece.length;
    }
    expect(holds && end == length && schedule.piece_count[0] <= cuda::kMostPieces,
           "pieces of length " + std::to_string(length));
  }
}

// More addresses than one launch carries.
void check_thousands() {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, true, false, false, false};
  check_case(c, std::vector<int64_t>(10000, 5), "thousands");
  for (unsigned seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    cuda::shim::seed(seed);
    check_together(c, true, 0.5, std::vector<int64_t>(1000, 5));  // each warp has some
  }
}

// As many pieces as a parameter may have, each longer than kPiece.
void check_long(DType dtype) {
  const std::vector<int64_t> of = {2 * int64_t{cuda::kPiece} * cuda::kMostPieces + 77, 3};
  check_case({dtype, dtype, Rule::dtnh, true, false, false, false}, of, "long");
  check_bits({dtype, dtype, Rule::sum, true, false, false, false}, of);
}

// A captured step reads its own addresses, and the options of whenever it is replayed.
void check_capture() {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, true, false, false, false};
  Sample sample(c, lengths(), 3);
  Placed placed(sample);
  Groups groups = groups_of(options(c));
  placed.step(groups);
  std::vector<uint64_t> addresses(placed.plan.address_count());
  placed.step(groups, kNoClipping, nullptr, {nullptr, nullptr, nullptr, addresses.data()});
  expect(addresses[4] == reinterpret_cast<uintptr_t>(sample.tensors[4].gradient.address()), "captured addresses");
  groups[0].options.lr = 0.5;
  bool refused = false;
  try {
    placed.step(groups, kNoClipping, nullptr, {nullptr, nullptr, nullptr, addresses.data()});
  } catch (const std::runtime_error&) {
    refused = true;
  }
  placed.plan.write_options(groups, {});
  placed.step(groups, kNoClipping, nullptr, {nullptr, nullptr, nullptr, addresses.data()});
  expect(refused && sample.tensors[4].step == 3, "options that changed before a capture");
}

void step_on_cpu(TensorList& list, cpu::Schedule& schedule, std::vector<SGDGroup>& groups, cpu::Decision decision,
                 GramRow* rows) {
  cpu::sgd(list, schedule, groups, decision, rows);
}
void step_on_cpu(TensorList& list, cpu::Schedule& schedule, std::vector<AdamWGroup>& groups, cpu::Decision decision,
                 GramRow* rows) {
  cpu::adamw(list, schedule, groups, decision, rows);
}

// Moments in fewer bits, and the weights beside them, are the CPU's bits step after step, where the decision is the
// same: Gram numbers are added up in another order there. in_one_launch: beside a group whose rule needs a look.
template <class Options>
void check_moments_of_cpu(const Case& c, const Options& o, const std::vector<int64_t>& of, bool in_one_launch) {
  Sample on_cpu(c, of, 19), on_cuda(c, of, 19);
  std::vector<Parameter> parameters = on_cpu.parameters(), same = on_cuda.parameters();
  for (size_t k = 0; k < of.size(); k++) parameters[k].fresh = same[k].fresh = 1;
  TensorList list(parameters);
  cpu::Schedule schedule(list);
  Placed placed(same);
  std::vector<Options> groups = {o};
  std::vector<cuda::DeviceGroup<Options>> cuda_groups = {{o, {}}, {o, {}}};
  cuda_groups[1].options.rule = in_one_launch ? Rule::dtnh : Rule::sum;
  std::vector<GramRow> rows(of.size());
  std::mt19937 random(29);
  for (int step = 1; step <= 3; step++) {
    std::vector<WeightsRow> weights;
    placed.plan.gram<Options>(cuda_groups, placed.rows.data(), {});
    for (const GramRow& row : placed.rows) weights.push_back(rule_weights(o.rule, o.decoupled, row));
    step_on_cpu(list, schedule, groups, {weights.data(), kNoClipping}, rows.data());
    placed.plan.step<Options>(cuda_groups, o.rule == Rule::sum ? nullptr : weights.data(), kNoClipping,
                              placed.rows.data(), {});
    expect(on_cpu.bytes() == on_cuda.bytes(), "the CPU's bits in step " + std::to_string(step) + " of " + describe(c));
    for (size_t k = 0; k < of.size(); k++) {
      on_cpu.tensors[k].gradient.fill(random, 0.1, 3);
      if (step == 1 && of[k])
        on_cpu.tensors[k].gradient.set(of[k] / 2, kNoClipping);  // infinite: so is its block's scale
      for (int64_t i = 0; i < of[k]; i++) on_cuda.tensors[k].gradient.set(i, on_cpu.tensors[k].gradient.get(i));
    }
  }
}

// Every dtype, coupled and not, with a penalty and without, on even and odd addresses.
void check_narrow_moments(MomentFormat format) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (int k = 0; k < 4; k++) {
      const bool decoupled = k % 2, penalised = k == 1 || k == 2, skewed = k >= 2, low = dtype != DType::float32;
      Case c = {dtype, DType::bfloat16, Rule::sum, decoupled, penalised, low && !penalised, skewed, format};
      AdamWGroup adamw = options(c);
      SGDGroup sgd = {};
      static_cast<Group&>(sgd) = adamw;
      sgd.momentum = 0.9, sgd.dampening = 0.25;
      for (const bool one : {false, true}) {
        adamw.amsgrad = sgd.nesterov = one;
        check_moments_of_cpu(c, adamw, lengths(), one), check_moments_of_cpu(c, sgd, lengths(), one);
      }
      c.rule = Rule::dtnh;
      check_moments_of_cpu(c, options(c), lengths(), true);
      check_case(c, lengths(), "alone");
      if (skewed) continue;
      check_together(c, false, 0.5);
      check_bits(c, lengths());
      check_skewed_bits(c);
      if (low) check_device_values(c);
    }
  const std::vector<int64_t> several_blocks_a_warp = {2 * int64_t{cuda::kPiece} * cuda::kMostPieces + 77};
  const Case c = {DType::float32, DType::float32, Rule::sum, true, false, false, false, format};
  check_moments_of_cpu(c, options(c), several_blocks_a_warp, true);
}

}  // namespace

int main() {
  for_each_case([](const Case& c) {
    const bool is_usual = c.start_dtype == c.dtype || (c.dtype == DType::float32 && c.start_dtype == DType::bfloat16);
    if (c.rule == Rule::dtnh || c.start_dtype == c.dtype) check_case(c, lengths(), "alone");
    if (!is_usual || c.skewed) return;
    check_together(c, true, kNoClipping), check_together(c, true, 0.5);
    if (c.rule == Rule::grod || c.rule == Rule::pcgrad) return;
    check_together(c, false, 0.5);
    check_bits(c, lengths());
    check_skewed_bits(c);
    check_device_values(c);
  });
  check_thousands();
  check_capture();
  check_schedule();
  check_renewed();
  check_repeated();
  check_mixed(false), check_mixed(true);
  check_clipped_beside_infinity();
  check_sgd(false), check_sgd(true);
  check_amsgrad(false), check_amsgrad(true);
  for (DType dtype : kDTypes) check_long(dtype);
  check_narrow_moments(MomentFormat::bfloat16), check_narrow_moments(MomentFormat::eight_bits);
  return verdict();
}
