// A network in one launch, in one format, EFFV2_FORMAT.
#include "cuda/network.h"

#include <type_traits>

#include "cuda/entry.h"

namespace effv2::cuda {
namespace {

using T = std::conditional_t<Format::EFFV2_FORMAT == Format::fp16, Half, Bf16>;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    whole(const __grid_constant__ Network network, const __grid_constant__ Buffers buffers) {
  Kernel::run(network, buffers, Shared());
}

}  // namespace

Entry EFFV2_ENTRY(network, EFFV2_FORMAT)() {
  static std::atomic<std::uint64_t> prepared;
  return {reinterpret_cast<const void*>(whole<NetworkTiles<T>>), &prepared};
}

}  // namespace effv2::cuda
