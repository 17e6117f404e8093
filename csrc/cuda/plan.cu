#include "plan.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "launches.h"
#include "layout.h"
#include "words.h"

namespace pytl::cuda {
namespace {

size_t group_count(const TensorList& list) {
  int32_t last = -1;
  for (const Parameter& p : list.parameters()) last = std::max(last, p.group);
  return static_cast<size_t>(last + 1);
}

cudaStream_t stream_of(const Call& call) { return static_cast<cudaStream_t>(call.stream); }

template <class T>
void copy_to(T* to, const std::vector<T>& from) {
  std::copy(from.begin(), from.end(), to);
}

template <class Options>
std::vector<uint64_t> words_of(const std::vector<DeviceGroup<Options>>& groups) {
  static_assert(std::is_trivially_copyable_v<DeviceGroup<Options>> && sizeof(DeviceGroup<Options>) % 8 == 0,
                "groups travel as words");
  std::vector<uint64_t> words(groups.size() * sizeof(DeviceGroup<Options>) / 8);
  if (!words.empty()) memcpy(words.data(), groups.data(), words.size() * 8);
  return words;
}

template <class Visit>
void for_each_form(const Schedule& schedule, Visit visit) {
  for (size_t form = 0; form < kForms; form++)
    if (schedule.ranges[form].begin < schedule.ranges[form].end)
      visit(static_cast<FormId>(form), schedule.ranges[form]);
}

// The rule "sum" by itself needs no look before the step.
template <class Options>
bool all_are_sums(const std::vector<DeviceGroup<Options>>& groups) {
  return std::all_of(groups.begin(), groups.end(), [](const auto& g) { return g.options.rule == Rule::sum; });
}

template <class Options>
bool any_is_together(const std::vector<DeviceGroup<Options>>& groups) {
  return std::any_of(groups.begin(), groups.end(), [](const auto& g) { return g.options.together; });
}

}  // namespace

Plan::Plan(std::vector<Parameter> parameters, int device)
    : list_(std::move(parameters)),
      device_(device),
      groups_(group_count(list_)),
      schedule_(std::make_unique<const Schedule>(list_.parameters())) {}

Plan::~Plan() = default;

std::vector<char> Plan::tables() const {
  const std::vector<Parameter>& parameters = list_.parameters();
  Layout measured(nullptr);
  StaticTables(measured, parameters.size(), *schedule_);
  std::vector<char> bytes(measured.bytes());
  Layout layout(bytes.data());
  const StaticTables t(layout, parameters.size(), *schedule_);
  copy_to(t.parameters, parameters), copy_to(t.pieces, schedule_->pieces);
  copy_to(t.first_piece, schedule_->first_piece), copy_to(t.piece_count, schedule_->piece_count);
  copy_to(t.small, schedule_->small);
  return bytes;
}

size_t Plan::scratch_bytes() const {
  Layout measured(nullptr);
  Scratch(measured, list_.parameters().size(), groups_, *schedule_);
  return measured.bytes();
}

bool Plan::renew(const std::vector<int64_t>& gradients, const std::vector<int64_t>& penalties) {
  const std::vector<Parameter>& parameters = list_.parameters();
  const auto same = [](const Parameter& p, int64_t penalty) { return !p.penalty == !penalty; };
  if (penalties.size() == parameters.size() &&
      !std::equal(parameters.begin(), parameters.end(), penalties.begin(), same))
    return false;
  list_.renew(gradients, penalties);
  addresses_are_on_device_ = false;
  return true;
}

void Plan::write_addresses(const Call& call) {
  if (!call.addresses && addresses_are_on_device_) return;
  std::vector<uint64_t> addresses;
  addresses.reserve(address_count());
  for (const Parameter& p : list_.parameters()) addresses.push_back(reinterpret_cast<uintptr_t>(p.gradient));
  for (const Parameter& p : list_.parameters()) addresses.push_back(reinterpret_cast<uintptr_t>(p.penalty));
  if (call.addresses) return write_words(addresses, call.addresses, stream_of(call));
  Layout layout(scratch_);
  write_words(addresses, Scratch(layout, list_.parameters().size(), groups_, *schedule_).addresses, stream_of(call));
  addresses_are_on_device_ = true;
}

template <class Options>
void Plan::write_options(const std::vector<DeviceGroup<Options>>& groups, const Call& call) {
  list_.check_groups(groups.size());
  std::vector<uint64_t> words = words_of(groups);
  words.resize(std::min(words.size(), groups_ * sizeof(DeviceGroup<Options>) / 8));
  if (words == options_on_device_) return;
  if (call.addresses)
    throw std::runtime_error(
        "options must be on the device before a step is captured, so that its replays follow them; got options that "
        "have changed since the last step: call write_options() before the capture");
  const DeviceGuard guard(device_);
  Layout layout(scratch_);
  write_words(words, Scratch(layout, list_.parameters().size(), groups_, *schedule_).groups, stream_of(call));
  options_on_device_.swap(words);
}

template <class Options>
Tables<Options> Plan::prepare(const std::vector<DeviceGroup<Options>>& groups, GramRow* rows, double max_norm,
                              const Call& call) {
  write_options(groups, call);
  write_addresses(call);
  const size_t count = list_.parameters().size();
  Layout tables(tables_), scratch(scratch_);
  const StaticTables s(tables, count, *schedule_);
  const Scratch m(scratch, count, groups_, *schedule_);
  const auto* addresses = reinterpret_cast<const char* const*>(call.addresses ? call.addresses : m.addresses);
  Tables<Options> t = {};
  t.parameters = s.parameters, t.gradients = addresses, t.penalties = addresses + count;
  t.groups = reinterpret_cast<const DeviceGroup<Options>*>(m.groups);
  t.pieces = s.pieces, t.first_piece = s.first_piece, t.piece_count = s.piece_count, t.small = s.small;
  t.count = static_cast<int32_t>(count), t.device = device_;
  t.sums = m.sums, t.arrived = m.arrived, t.decided = m.decided, t.launches = m.launches, t.left = m.left;
  t.decisions = m.decisions, t.weights = m.weights, t.rows = rows;
  t.found_inf = call.found_inf, t.loss_scale = call.loss_scale, t.max_norm = max_norm;
  return t;
}

template <class Options>
void Plan::gram(const std::vector<DeviceGroup<Options>>& groups, GramRow* rows, const Call& call) {
  const DeviceGuard guard(device_);
  const Tables<Options> t = prepare(groups, rows, 0, call);
  for_each_form(*schedule_,
                [&](FormId form, Range pieces) { Launches<Options>::look(form, t, pieces, stream_of(call)); });
}

template <class Options>
void Plan::step(const std::vector<DeviceGroup<Options>>& groups, const WeightsRow* weights, double max_norm,
                GramRow* rows, const Call& call) {
  using Launch = Launches<Options>;
  if (list_.parameters().empty()) return;
  list_.check_groups(groups.size());
  list_.check_states([&](const Parameter& p) { return groups[p.group].options.states(); });
  const DeviceGuard guard(device_);
  const Tables<Options> t = prepare(groups, rows, max_norm, call);
  const cudaStream_t stream = stream_of(call);
  const auto look = [&](FormId form, Range pieces) { Launch::look(form, t, pieces, stream); };
  const auto step = [&](FormId form, Range pieces) { Launch::step(form, t, pieces, stream); };

  if (weights) {
    Launch::decide_each(t, weights, false, stream);
    for_each_form(*schedule_, step);
  } else if (any_is_together(groups) || std::isfinite(max_norm)) {
    for_each_form(*schedule_, look);
    Launch::decide_together(t, stream);
    for_each_form(*schedule_, step);
  } else if (all_are_sums(groups)) {
    Launch::decide_each(t, nullptr, false, stream);
    for_each_form(*schedule_, [&](FormId form, Range pieces) {
      if (!is_full(form)) return Launch::step_looking(form, t, pieces, stream);
      look(form, pieces);
      step(form, pieces);
    });
  } else if (can_launch_together()) {
    for_each_form(*schedule_, [&](FormId form, Range pieces) { Launch::look_and_step(form, t, pieces, stream); });
  } else {
    for_each_form(*schedule_, look);
    Launch::decide_each(t, nullptr, true, stream);
    for_each_form(*schedule_, step);
  }
}

#define PYTL_INSTANTIATE(Options)                                                                         \
  template void Plan::gram(const std::vector<DeviceGroup<Options>>&, GramRow*, const Call&);              \
  template void Plan::step(const std::vector<DeviceGroup<Options>>&, const WeightsRow*, double, GramRow*, \
                           const Call&);                                                                  \
  template void Plan::write_options(const std::vector<DeviceGroup<Options>>&, const Call&);
PYTL_INSTANTIATE(SGDGroup)
PYTL_INSTANTIATE(AdamWGroup)

}  // namespace pytl::cuda
