// The Python module effv2_kernels._cuda. It is imported and asked where there is no GPU as well.
#include <pybind11/pybind11.h>

#include "cuda/launch.h"
#include "cuda/runtime.h"
#include "cuda_steps.h"

namespace py = pybind11;
using namespace effv2::cuda;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The kernels of effv2_kernels for NVIDIA GPUs.";
  py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);
  bind_steps(m);
  m.attr("emulated") = false;
  m.attr("VERSION") = version_text(runtime_version());
  m.attr("ARCHITECTURES") = architectures();
  m.attr("LEAST_DRIVER") = least_driver();
  m.def("runtime_version", runtime_version);
  m.def("driver_version", driver_version);
  m.def("device_count", device_count);
  m.def("why_not", why_not);
  m.def("most_shared_bytes", most_shared_bytes);
  m.def(
      "resources",
      [](const Step& step) {
        const Resources found = resources_of(step);
        return py::make_tuple(found.registers, found.local_bytes);
      },
      py::arg("step"));
}
