// The kernels of csrc/cuda, as they stand, on the CPU (shim.h), against a plain loop in float64: over dtypes,
// addresses, lengths around every boundary of vectors, warps, small parameters, pieces and rounds, and every way to a
// decision.
#include <limits>

#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/schedule.h"
#include "cases.h"

using namespace pytl;
using namespace pytl::cases;

namespace {

constexpr double kNoClipping = std::numeric_limits<double>::infinity();

using Groups = std::vector<cuda::DeviceGroup<AdamWGroup>>;

Groups groups_of(const AdamWGroup& options) { return {{options, {}}}; }

// A plan with its memory, which is not larger than it must be.
struct Placed {
  explicit Placed(Sample& sample)
      : plan(sample.parameters(), 0),
        tables(plan.tables()),
        scratch(plan.scratch_bytes()),
        rows(sample.tensors.size()) {
    plan.place(tables.data(), scratch.data());
  }

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
void check_together(const Case& c, bool together, double max_norm) {
  Sample sample(c, lengths(), 13);
  AdamWGroup o = options(c);
  o.together = together;
  const auto wanted = expected(sample, o, max_norm);
  Placed placed(sample);
  placed.step(groups_of(o), max_norm);
  compare(sample, wanted, placed.rows.data(), row_tolerance(c), "together");
}

// The same bits in one launch and in several, with decisions made elsewhere, with any number of blocks, in any order.
void check_bits(const Case& c) {
  const AdamWGroup o = options(c);
  Sample first(c, lengths(), 11);
  Placed placed(first);
  placed.step(groups_of(o));
  const auto is_same = [&](const Sample& sample, const Placed& other, const std::string& how) {
    expect(sample.bytes() == first.bytes(), how + ", weights of " + describe(c));
    expect(memcmp(other.rows.data(), placed.rows.data(), other.rows.size() * sizeof(GramRow)) == 0,
           how + ", rows of " + describe(c));
  };
  for (unsigned seed : {1, 2, 3}) {
    cuda::shim::seed(seed), cuda::shim::resident_blocks = 1 + 3 * seed;
    Sample sample(c, lengths(), 11);
    Placed again(sample);
    again.step(groups_of(o));
    is_same(sample, again, "another order");
  }
  cuda::shim::resident_blocks = 3, cuda::shim::cooperative = false;
  Sample second(c, lengths(), 11);
  Placed apart(second);
  apart.step(groups_of(o));
  is_same(second, apart, "several launches");
  cuda::shim::cooperative = true;

  Sample third(c, lengths(), 11);
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
  groups[0].options.lr = 123, groups[0].sources.lr = {&lr, DType::float32};
  groups[0].options.beta1 = 0, groups[0].sources.beta1 = {&o.beta1, DType::float64};
  groups[0].options.sp_decay = 1, groups[0].sources.sp_decay = {&o.sp_decay, DType::float64};
  groups[0].options.gradient_factor *= 8;
  placed.step(groups, kNoClipping, nullptr, {nullptr, &overflow, &scale, nullptr});
  placed.step(groups, 1.0, nullptr, {nullptr, &overflow, &scale, nullptr});
  expect(sample.bytes() == untouched.bytes() && sample.tensors[3].step == 0 && placed.rows[3].gg == 0,
         "nothing changes in an overflow, " + describe(c));
  placed.step(groups, kNoClipping, nullptr, {nullptr, &none, &scale, nullptr});
  compare(sample, wanted, placed.rows.data(), row_tolerance(c), "values of the device");
}

// More addresses than one launch carries.
void check_thousands() {
  const Case c = {DType::float32, DType::float32, Rule::dtnh, true, false, false, false};
  check_case(c, std::vector<int64_t>(10000, 5), "thousands");
}

// As many pieces as a parameter may have, each longer than kPiece.
void check_long(DType dtype) {
  const Case c = {dtype, dtype, Rule::dtnh, true, false, false, false};
  check_case(c, {2 * int64_t{cuda::kPiece} * cuda::kMostPieces + 77, 3}, "long");
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

}  // namespace

int main() {
  for_each_case([](const Case& c) {
    const bool is_usual = c.start_dtype == c.dtype || (c.dtype == DType::float32 && c.start_dtype == DType::bfloat16);
    if (c.rule == Rule::dtnh || c.start_dtype == c.dtype) check_case(c, lengths(), "alone");
    if (!is_usual || c.skewed) return;
    check_together(c, true, kNoClipping), check_together(c, true, 0.5);
    if (c.rule == Rule::grod || c.rule == Rule::pcgrad) return;
    check_together(c, false, 0.5);
    check_bits(c);
    check_skewed_bits(c);
    check_device_values(c);
  });
  check_thousands();
  check_capture();
  for (DType dtype : kDTypes) check_long(dtype);
  return verdict();
}
