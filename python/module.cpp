// The Python module effv2_kernels._native: arrays are checked and unwrapped here, and nowhere deeper.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "cpu/counting.h"
#include "cpu/dispatch.h"
#include "cpu/processor_name.h"
#include "engine/builder.h"
#include "engine/call.h"
#include "engine/network.h"
#include "engine/peak.h"
#include "engine/threads.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

// Each name once, in the order of the table.
template <class Wanted>
std::vector<std::string> names(const char* effv2::Target::* name, Wanted wanted) {
  std::vector<std::string> found;
  for (const effv2::Target& target : effv2::targets()) {
    if (wanted(target) && !std::count(found.begin(), found.end(), target.*name)) {
      found.emplace_back(target.*name);
    }
  }
  return found;
}

effv2::Tensor tensor_of(const std::string& name, const py::handle& value) {
  if (!FloatArray::check_(value)) throw effv2::Error(name + " must be a C-contiguous float32 array");
  const auto array = py::reinterpret_borrow<FloatArray>(value);
  return {array.data(), std::vector<std::int64_t>(array.shape(), array.shape() + array.ndim())};
}

void add(effv2::Network& network, const std::string& kind, const py::dict& tensors, const py::dict& options) {
  effv2::Fields fields;
  for (const auto& [name, value] : tensors) {
    const auto key = name.cast<std::string>();
    fields.tensors[key] = tensor_of(key, value);
  }
  for (const auto& [name, value] : options) {
    fields.options[name.cast<std::string>()] = py::isinstance<py::str>(value)
                                                   ? effv2::activation_option(value.cast<std::string>())
                                                   : value.cast<std::int64_t>();
  }
  effv2::add_block(network, kind, fields);
}

void add_feature(effv2::Network& network, const py::object& scale, const py::object& shift) {
  std::optional<effv2::Tensor> given[2];
  if (!scale.is_none()) given[0] = tensor_of("scale", scale);
  if (!shift.is_none()) given[1] = tensor_of("shift", shift);
  effv2::add_feature(network, given[0] ? &*given[0] : nullptr, given[1] ? &*given[1] : nullptr);
}

using Size4 = std::array<std::int64_t, 4>;

std::vector<double> run(const effv2::Network& network, std::uintptr_t input, const Size4& shape,
                        const Size4& strides, const std::vector<std::uintptr_t>& outputs, int threads,
                        int stop, bool timed) {
  std::vector<void*> addresses;
  for (const std::uintptr_t address : outputs) addresses.push_back(reinterpret_cast<void*>(address));
  std::vector<double> seconds(timed ? static_cast<std::size_t>(network.size()) : 0);
  {
    const py::gil_scoped_release released;
    effv2::run(network, {reinterpret_cast<const void*>(input), shape, strides, addresses.data(),
                         addresses.size(), threads, timed ? seconds.data() : nullptr, stop});
  }
  return seconds;
}

// (multiply-adds, meetings) of each block, for each thread.
std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> count(const effv2::Network& network,
                                                                      int images, int height, int width,
                                                                      int threads) {
  if (network.out_channels() == 0) throw effv2::Error("the network has no blocks");
  if (images < 1 || threads < 1) throw effv2::Error("at least one image and one thread are needed");
  std::vector<effv2::Effort> efforts;
  {
    const py::gil_scoped_release released;
    efforts = network.count(images, height, width, threads);
  }
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> counts(static_cast<std::size_t>(threads));
  for (std::size_t i = 0; i < efforts.size(); ++i) {
    counts[i / static_cast<std::size_t>(network.size())].emplace_back(efforts[i].multiply_adds,
                                                                      efforts[i].meetings);
  }
  return counts;
}

// Whether the dictionaries' values are these very objects, in this order. In Python it takes ten times as
// long.
bool same_objects(const py::tuple& expected, const py::tuple& dictionaries) {
  const Py_ssize_t size = PyTuple_GET_SIZE(expected.ptr());
  Py_ssize_t at = 0;
  for (const py::handle& dictionary : dictionaries) {
    if (!PyDict_Check(dictionary.ptr())) return false;
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(dictionary.ptr(), &place, &key, &value); ++at) {
      if (at == size || PyTuple_GET_ITEM(expected.ptr(), at) != value) return false;
    }
  }
  return at == size;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The compiled engine of effv2_kernels.";
  const auto& error = py::register_exception<effv2::Error>(m, "NativeError");
  py::register_exception<effv2::OverflowError>(m, "OverflowError", error);

  m.def("isas", [] { return names(&effv2::Target::isa, [](const auto&) { return true; }); });
  m.def("available_isas", [] {
    return names(&effv2::Target::isa, [](const effv2::Target& target) { return target.available(); });
  });
  m.def(
      "formats",
      [](const std::string& isa) {
        return names(&effv2::Target::format,
                     [&](const effv2::Target& target) { return target.isa == isa && target.available(); });
      },
      py::arg("isa"));
  m.def("kinds", [] {
#define EFFV2_NAME(kind, Spec) #kind,
    return std::vector<std::string>{EFFV2_BLOCKS(EFFV2_NAME)};
#undef EFFV2_NAME
  });
  m.def("default_isa", [] { return std::string(effv2::default_isa()); });
  m.def("cpu_name", effv2::processor_name);
  m.def("usable_cpus", effv2::usable_cpus);
  m.def("pretend_cpus", effv2::pretend_cpus);
  m.def("same_objects", same_objects, py::arg("expected"), py::arg("dictionaries"));
  m.def(
      "measure_peak",
      [](const std::string& isa, int threads, double milliseconds) {
        const effv2::Target& chosen = effv2::target_named(isa, "fp32");
        const py::gil_scoped_release released;
        return effv2::measure_peak(chosen, threads, milliseconds);
      },
      py::arg("isa"), py::arg("threads"), py::arg("milliseconds"));

  py::class_<effv2::Network>(m, "Network")
      .def(py::init([](const std::string& isa, std::int64_t weight_bytes, const std::string& format) {
             return std::make_unique<effv2::Network>(&effv2::target_named(isa, format), weight_bytes);
           }),
           py::arg("isa"), py::arg("weight_bytes") = 0, py::arg("format") = "fp32")
      .def_static(
          "counting",
          [](const std::string& isa) {
            const effv2::Target* target = effv2::counting_target(isa.c_str());
            if (!target) throw effv2::Error("nothing counts the work of ISA '" + isa + "'");
            return std::make_unique<effv2::Network>(target);
          },
          py::arg("isa"))
      .def("add", add, py::arg("kind"), py::arg("tensors"), py::arg("options"))
      .def("add_feature", add_feature, py::arg("scale") = py::none(), py::arg("shift") = py::none())
      .def_property_readonly("isa", [](const effv2::Network& n) { return std::string(n.target().isa); })
      .def_property_readonly("in_channels", &effv2::Network::in_channels)
      .def_property_readonly("packed_bytes", &effv2::Network::packed_bytes)
      .def(
          "block_shapes",
          [](const effv2::Network& n, int height, int width) {
            std::vector<std::tuple<int, int, int>> shapes;
            for (const effv2::Map& map : n.maps(height, width))
              shapes.emplace_back(map.channels, map.height, map.width);
            return shapes;
          },
          py::arg("height"), py::arg("width"))
      .def("block_macs", &effv2::Network::multiply_adds, py::arg("height"), py::arg("width"))
      .def("count", count, py::arg("images"), py::arg("height"), py::arg("width"), py::arg("threads"))
      .def(
          "run",
          [](const effv2::Network& n, std::uintptr_t input, const Size4& shape, const Size4& strides,
             const std::vector<std::uintptr_t>& outputs, int threads,
             int stop) { run(n, input, shape, strides, outputs, threads, stop, false); },
          py::arg("input_address"), py::arg("shape"), py::arg("strides"), py::arg("output_addresses"),
          py::arg("threads"), py::arg("stop") = 0)
      .def(
          "profile",
          [](const effv2::Network& n, std::uintptr_t input, const Size4& shape, const Size4& strides,
             const std::vector<std::uintptr_t>& outputs,
             int threads) { return run(n, input, shape, strides, outputs, threads, 0, true); },
          py::arg("input_address"), py::arg("shape"), py::arg("strides"), py::arg("output_addresses"),
          py::arg("threads"));
}
