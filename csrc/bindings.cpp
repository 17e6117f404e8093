// pybind11: integers for addresses, no torch types. Options are read by name from the Python object that holds them.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/loops.h"
#include "cpu/step.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace pytl {
namespace {

template <class Pointed>
Pointed* pointer(int64_t address) {
  return reinterpret_cast<Pointed*>(address);
}

Parameter parameter(const py::handle& operands) {
  const auto address = [&](const char* name) { return pointer<char>(operands.attr(name).cast<int64_t>()); };
  const auto states = operands.attr("states").cast<std::vector<int64_t>>();
  Parameter p = {};
  p.weight = address("weight");
  p.compensation = address("compensation");
  p.gradient = address("gradient");
  p.penalty = address("penalty");
  p.start = address("start");
  for (size_t k = 0; k < states.size() && k < 3; k++) p.state[k] = pointer<char>(states[k]);
  p.step = pointer<float>(operands.attr("step").cast<int64_t>());
  p.length = operands.attr("length").cast<int64_t>();
  p.group = operands.attr("group").cast<int32_t>();
  p.fresh = operands.attr("fresh").cast<bool>();
  p.dtype = operands.attr("dtype").cast<DType>();
  p.start_dtype = operands.attr("start_dtype").cast<DType>();
  return p;
}

void read(const py::handle& options, Group& group) {
  group.lr = options.attr("lr").cast<double>();
  group.sp_decay = options.attr("sp_decay").cast<double>();
  group.weight_decay = options.attr("weight_decay").cast<double>();
  group.gradient_factor = options.attr("gradient_factor").cast<double>();
  group.decoupled = options.attr("decoupled").cast<bool>();
  const auto granularity = options.attr("granularity").cast<std::string>();
  group.together = granularity == "global";
  if (!group.together && granularity != "tensor")
    throw std::invalid_argument("granularity must be one of tensor, global; got '" + granularity + "'");
  group.rule = options.attr("rule").cast<Rule>();
}

void read(const py::handle& options, SGDGroup& group) {
  read(options, static_cast<Group&>(group));
  group.momentum = options.attr("momentum").cast<double>();
  group.dampening = options.attr("dampening").cast<double>();
  group.nesterov = options.attr("nesterov").cast<bool>();
}

void read(const py::handle& options, AdamWGroup& group) {
  read(options, static_cast<Group&>(group));
  group.beta1 = options.attr("beta1").cast<double>();
  group.beta2 = options.attr("beta2").cast<double>();
  group.eps = options.attr("eps").cast<double>();
  group.amsgrad = options.attr("amsgrad").cast<bool>();
}

template <class Options>
std::vector<Options> read_groups(const py::sequence& groups) {
  std::vector<Options> options(groups.size());
  for (size_t i = 0; i < options.size(); i++) read(groups[i], options[i]);
  return options;
}

// A list of tensors, checked once, and how the threads share it.
struct Plan {
  explicit Plan(std::vector<Parameter> parameters) : list(std::move(parameters)), schedule(list) {}

  void gram(const py::sequence& groups, int64_t rows) {
    const auto options = read_groups<Group>(groups);
    py::gil_scoped_release unlocked;
    cpu::gram(list, schedule, options, pointer<GramRow>(rows));
  }
  // Weights that were decided elsewhere, or 0: the groups' rules decide, and clip to max_norm (infinity: not at all).
  void sgd(const py::sequence& groups, int64_t weights, int64_t rows, double max_norm) {
    auto options = read_groups<SGDGroup>(groups);
    py::gil_scoped_release unlocked;
    cpu::sgd(list, schedule, options, {pointer<WeightsRow>(weights), max_norm}, pointer<GramRow>(rows));
  }
  void adamw(const py::sequence& groups, int64_t weights, int64_t rows, double max_norm) {
    auto options = read_groups<AdamWGroup>(groups);
    py::gil_scoped_release unlocked;
    cpu::adamw(list, schedule, options, {pointer<WeightsRow>(weights), max_norm}, pointer<GramRow>(rows));
  }

  TensorList list;
  cpu::Schedule schedule;
};

void direction_weights_of(Rule rule, int64_t grams, int64_t count, int64_t weights) {
  for (int64_t i = 0; i < count; i++)
    pointer<DirectionWeights>(weights)[i] = direction_weights(rule, pointer<Gram>(grams)[i]);
}

}  // namespace
}  // namespace pytl

PYBIND11_MODULE(_core, m) {
  using namespace pytl;
  m.doc() = "pytl's compiled core: formulas over lists of addresses. pytl.ops is its only caller.";
  py::native_enum<DType>(m, "DType", "enum.IntEnum")
      .value("float64", DType::float64)
      .value("float32", DType::float32)
      .value("bfloat16", DType::bfloat16)
      .value("float16", DType::float16)
      .finalize();
  py::native_enum<Rule>(m, "Rule", "enum.IntEnum")
      .value("sum", Rule::sum)
      .value("dtnh", Rule::dtnh)
      .value("grod", Rule::grod)
      .value("pcgrad", Rule::pcgrad)
      .finalize();
  py::class_<Plan>(m, "Plan")
      .def(py::init([](const py::sequence& operands) {
        std::vector<Parameter> parameters;
        for (const auto& one : operands) parameters.push_back(parameter(one));
        return std::make_unique<Plan>(std::move(parameters));
      }))
      .def("renew", [](Plan& plan, const std::vector<int64_t>& gradients,
                       const std::vector<int64_t>& penalties) { plan.list.renew(gradients, penalties); })
      .def("gram", &Plan::gram)
      .def("sgd", &Plan::sgd)
      .def("adamw", &Plan::adamw);
  m.def("direction_weights", &direction_weights_of);
  m.def("max_threads", &cpu::max_threads);
  m.def("instruction_set", &cpu::instruction_set);
  m.def("instruction_sets", &cpu::instruction_sets);
  m.def("use_instruction_set", &cpu::use_instruction_set);
}
