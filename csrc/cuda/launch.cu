#include "cuda/launch.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "cuda/entry.h"
#include "cuda/runtime.h"

namespace effv2::cuda {

#define X(kind, format) Entry EFFV2_ENTRY(kind, format)(const Step& step);
#include "cuda_kernels.inc"
#undef X
Entry EFFV2_ENTRY(network, fp16)();
Entry EFFV2_ENTRY(network, bf16)();

namespace {

// name: a function that makes it, since it is seldom wanted.
template <class Name>
void check(cudaError_t status, Name&& name) {
  if (status != cudaSuccess) throw CudaError(name(), status);
}

Entry entry_of(const Step& step) {
#define X(of_kind, of_format)                                                                    \
  if (step.kind == Kind::of_kind && step.format == Format::of_format) {                          \
    if (const Entry entry = EFFV2_ENTRY(of_kind, of_format)(step); entry.function) return entry; \
  }
#include "cuda_kernels.inc"
#undef X
  throw std::invalid_argument(name_of(step) + ": there is no such kernel");
}

// Lets a kernel take all the shared memory that blocks of the device can have. Once is enough; threads that
// are here at the same time say the same.
template <class Name>
void prepare(const Entry& entry, Name&& name) {
  int device;
  check(cudaGetDevice(&device), name);
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if (entry.prepared->load(std::memory_order_relaxed) & bit) return;
  int most;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  check(cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
  entry.prepared->fetch_or(bit, std::memory_order_relaxed);
}

// The runtime calls too large a launch an invalid value.
std::string with_size(const std::string& name, int shared_bytes) {
  int device, most;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      shared_bytes <= most) {
    return name;
  }
  return name + ", for " + std::to_string(shared_bytes) + " bytes of shared memory of the GPU's " +
         std::to_string(most);
}

template <class Parameters, class Name>
void start(const Entry& entry, const Extent& extent, const Parameters& parameters, const Buffers& buffers,
           void* stream, Name&& name) {
  prepare(entry, name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(extent.tiles);
  config.blockDim = dim3(extent.threads);
  config.dynamicSmemBytes = extent.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {const_cast<Parameters*>(&parameters), const_cast<Buffers*>(&buffers)};
  const cudaError_t status = cudaLaunchKernelExC(&config, entry.function, arguments);
  if (status != cudaSuccess) throw CudaError(with_size(name(), extent.shared_bytes), status);
}

}  // namespace

void launch(const Step& step, const Buffers& buffers, void* stream) {
  const Extent extent = launched_extent_of(step);
  const Entry entry = entry_of(step);
  step.with_parameters([&](const auto& parameters) {
    start(entry, extent, parameters, buffers, stream, [&] { return name_of(step); });
    return 0;
  });
}

void launch(const Network& network, Format format, int blocks, const Buffers& buffers, void* stream) {
  using Kernel = NetworkTiles<Half>;  // the same sizes in the other format
  const bool is_half = format == Format::fp16;
  start(is_half ? EFFV2_ENTRY(network, fp16)() : EFFV2_ENTRY(network, bf16)(),
        Extent{blocks, Kernel::kThreads, Kernel::shared_bytes(network)}, network, buffers, stream,
        [&] { return std::string("network ") + kFormatNames[static_cast<int>(format)]; });
}

Resources resources_of(const Step& step) {
  cudaFuncAttributes found;
  check(cudaFuncGetAttributes(&found, entry_of(step).function), [&] { return name_of(step); });
  return {found.numRegs, static_cast<int>(found.localSizeBytes)};
}

}  // namespace effv2::cuda
