// The Python module effv2_kernels._cuda with the emulator in place of a GPU, for tests.
#include <pybind11/pybind11.h>

#include "cuda_steps.h"
#include "emulator.h"
#include "memory.h"

namespace py = pybind11;
using namespace effv2::emulator;

PYBIND11_MODULE(_cuda, m) {
  bind_steps(m);
  m.attr("emulated") = true;
  py::register_exception<Error>(m, "EmulatorError", PyExc_RuntimeError);
  py::class_<Memory>(m, "Memory", py::buffer_protocol())
      .def(py::init<std::string, std::size_t, bool>(), py::arg("name"), py::arg("bytes"), py::arg("writable"))
      .def_property_readonly(
          "address", [](const Memory& memory) { return reinterpret_cast<std::uintptr_t>(memory.data()); })
      .def("is_written", &Memory::is_written)
      .def_buffer([](Memory& memory) {
        return py::buffer_info(memory.data(), 1, "B", static_cast<py::ssize_t>(memory.bytes()));
      });
  m.def(
      "configure",
      [](unsigned seed, int resident, bool early_copies, bool approximate, bool watch) {
        config = Config{seed, resident, early_copies, approximate, watch, false};
      },
      py::arg("seed") = 0, py::arg("resident") = 1 << 20, py::arg("early_copies") = false,
      py::arg("approximate") = false, py::arg("watch") = false);
}
