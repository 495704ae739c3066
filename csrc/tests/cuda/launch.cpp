// Steps run by the emulator.
#include "cuda/launch.h"

#include "cuda/kernels.h"
#include "emulator.h"

namespace effv2::cuda {

Extent extent_of(const Step& step) {
  return with_kernel<Extent>(step, [](auto kernel, const auto& parameters) {
    using Kernel = decltype(kernel);
    if (!Kernel::fits(parameters)) return Extent{};
    return Extent{Kernel::tiles(parameters), Kernel::kThreads, Kernel::shared_bytes(parameters)};
  });
}

void launch(const Step& step, const Buffers& buffers, void*) {
  with_kernel<bool>(step, [&](auto kernel, const auto& parameters) {
    using Kernel = decltype(kernel);
    const Extent extent = extent_of(step);
    emulator::launch(extent.tiles, extent.threads, extent.shared_bytes,
                     [&] { Kernel::run(parameters, buffers, block(), [] {}); });
    return true;
  });
}

}  // namespace effv2::cuda
