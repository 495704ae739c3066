// Steps run by the emulator.
#include "cuda/launch.h"

#include "cuda/kernels.h"
#include "emulator.h"

namespace effv2::cuda {

void launch(const Step& step, const Buffers& buffers, void*) {
  const Extent extent = launched_extent_of(step);
  with_kernel<bool>(step, [&](auto kernel, const auto& parameters) {
    using Kernel = decltype(kernel);
    emulator::launch(extent.tiles, extent.threads, extent.shared_bytes,
                     [&] { Kernel::run(parameters, buffers, block(), Shared(), [] {}); });
    return true;
  });
}

template <class T>
static void launch_of(const Network& network, int blocks, const Buffers& buffers) {
  using Kernel = NetworkTiles<T>;
  emulator::launch(blocks, Kernel::kThreads, Kernel::shared_bytes(network),
                   [&] { Kernel::run(network, buffers, Shared()); });
}
void launch(const Network& network, Format format, int blocks, const Buffers& buffers, void*) {
  format == Format::fp16 ? launch_of<Half>(network, blocks, buffers)
                         : launch_of<Bf16>(network, blocks, buffers);
}

}  // namespace effv2::cuda
