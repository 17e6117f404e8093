// The passes of csrc/cpu against a plain loop in float64, over dtypes, lengths around every boundary, odd addresses,
// rules, coupling and instruction sets. Buffers are as long as they must be and no longer: the sanitizers see the rest.
#include <limits>

#include "../../csrc/cpu/loops.h"
#include "../../csrc/cpu/step.h"
#include "cases.h"

using namespace pytl;
using namespace pytl::cases;

namespace {

const cpu::Decision kRulesDecide = {nullptr, std::numeric_limits<double>::infinity()};

void check_case(const Case& c, const std::vector<int64_t>& lengths) {
  Sample sample(c, lengths, 7);
  std::vector<AdamWGroup> groups = {options(c)};
  const auto wanted = expected(sample, groups[0], kRulesDecide.max_norm);
  TensorList list(sample.parameters());
  cpu::Schedule schedule(list);
  std::vector<GramRow> rows(lengths.size());
  cpu::adamw(list, schedule, groups, kRulesDecide, rows.data());
  compare(sample, wanted, rows.data(), c.dtype == DType::float64 ? 1e-13 : 1e-6, cpu::instruction_set());
}

// Looking first and stepping with the weights of the look is what a custom direction does; the bits must not differ.
void check_two_passes(const Case& c, const std::vector<int64_t>& lengths) {
  Sample one(c, lengths, 11), two(c, lengths, 11);
  std::vector<AdamWGroup> groups = {options(c)};
  const std::vector<Group> looks(groups.begin(), groups.end());
  std::vector<GramRow> rows(lengths.size()), looked(lengths.size());
  TensorList list(one.parameters()), same(two.parameters());
  cpu::Schedule schedule(list), other(same);
  cpu::adamw(list, schedule, groups, kRulesDecide, rows.data());
  cpu::gram(same, other, looks, looked.data());
  std::vector<WeightsRow> weights;
  for (const GramRow& row : looked) weights.push_back(rule_weights(c.rule, c.decoupled, row));
  cpu::adamw(same, other, groups, {weights.data(), 0}, nullptr);
  expect(memcmp(rows.data(), looked.data(), rows.size() * sizeof(GramRow)) == 0, "two looks of " + describe(c));
  expect(one.bytes() == two.bytes(), "two passes of " + describe(c));
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

void check_refusals() {
  const Case c = {DType::float32, DType::float32, Rule::sum, true, false, false, false};
  Sample sample(c, {4}, 1);
  const auto refused = [](Parameter p) {
    try {
      TensorList list({p});
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  const Parameter p = sample.parameters()[0];
  expect(!refused(p), "a sound parameter is taken");
  Parameter negative = p, odd = p, absent = p;
  negative.length = -1, odd.start += 1, absent.gradient = nullptr;
  expect(refused(negative) && refused(odd) && refused(absent), "an unsound parameter is refused");
}

}  // namespace

int main() {
  const std::vector<int64_t> shorts = {0, 1, 15, 16, 17, 511, 512, 513}, longs = {1025, 65535, 65536, 65537};
  check_conversions();
  check_refusals();
  for (const std::string& name : cpu::instruction_sets()) {
    cpu::use_instruction_set(name);
    for_each_case([&](const Case& c) { check_case(c, shorts), check_two_passes(c, shorts); });
    for_each_case([&](const Case& c) {
      if (c.start_dtype == c.dtype && c.rule == Rule::dtnh) check_case(c, longs), check_two_passes(c, longs);
    });
    const Case shared = {DType::float32, DType::bfloat16, Rule::dtnh, true, true, false, true};
    check_case(shared, {(1 << 20) + 3}), check_two_passes(shared, {(1 << 20) + 3});
    // The first step is taken with moments that nothing has rounded yet: it must be that of whole ones.
    for (const MomentFormat format : {MomentFormat::bfloat16, MomentFormat::eight_bits}) {
      const Case brain = {DType::bfloat16, DType::bfloat16, Rule::dtnh, true, false, true, false, format};
      const Case odd = {DType::float32, DType::bfloat16, Rule::grod, false, true, false, true, format};
      check_case(brain, shorts), check_two_passes(brain, shorts);
      check_case(odd, longs), check_two_passes(odd, longs);
    }
  }
  return verdict();
}
