// pybind11: integers for addresses, no torch types. Options are read by name from the Python object that holds them.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/features.h"
#include "cpu/loops.h"
#include "cpu/step.h"
#include "cpu/threads.h"
#if defined(PYTL_CUDA)
#include "cuda/devices.h"
#include "cuda/features.h"
#include "cuda/plan.h"
#endif

namespace py = pybind11;

namespace pytl {
namespace {

template <class Pointed>
Pointed* pointer(int64_t address) {
  return reinterpret_cast<Pointed*>(address);
}

// A tensor in place of a number is read on its device.
bool is_tensor(const py::handle& option) { return py::hasattr(option, "data_ptr"); }

double number(const py::handle& option) { return is_tensor(option) ? 0 : option.cast<double>(); }

Parameter parameter(const py::handle& operands) {
  const auto address = [&](const char* name) { return pointer<char>(operands.attr(name).cast<int64_t>()); };
  const auto states = operands.attr("states").cast<std::vector<int64_t>>();
  Parameter p = {};
  p.weight = address("weight");
  p.compensation = address("compensation");
  p.gradient = address("gradient");
  p.penalty = address("penalty");
  p.start = address("start");
  const auto scales = operands.attr("scales").cast<std::vector<int64_t>>();
  for (size_t k = 0; k < states.size() && k < 3; k++) p.state[k] = pointer<char>(states[k]);
  for (size_t k = 0; k < scales.size() && k < 3; k++) p.scale[k] = pointer<float>(scales[k]);
  p.step = pointer<float>(operands.attr("step").cast<int64_t>());
  p.length = operands.attr("length").cast<int64_t>();
  p.group = operands.attr("group").cast<int32_t>();
  p.fresh = operands.attr("fresh").cast<bool>();
  p.dtype = operands.attr("dtype").cast<DType>();
  p.start_dtype = operands.attr("start_dtype").cast<DType>();
  p.moments = operands.attr("moments").cast<MomentFormat>();
  return p;
}

void read(const py::handle& options, Group& group) {
  group.lr = number(options.attr("lr"));
  group.sp_decay = number(options.attr("sp_decay"));
  group.weight_decay = number(options.attr("weight_decay"));
  group.gradient_factor = options.attr("gradient_factor").cast<double>();
  group.decoupled = options.attr("decoupled").cast<bool>();
  const auto granularity = options.attr("granularity").cast<std::string>();
  group.together = granularity == "global";
  if (!group.together && granularity != "tensor")
    throw std::invalid_argument("granularity must be one of tensor, global; got '" + granularity + "'");
  group.rule = options.attr("rule").cast<Rule>();
  group.together = group.together && group.rule != Rule::sum;  // whose weights no sum changes
}

void read(const py::handle& options, SGDGroup& group) {
  read(options, static_cast<Group&>(group));
  group.momentum = options.attr("momentum").cast<double>();
  group.dampening = options.attr("dampening").cast<double>();
  group.nesterov = options.attr("nesterov").cast<bool>();
}

void read(const py::handle& options, AdamWGroup& group) {
  read(options, static_cast<Group&>(group));
  group.beta1 = number(options.attr("beta1"));
  group.beta2 = number(options.attr("beta2"));
  group.eps = options.attr("eps").cast<double>();
  group.amsgrad = options.attr("amsgrad").cast<bool>();
}

template <class Options>
std::vector<Options> read_groups(const py::sequence& groups) {
  std::vector<Options> options(groups.size());
  for (size_t i = 0; i < options.size(); i++) read(groups[i], options[i]);
  return options;
}

std::vector<Parameter> parameters_of(const py::sequence& operands) {
  std::vector<Parameter> parameters;
  for (const auto& one : operands) parameters.push_back(parameter(one));
  return parameters;
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

#if defined(PYTL_CUDA)
cuda::Source source(const py::handle& option) {
  if (!is_tensor(option)) return {};
  return {pointer<void>(option.attr("data_ptr")().cast<int64_t>()), option.attr("element_size")().cast<int64_t>()};
}

void read_betas(const py::handle&, cuda::DeviceGroup<SGDGroup>&) {}
void read_betas(const py::handle& options, cuda::DeviceGroup<AdamWGroup>& group) {
  group.sources.beta1 = source(options.attr("beta1")), group.sources.beta2 = source(options.attr("beta2"));
}

// Options of no optimizer are enough to look at.
void read_options(const py::handle& options, AdamWGroup& group) { read(options, group); }
void read_options(const py::handle& options, SGDGroup& group) {
  if (py::hasattr(options, "momentum")) return read(options, group);
  read(options, static_cast<Group&>(group));
}

template <class Options>
std::vector<cuda::DeviceGroup<Options>> read_device_groups(const py::sequence& groups) {
  std::vector<cuda::DeviceGroup<Options>> read_ones(groups.size());
  for (size_t i = 0; i < read_ones.size(); i++) {
    const py::handle options = groups[i];
    read_options(options, read_ones[i].options);
    cuda::Sources& sources = read_ones[i].sources;
    sources.lr = source(options.attr("lr")), sources.sp_decay = source(options.attr("sp_decay"));
    sources.weight_decay = source(options.attr("weight_decay"));
    read_betas(options, read_ones[i]);
  }
  return read_ones;
}

// visit(groups) with the groups of the optimizer that they are of.
template <class Visit>
void with_device_groups(const py::sequence& groups, Visit visit) {
  if (groups.size() && py::hasattr(groups[0], "beta1")) return visit(read_device_groups<AdamWGroup>(groups));
  visit(read_device_groups<SGDGroup>(groups));
}

cuda::Call call_of(const py::handle& call) {
  const auto address = [&](const char* name) { return call.attr(name).cast<int64_t>(); };
  return {pointer<void>(address("stream")), pointer<const float>(address("found_inf")),
          pointer<const float>(address("loss_scale")), pointer<uint64_t>(address("addresses"))};
}

void bind_cuda(py::module_ m) {
  using cuda::Plan;
  py::class_<Plan>(m, "Plan")
      .def(py::init([](const py::sequence& operands, int device) {
        return std::make_unique<Plan>(parameters_of(operands), device);
      }))
      .def("tables",
           [](const Plan& plan) {
             const std::vector<char> bytes = plan.tables();
             return py::bytes(bytes.data(), bytes.size());
           })
      .def("scratch_bytes", &Plan::scratch_bytes)
      .def("place", [](Plan& plan, int64_t tables,
                       int64_t scratch) { plan.place(pointer<char>(tables), pointer<char>(scratch)); })
      .def("address_count", &Plan::address_count)
      .def("renew", &Plan::renew)
      .def("gram",
           [](Plan& plan, const py::sequence& groups, int64_t rows, const py::handle& call) {
             with_device_groups(groups, [&](const auto& of) { plan.gram(of, pointer<GramRow>(rows), call_of(call)); });
           })
      .def("step",
           [](Plan& plan, const py::sequence& groups, int64_t weights, double max_norm, int64_t rows,
              const py::handle& call) {
             with_device_groups(groups, [&](const auto& of) {
               plan.step(of, pointer<WeightsRow>(weights), max_norm, pointer<GramRow>(rows), call_of(call));
             });
           })
      .def("write_options", [](Plan& plan, const py::sequence& groups, const py::handle& call) {
        with_device_groups(groups, [&](const auto& of) { plan.write_options(of, call_of(call)); });
      });
  m.def("why_not", &cuda::why_not);
  m.def("architectures", &cuda::architectures);
  m.def("toolkit_version", &cuda::toolkit_version);
  m.def("driver_version", &cuda::driver_version);
}
#endif

FeaturePair pair_of(const py::handle& o) {
  const auto integer = [&](const char* name) { return o.attr(name).cast<int64_t>(); };
  return {pointer<char>(integer("x")),
          pointer<char>(integer("source")),
          pointer<char>(integer("weights")),
          integer("outer"),
          integer("channels"),
          integer("inner"),
          o.attr("dtype").cast<DType>()};
}

Activations activations_of(const py::handle& o) {
  const auto integer = [&](const char* name) { return o.attr(name).cast<int64_t>(); };
  return {pointer<char>(integer("a")),          integer("samples"),           integer("channels"), integer("positions"),
          o.attr("channels_last").cast<bool>(), o.attr("dtype").cast<DType>()};
}

Logits logits_of(const py::handle& o) {
  const auto integer = [&](const char* name) { return o.attr(name).cast<int64_t>(); };
  return {pointer<char>(integer("s")), pointer<char>(integer("t")),          integer("rows"),
          integer("columns"),          o.attr("temperature").cast<double>(), o.attr("dtype").cast<DType>()};
}

#if defined(PYTL_CUDA)
cuda::Site site_of(int64_t scratch, int device, int64_t stream) {
  return {device, pointer<void>(stream), pointer<char>(scratch)};
}

// As bind_features, each with a call's scratch, device and stream.
void bind_cuda_features(py::module_ m) {
  m.def("feature_distance", [](const py::handle& pair, int64_t value, int64_t scratch, int device, int64_t stream) {
    cuda::feature_distance(pair_of(pair), pointer<double>(value), site_of(scratch, device, stream));
  });
  m.def("feature_distance_gradient", [](const py::handle& pair, int64_t task, int64_t factor, int64_t to,
                                        int64_t scratch, int device, int64_t stream) {
    cuda::feature_distance_gradient(pair_of(pair), pointer<char>(task), pointer<double>(factor), pointer<char>(to),
                                    site_of(scratch, device, stream));
  });
  m.def("attention_map", [](const py::handle& activations, int64_t map, int64_t inverse_norms, int64_t scratch,
                            int device, int64_t stream) {
    cuda::attention_map(activations_of(activations), pointer<char>(map), pointer<double>(inverse_norms),
                        site_of(scratch, device, stream));
  });
  m.def("attention_map_gradient", [](const py::handle& activations, int64_t map, int64_t inverse_norms,
                                     int64_t gradient, int64_t to, int64_t scratch, int device, int64_t stream) {
    cuda::attention_map_gradient(activations_of(activations), pointer<char>(map), pointer<double>(inverse_norms),
                                 pointer<char>(gradient), pointer<char>(to), site_of(scratch, device, stream));
  });
  m.def("distillation", [](const py::handle& logits, int64_t value, int64_t to, int64_t scratch, int device,
                           int64_t stream) {
    cuda::distillation(logits_of(logits), pointer<double>(value), pointer<char>(to), site_of(scratch, device, stream));
  });
  m.def("feature_distance_scratch", [](const py::handle& o) { return cuda::feature_distance_scratch(pair_of(o)); });
  m.def("feature_distance_gradient_scratch", [](const py::handle&) { return 0; });
  m.def("attention_map_scratch", [](const py::handle& o) { return cuda::attention_map_scratch(activations_of(o)); });
  m.def("attention_map_gradient_scratch",
        [](const py::handle& o) { return cuda::attention_map_gradient_scratch(activations_of(o)); });
  m.def("distillation_scratch", [](const py::handle& o) { return cuda::distillation_scratch(logits_of(o)); });
}
#endif

void bind_features(py::module_ m) {
  m.def("feature_distance", [](const py::handle& pair, int64_t value) {
    const FeaturePair of = pair_of(pair);
    py::gil_scoped_release unlocked;
    *pointer<double>(value) = cpu::feature_distance(of);
  });
  m.def("feature_distance_gradient", [](const py::handle& pair, int64_t task, int64_t factor, int64_t to) {
    const FeaturePair of = pair_of(pair);
    py::gil_scoped_release unlocked;
    cpu::feature_distance_gradient(of, pointer<char>(task), *pointer<double>(factor), pointer<char>(to));
  });
  m.def("attention_map", [](const py::handle& activations, int64_t map, int64_t inverse_norms) {
    const Activations of = activations_of(activations);
    py::gil_scoped_release unlocked;
    cpu::attention_map(of, pointer<char>(map), pointer<double>(inverse_norms));
  });
  m.def("attention_map_gradient",
        [](const py::handle& activations, int64_t map, int64_t inverse_norms, int64_t gradient, int64_t to) {
          const Activations of = activations_of(activations);
          py::gil_scoped_release unlocked;
          cpu::attention_map_gradient(of, pointer<char>(map), pointer<double>(inverse_norms), pointer<char>(gradient),
                                      pointer<char>(to));
        });
  m.def("distillation", [](const py::handle& logits, int64_t value, int64_t to) {
    const Logits of = logits_of(logits);
    py::gil_scoped_release unlocked;
    *pointer<double>(value) = cpu::distillation(of, pointer<char>(to));
  });
}

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
  py::native_enum<MomentFormat>(m, "MomentFormat", "enum.IntEnum")
      .value("full", MomentFormat::full)
      .value("bfloat16", MomentFormat::bfloat16)
      .value("eight_bits", MomentFormat::eight_bits)
      .finalize();
  py::native_enum<Rule>(m, "Rule", "enum.IntEnum")
      .value("sum", Rule::sum)
      .value("dtnh", Rule::dtnh)
      .value("grod", Rule::grod)
      .value("pcgrad", Rule::pcgrad)
      .finalize();
  py::class_<Plan>(m, "Plan")
      .def(py::init([](const py::sequence& operands) { return std::make_unique<Plan>(parameters_of(operands)); }))
      .def("renew", [](Plan& plan, const std::vector<int64_t>& gradients,
                       const std::vector<int64_t>& penalties) { plan.list.renew(gradients, penalties); })
      .def("gram", &Plan::gram)
      .def("sgd", &Plan::sgd)
      .def("adamw", &Plan::adamw);
#if defined(PYTL_CUDA)
  py::module_ on_cuda = m.def_submodule("cuda");
  bind_cuda(on_cuda);
  bind_cuda_features(on_cuda);
#endif
  bind_features(m);
  m.def("direction_weights", &direction_weights_of);
  m.def("max_threads", &cpu::max_threads);
  m.def("instruction_set", &cpu::instruction_set);
  m.def("instruction_sets", &cpu::instruction_sets);
  m.def("use_instruction_set", &cpu::use_instruction_set);
}
