// The Python module effv2_kernels._cuda with the emulator in place of a GPU, for tests.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "cuda/launch.h"
#include "cuda_steps.h"
#include "emulator.h"
#include "memory.h"

namespace py = pybind11;
using namespace effv2::emulator;

PYBIND11_MODULE(_cuda, m) {
  bind_steps(m);
  m.attr("emulated") = true;
  m.attr("VERSION") = "emulated";
  m.def("most_shared_bytes", [] { return effv2::cuda::kMostShared; });
  // By the name that it has on a GPU.
  py::register_exception<Error>(m, "CudaError", PyExc_RuntimeError);
  py::class_<Named>(m, "Buffer")
      .def(py::init<std::string, std::uintptr_t, std::size_t, bool>(), py::arg("name"), py::arg("address"),
           py::arg("bytes"), py::arg("writable"))
      .def("is_written", &Named::is_written);
  m.def(
      "configure",
      [](unsigned seed, int resident, bool early_copies, bool approximate, bool watch, bool count_passes) {
        config = Config{seed, resident, early_copies, approximate, watch, count_passes};
      },
      py::arg("seed") = 0, py::arg("resident") = 1 << 20, py::arg("early_copies") = false,
      py::arg("approximate") = false, py::arg("watch") = false, py::arg("count_passes") = false);
  // Since the last reset_counts(); those of shared memory with count_passes alone.
  m.def("counts", [] {
    py::dict found;
    const std::pair<const char*, std::uint64_t> named[] = {
        {"blocks", counts.blocks},
        {"barriers", counts.barriers},
        {"mmas", counts.mmas},
        {"matrices", counts.matrices},
        {"copies", counts.copies},
        {"operations", counts.operations},
        {"shared_accesses", counts.shared_accesses},
        {"shared_passes", counts.shared_passes},
    };
    for (const auto& [name, count] : named) found[name] = count;
    return found;
  });
  // (accesses, passes) of shared memory by the place in the source.
  m.def("passes_by_place", [] {
    py::dict found;
    for (const auto& [place, passes] : passes_by_place())
      found[py::str(place)] = py::make_tuple(passes.accesses, passes.passes);
    return found;
  });
  m.def("reset_counts", &reset_counts);
}
