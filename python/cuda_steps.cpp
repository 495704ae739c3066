#include "cuda_steps.h"

#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/schedule.h"
#include "cuda/shapes.h"

namespace py = pybind11;
using namespace effv2::cuda;

namespace {

template <std::size_t N>
int number_of(const std::string& name, const char* const (&names)[N], const char* what) {
  for (std::size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  throw std::invalid_argument(std::string("there is no ") + what + " \"" + name + "\"");
}

// Takes each field out of a dictionary; what is left there belongs to no field.
struct Fill {
  py::dict& fields;

  template <class V>
  void operator()(const char* name, V& value) {
    value = V{};
    if (!fields.contains(name)) return;
    const py::object given = fields.attr("pop")(name);
    if constexpr (std::is_enum_v<V>) {
      value = static_cast<V>(number_of(given.cast<std::string>(), names_of(V{}), name));
    } else {
      value = given.cast<V>();
    }
  }
};
struct Show {
  py::dict fields;

  template <class V>
  void operator()(const char* name, const V& value) {
    if constexpr (std::is_enum_v<V>) {
      fields[name] = names_of(V{})[static_cast<int>(value)];
    } else {
      fields[name] = value;
    }
  }
};

void refuse_rest(const std::string& kind, const py::dict& fields) {
  if (fields.empty()) return;
  throw std::invalid_argument(kind + " has no field " +
                              py::repr(fields.attr("popitem")()).cast<std::string>());
}

Buffers buffers_of(const std::vector<std::uintptr_t>& addresses) {
  if (addresses.size() >= kBuffers) {
    throw std::invalid_argument("a launch has at most " + std::to_string(kBuffers - 1) + " buffers, not " +
                                std::to_string(addresses.size()));
  }
  Buffers buffers{};
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    buffers.begin[i + 1] = reinterpret_cast<char*>(addresses[i]);
  }
  return buffers;
}

// As it lies in memory, and as kernels read it.
template <class V>
py::bytes bytes_of(const std::vector<V>& values) {
  return py::bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(V));
}

// (step, tile, flags raised, flags waited for) of each task; flags as (first, count).
py::list listed(const Schedule& schedule) {
  py::list list;
  for (const Task& task : schedule.tasks) {
    py::list needs;
    for (const Flags& flags : task.needs) {
      if (flags.count) needs.append(py::make_tuple(flags.first, flags.count));
    }
    list.append(
        py::make_tuple(task.step, task.tile, py::make_tuple(task.made.first, task.made.count), needs));
  }
  return list;
}

Step make(const std::string& kind, const std::string& format, int shape, const py::dict& given) {
  Step step{};
  step.kind = static_cast<Kind>(number_of(kind, kKindNames, "kind of step"));
  step.format = static_cast<Format>(number_of(format, kFormatNames, "format"));
  step.shape = shape;
  py::dict fields(given.attr("copy")());
  step.with_parameters([&](auto& parameters) {
    Fill fill{fields};
    parameters.visit(fill);
    return 0;
  });
  refuse_rest(kind, fields);
  return step;
}

py::dict fields_of(Step& step) {
  Show show;
  step.with_parameters([&](auto& parameters) {
    parameters.visit(show);
    return 0;
  });
  return show.fields;
}

}  // namespace

void bind_steps(py::module_& m) {
  py::class_<Extent>(m, "Extent")
      .def_readonly("tiles", &Extent::tiles)
      .def_readonly("threads", &Extent::threads)
      .def_readonly("shared_bytes", &Extent::shared_bytes);
  py::class_<Step>(m, "Step")
      .def(py::init(&make), py::arg("kind"), py::arg("format"), py::arg("shape"), py::arg("fields"))
      .def_property_readonly("kind", [](const Step& s) { return kKindNames[static_cast<int>(s.kind)]; })
      .def_property_readonly("format", [](const Step& s) { return kFormatNames[static_cast<int>(s.format)]; })
      .def_readonly("shape", &Step::shape)
      .def_property_readonly("fields", &fields_of)
      .def_property_readonly("extent", [](const Step& s) { return extent_of(s); });
  m.def(
      "launch",
      [](const Step& step, const std::vector<std::uintptr_t>& buffers, std::uintptr_t stream) {
        const Buffers given = buffers_of(buffers);
        const py::gil_scoped_release release;
        launch(step, given, reinterpret_cast<void*>(stream));
      },
      py::arg("step"), py::arg("buffers"), py::arg("stream"));
  py::class_<Schedule>(m, "Schedule")
      .def(py::init(&make_schedule), py::arg("steps"))
      .def_property_readonly("tasks", [](const Schedule& s) { return bytes_of(s.tasks); })
      .def_property_readonly("parts", [](const Schedule& s) { return bytes_of(s.parts); })
      .def_property_readonly("listed", &listed)
      .def_property_readonly("control_bytes", &Schedule::control_bytes)
      .def_readonly("largest", &Schedule::largest);
  m.def("bytes_of_steps", [](const std::vector<Step>& steps) { return bytes_of(steps); }, py::arg("steps"));
  m.def("has_shape", &has_shape, py::arg("step"));
  m.def(
      "launch_network",
      [](const std::string& format, py::dict given, int blocks, const std::vector<std::uintptr_t>& buffers,
         std::uintptr_t stream) {
        Network network{};
        py::dict fields(given.attr("copy")());
        Fill fill{fields};
        network.visit(fill);
        refuse_rest("network", fields);
        const Buffers all = buffers_of(buffers);
        const auto kind = static_cast<Format>(number_of(format, kFormatNames, "format"));
        const py::gil_scoped_release release;
        launch(network, kind, blocks, all, reinterpret_cast<void*>(stream));
      },
      py::arg("format"), py::arg("fields"), py::arg("blocks"), py::arg("buffers"), py::arg("stream"));
  // The names of the kernels of each kind, in the order of their numbers.
  py::dict shapes;
  const auto add = [&](const char* kind, const auto& names) {
    py::list list;
    for (const char* const name : names) list.append(name);
    shapes[kind] = list;
  };
  add("product", kProductShapes);
  add("stem", kStemShapes);
  add("ffn", kFfnShapes);
  add("widen", kWidenShapes);
  add("attention", kAttentionShapes);
  for (const char* const kind : {"depthwise", "image_conv", "attention_downsample", "mean", "feature"})
    add(kind, kOneShape);
  m.attr("SHAPES") = shapes;
  m.attr("OFFSET_BITS") = kOffsetBits;
  m.attr("BUFFERS") = kBuffers - 1;
  // Of shared memory, that the one launch takes beside a step's.
  m.attr("NETWORK_BYTES") = NetworkTiles<Half>::kOwnBytes;
}
