#include "step.h"

#include <algorithm>

#include "loops.h"
#include "threads.h"

namespace pytl::cpu {
namespace {

constexpr int64_t kWorthThreads = 1 << 14;  // elements: below, waking the threads costs more than the work

// One tile of a parameter, widened. Operands whose dtype is Real are used where they lie. States are there for a step.
template <class Real>
class Staged {
 public:
  Staged(const Parameter& p, int64_t offset, int64_t length, bool with_states)
      : p_(p), offset_(offset), length_(length) {
    tile_.length = length;
    tile_.gradient = widened(p.gradient, p.dtype, gradient_);
    tile_.penalty = p.penalty ? widened(p.penalty, p.dtype, penalty_) : zeros();
    tile_.start = p.start ? widened(p.start, p.start_dtype, start_) : zeros();
    for (int k = 0; k < 3; k++) tile_.state[k] = with_states && p.state[k] ? state(k) : nullptr;
    if (p.compensation) {
      tile_.weight = weight_;
      loops<Real>().widen_sum(p.dtype, at(p.weight, p.dtype), at(p.compensation, p.dtype), length, weight_);
    } else {
      tile_.weight = const_cast<Real*>(widened(p.weight, p.dtype, weight_));
    }
  }

  const Tile<Real>& tile() const { return tile_; }

  void store() {
    if (p_.compensation)
      loops<Real>().narrow_sum(p_.dtype, weight_, length_, at(p_.weight, p_.dtype), at(p_.compensation, p_.dtype));
    else if (tile_.weight == weight_)
      loops<Real>().narrow(p_.dtype, weight_, length_, at(p_.weight, p_.dtype));
    for (int k = 0; k < 3; k++)
      if (tile_.state[k] == state_[k])
        loops<Real>().store_moments(moments(k), state_[k], length_, offset_,
                                    moment_seed(static_cast<uint32_t>(*p_.step + 1.0), k));
  }

 private:
  template <class Byte>
  Byte* at(Byte* operand, DType dtype) const {
    return operand + offset_ * element_size(dtype);
  }

  Real* state(int k) {
    if (p_.moments == MomentFormat::full) return reinterpret_cast<Real*>(p_.state[k]) + offset_;
    loops<Real>().load_moments(moments(k), length_, state_[k]);
    return state_[k];
  }

  // The first state is a mean, or momentum; those behind it are of squares.
  Moments moments(int k) const {
    float* scales = p_.scale[k] ? p_.scale[k] + offset_ / kMomentBlock : nullptr;
    return {p_.moments, k > 0, p_.state[k] + offset_ * moment_size(p_.moments, p_.dtype), scales};
  }

  const Real* widened(const char* operand, DType dtype, Real* buffer) const {
    const char* from = at(operand, dtype);
    constexpr DType own = sizeof(Real) == 8 ? DType::float64 : DType::float32;
    if (dtype == own) return reinterpret_cast<const Real*>(from);
    loops<Real>().widen(dtype, from, length_, buffer);
    return buffer;
  }

  static const Real* zeros() {
    alignas(64) static const Real values[kTile] = {};
    return values;
  }

  const Parameter& p_;
  const int64_t offset_, length_;
  Tile<Real> tile_;
  alignas(64) Real weight_[kTile], gradient_[kTile], start_[kTile], penalty_[kTile], state_[3][kTile];
};

template <class Real>
Terms<Real> terms(const Parameter& p, const Group& group, const WeightsRow& weights) {
  Terms<Real> t = plain_terms<Real>(p, group);
  t.take(weights);
  return t;
}

WeightsRow weights_of(const Group& group, const GramRow& row) { return rule_weights(group.rule, group.decoupled, row); }

template <class Real>
void step_on_tile(const Tile<Real>& tile, const Terms<Real>& terms, const SGD<Real>& formula, const SGDGroup& o) {
  loops<Real>().sgd(tile, terms, formula, o.kind());
}
template <class Real>
void step_on_tile(const Tile<Real>& tile, const Terms<Real>& terms, const AdamW<Real>& formula, const AdamWGroup& o) {
  loops<Real>().adamw(tile, terms, formula, o.amsgrad);
}

template <class Visit>
void for_each_tile(const Schedule::Chunk& chunk, Visit visit) {
  for (int64_t offset = chunk.offset; offset < chunk.offset + chunk.length; offset += kTile)
    visit(offset, std::min(kTile, chunk.offset + chunk.length - offset));
}

template <class Real>
GramRow look_at(const Parameter& p, const Group& group, const Schedule::Chunk& chunk) {
  const Terms<Real> t = plain_terms<Real>(p, group);
  GramSums sums(t.gram_numbers());
  for_each_tile(chunk, [&](int64_t offset, int64_t length) {
    loops<Real>().gram(Staged<Real>(p, offset, length, false).tile(), t, sums);
  });
  return sums.total();
}

// Takes the step on a chunk; with `look`, it looks on the way, for no more traffic.
template <class Real, class Options>
GramRow step_on(const Parameter& p, const Options& group, const Schedule::Chunk& chunk, const WeightsRow& weights,
                bool look) {
  const Terms<Real> t = terms<Real>(p, group, weights);
  const auto formula = group.template formula<Real>(*p.step + 1.0, p.fresh);
  GramSums sums(look ? t.gram_numbers() : 0);
  for_each_tile(chunk, [&](int64_t offset, int64_t length) {
    Staged<Real> staged(p, offset, length, true);
    if (look) loops<Real>().gram(staged.tile(), t, sums);
    step_on_tile(staged.tile(), t, formula, group);
    staged.store();
  });
  return sums.total();
}

// Looks and steps on a parameter of one tile, which is staged once for both.
template <class Real, class Options>
GramRow look_and_step_on(const Parameter& p, const Options& group) {
  Staged<Real> staged(p, 0, p.length, true);
  Terms<Real> t = plain_terms<Real>(p, group);
  GramSums sums(t.gram_numbers());
  loops<Real>().gram(staged.tile(), t, sums);
  const GramRow row = sums.total();
  t.take(weights_of(group, row));
  step_on_tile(staged.tile(), t, group.template formula<Real>(*p.step + 1.0, p.fresh), group);
  staged.store();
  return row;
}

// One pass over a list.
template <class Options>
struct Pass {
  const std::vector<Parameter>& parameters;
  Schedule& schedule;
  const std::vector<Options>& groups;

  void look(int32_t c) const {
    const auto& chunk = schedule.chunks[c];
    const Parameter& p = parameters[chunk.parameter];
    const Group& group = groups[p.group];
    schedule.sums[c] = p.dtype == DType::float64 ? look_at<double>(p, group, chunk) : look_at<float>(p, group, chunk);
  }

  GramRow total(int32_t parameter) const {
    GramRow row = {};
    for (int32_t c = schedule.first_chunk[parameter]; c < schedule.first_chunk[parameter + 1]; c++)
      row += schedule.sums[c];
    return row;
  }

  void totals(GramRow* rows) const {
    for (size_t i = 0; i < parameters.size(); i++) rows[i] = total(static_cast<int32_t>(i));
  }

  template <class Visit>
  void for_each_chunk(int threads, Visit visit) const {
    const int32_t pieces = static_cast<int32_t>(schedule.pieces.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int32_t i = 0; i < pieces; i++)
      for (int32_t c = schedule.pieces[i].begin; c < schedule.pieces[i].end; c++) visit(c);
  }
};

template <class Options>
struct StepPass : Pass<Options> {
  using Base = Pass<Options>;
  using Base::schedule, Base::parameters, Base::groups;

  GramRow step(int32_t c, const WeightsRow& weights, bool look = false) const {
    const auto& chunk = schedule.chunks[c];
    const Parameter& p = parameters[chunk.parameter];
    const auto& group = groups[p.group];
    return p.dtype == DType::float64 ? step_on<double>(p, group, chunk, weights, look)
                                     : step_on<float>(p, group, chunk, weights, look);
  }

  // Looks at some of a parameter's chunks and, once `meet` has returned, steps on them: backwards, from those that are
  // still in the cache. The rule "sum" has no need of its Gram numbers and looks in passing.
  template <class Meet>
  void look_and_step(int32_t parameter, int32_t begin, int32_t end, Meet meet) const {
    const Parameter& p = parameters[parameter];
    const auto& group = groups[p.group];
    if (0 < p.length && p.length <= kTile) {
      schedule.sums[begin] =
          p.dtype == DType::float64 ? look_and_step_on<double>(p, group) : look_and_step_on<float>(p, group);
      return;
    }
    if (group.rule == Rule::sum) {
      for (int32_t c = begin; c < end; c++) schedule.sums[c] = step(c, plain_weights(), true);
      return;
    }
    for (int32_t c = begin; c < end; c++) this->look(c);
    meet();
    const WeightsRow weights = weights_of(group, this->total(parameter));
    for (int32_t c = end; c-- > begin;) step(c, weights);
  }

  // Each thread owns whole parameters; only those too long for that are shared, with one barrier each.
  void look_and_step_all(int threads) const {
    const std::vector<int32_t>& first = schedule.first_chunk;
    const int32_t runs = static_cast<int32_t>(schedule.runs.size());
#pragma omp parallel num_threads(threads)
    {
      const int index = thread_index(), count = thread_count();
      for (int32_t t : schedule.shared) {
        const int32_t chunks = first[t + 1] - first[t];
        look_and_step(t, first[t] + chunks * index / count, first[t] + chunks * (index + 1) / count, [] {
#pragma omp barrier
        });
      }
#pragma omp for schedule(dynamic) nowait
      for (int32_t i = 0; i < runs; i++)
        for (int32_t k = schedule.runs[i].begin; k < schedule.runs[i].end; k++) {
          const int32_t t = schedule.owned[k];
          look_and_step(t, first[t], first[t + 1], [] {});
        }
    }
  }
};

int threads_for(const TensorList& list) {
  int64_t elements = 0;
  for (const Parameter& p : list.parameters()) elements += p.length;
  return elements < kWorthThreads ? 1 : max_threads();
}

// The weights of all parameters, once all have been looked at.
template <class Options>
void decide(const std::vector<Parameter>& parameters, const std::vector<Options>& groups, const GramRow* rows,
            double max_norm, WeightsRow* weights) {
  GramRow together[4] = {};  // one for each rule
  for (size_t i = 0; i < parameters.size(); i++) {
    const Group& group = groups[parameters[i].group];
    if (group.together) together[static_cast<int>(group.rule)] += rows[i];
  }
  double norms = 0;
  for (size_t i = 0; i < parameters.size(); i++) {
    const Group& group = groups[parameters[i].group];
    weights[i] = weights_of(group, group.together ? together[static_cast<int>(group.rule)] : rows[i]);
    const double norm = fed_norm(group.decoupled, rows[i], weights[i]);
    if (is_finite(norm)) norms += norm;
  }
  const double factor = clip_factor(norms, max_norm);
  for (size_t i = 0; i < parameters.size(); i++)
    if (is_finite(fed_norm(groups[parameters[i].group].decoupled, rows[i], weights[i]))) weights[i].scale = factor;
}

template <class Options>
void step_all(TensorList& list, Schedule& schedule, std::vector<Options>& groups, Decision decision, GramRow* rows) {
  list.check_groups(groups.size());
  list.check_states([&](const Parameter& p) { return groups[p.group].states(); });
  for (const Parameter& p : list.parameters()) groups[p.group].prepare(*p.step + 1.0);
  const StepPass<Options> pass{{list.parameters(), schedule, groups}};
  const int threads = threads_for(list);
  const bool alone = std::isinf(decision.max_norm) &&
                     std::none_of(groups.begin(), groups.end(), [](const Group& group) { return group.together; });
  if (!decision.weights && alone) {
    pass.look_and_step_all(threads);
    pass.totals(rows);
  } else {
    if (!decision.weights) {
      pass.for_each_chunk(threads, [&](int32_t c) { pass.look(c); });
      pass.totals(rows);
      decide(list.parameters(), groups, rows, decision.max_norm, schedule.weights.data());
      decision.weights = schedule.weights.data();
    }
    pass.for_each_chunk(threads, [&](int32_t c) { pass.step(c, decision.weights[schedule.chunks[c].parameter]); });
  }
  list.count_step();
}

}  // namespace

void gram(const TensorList& list, Schedule& schedule, const std::vector<Group>& groups, GramRow* rows) {
  list.check_groups(groups.size());
  const Pass<Group> pass{list.parameters(), schedule, groups};
  pass.for_each_chunk(threads_for(list), [&](int32_t c) { pass.look(c); });
  pass.totals(rows);
}

void sgd(TensorList& list, Schedule& schedule, std::vector<SGDGroup>& groups, Decision decision, GramRow* rows) {
  step_all(list, schedule, groups, decision, rows);
}

void adamw(TensorList& list, Schedule& schedule, std::vector<AdamWGroup>& groups, Decision decision, GramRow* rows) {
  step_all(list, schedule, groups, decision, rows);
}

}  // namespace pytl::cpu
