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
  m.attr("VERSION") = "emulated";
  py::register_exception<Error>(m, "EmulatorError", PyExc_RuntimeError);
  py::class_<Named>(m, "Buffer")
      .def(py::init<std::string, std::uintptr_t, std::size_t, bool>(), py::arg("name"), py::arg("address"),
           py::arg("bytes"), py::arg("writable"))
      .def("is_written", &Named::is_written);
  m.def("reset_counts", [] { counts = Counts{}; });
  m.def("counts", [] {
    py::dict found;
    found["blocks"] = counts.blocks, found["barriers"] = counts.barriers, found["mmas"] = counts.mmas;
    found["matrices"] = counts.matrices, found["copies"] = counts.copies;
    found["operations"] = counts.operations;
    found["shared_accesses"] = counts.shared_accesses, found["shared_passes"] = counts.shared_passes;
    return found;
  });
  m.def(
      "configure",
      [](unsigned seed, int resident, bool early_copies, bool approximate, bool watch) {
        config = Config{seed, resident, early_copies, approximate, watch, false};
      },
      py::arg("seed") = 0, py::arg("resident") = 1 << 20, py::arg("early_copies") = false,
      py::arg("approximate") = false, py::arg("watch") = false);
}
