#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

namespace effv2::cuda {
namespace {

// The oldest driver, and the CUDA that it knows: release notes, "CUDA Toolkit and Minimum Required Driver
// Version for CUDA Minor Version Compatibility"; nvcc's manual, --compress-mode, whose output older ones
// cannot read.
constexpr bool kOfCuda13 = CUDART_VERSION >= 13000;
constexpr const char* kLeastDriver = kOfCuda13 ? "580" : "550";
constexpr int kLeastCuda = kOfCuda13 ? 13000 : 12040;

std::string needed_driver() {
  return "CUDA " + version_text(runtime_version()) + " needs an NVIDIA driver from " + least_driver() + " on";
}

std::string message_of(const std::string& doing, int code) {
  const auto error = static_cast<cudaError_t>(code);
  std::string message = doing + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver) message += " (" + why_not() + ")";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    message += std::string(" (compiled for compute capabilities ") + architectures() + ")";
  }
  return message;
}

// Errors of queries are answers, and nothing that a later call should meet.
template <class Query>
int asked(Query query, int otherwise) {
  int found = otherwise;
  if (query(&found) != cudaSuccess) {
    cudaGetLastError();
    return otherwise;
  }
  return found;
}

}  // namespace

CudaError::CudaError(const std::string& doing, int code) : std::runtime_error(message_of(doing, code)) {
  cudaGetLastError();
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

int runtime_version() { return CUDART_VERSION; }
int driver_version() { return asked(cudaDriverGetVersion, 0); }
int device_count() { return asked(cudaGetDeviceCount, 0); }

int most_shared_bytes() {
  const int device = asked(cudaGetDevice, -1);
  if (device < 0) return 0;
  return asked(
      [device](int* most) {
        return cudaDeviceGetAttribute(most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      },
      0);
}

const char* architectures() { return EFFV2_CUDA_ARCHITECTURES; }

const char* least_driver() { return kLeastDriver; }

std::string why_not() {
  const int driver = driver_version();
  if (!driver) return "there is no NVIDIA driver; " + needed_driver();
  if (driver < kLeastCuda) {
    return "the NVIDIA driver knows CUDA " + version_text(driver) + "; " + needed_driver();
  }
  return device_count() ? "" : "the NVIDIA driver finds no GPU";
}

}  // namespace effv2::cuda
