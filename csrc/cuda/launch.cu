#include "cuda/launch.h"

#include <cuda_runtime_api.h>

#include "cuda/entry.h"
#include "cuda/runtime.h"

namespace effv2::cuda {

#define X(kind, format) Entry EFFV2_ENTRY_NAME(kind, format)(const Step& step);
#include "cuda_kernels.inc"
#undef X

namespace {

void check(cudaError_t status, const Step& step) {
  if (status != cudaSuccess) throw CudaError(name_of(step), status);
}

// The runtime calls too large a launch an invalid value.
std::string with_size(const Step& step, const Extent& extent) {
  std::string text = name_of(step);
  int device, most;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
      extent.shared_bytes > most) {
    text += ", for " + std::to_string(extent.shared_bytes) + " bytes of shared memory of the GPU's " +
            std::to_string(most);
  }
  return text;
}

Entry entry_of(const Step& step) {
#define X(of_kind, of_format)                                                                         \
  if (step.kind == Kind::of_kind && step.format == Format::of_format) {                               \
    if (const Entry entry = EFFV2_ENTRY_NAME(of_kind, of_format)(step); entry.function) return entry; \
  }
#include "cuda_kernels.inc"
#undef X
  throw std::invalid_argument(name_of(step) + ": there is no such kernel");
}

// Lets a kernel take all the shared memory that blocks of the device can have. Once is enough; threads that
// are here at the same time say the same.
void prepare(const Entry& entry, const Step& step) {
  int device;
  check(cudaGetDevice(&device), step);
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if (entry.prepared->load(std::memory_order_relaxed) & bit) return;
  int most;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), step);
  check(cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), step);
  entry.prepared->fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace

void launch(const Step& step, const Buffers& buffers, void* stream) {
  const Entry entry = entry_of(step);
  const Extent extent = extent_of(step);
  if (!extent.threads) throw std::invalid_argument(name_of(step) + ": the tiles are too large for it");
  prepare(entry, step);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(extent.tiles);
  config.blockDim = dim3(extent.threads);
  config.dynamicSmemBytes = extent.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  step.with_parameters([&](const auto& parameters) {
    void* arguments[] = {const_cast<void*>(static_cast<const void*>(&parameters)),
                         const_cast<Buffers*>(&buffers)};
    const cudaError_t status = cudaLaunchKernelExC(&config, entry.function, arguments);
    if (status != cudaSuccess) throw CudaError(with_size(step, extent), status);
    return 0;
  });
}

Resources resources_of(const Step& step) {
  cudaFuncAttributes found;
  check(cudaFuncGetAttributes(&found, entry_of(step).function), step);
  return {found.numRegs, static_cast<int>(found.localSizeBytes)};
}

}  // namespace effv2::cuda
