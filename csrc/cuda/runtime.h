// The CUDA runtime as the rest of the project sees it. It is linked in as a whole, and finds the driver when
// it is first asked for something: where there is none, all of this can still be called.
#pragma once

#include <stdexcept>
#include <string>

namespace effv2::cuda {

struct Step;

// What the runtime or the driver refused, by the name that CUDA has for it. It is forgotten when this is
// thrown, so that later calls work; but for those that a kernel has failed with, after which a process cannot
// use the GPU any more.
class CudaError : public std::runtime_error {
 public:
  CudaError(const std::string& doing, int code);
};

std::string version_text(int version);  // 13.0, of 13000
int runtime_version();                  // of CUDA, as 1000 major + 10 minor
int driver_version();                   // the newest CUDA that the driver knows; 0 without one
int device_count();                     // 0 without a driver

// The compute capabilities that kernels are compiled for: "80 90".
const char* architectures();
// The oldest driver for Linux that the runtime works with, as NVIDIA numbers them.
const char* least_driver();
// Why nothing can run here; empty where something can.
std::string why_not();

// Bytes of shared memory that a block of threads can have on the current device; 0 without one.
int most_shared_bytes();

// What a thread of a step's kernel takes on the current device.
struct Resources {
  int registers;
  int local_bytes;  // of memory, where registers were too few
};
Resources resources_of(const Step& step);

}  // namespace effv2::cuda
