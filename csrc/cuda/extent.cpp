// How large launches are: by the same code for a GPU and for the emulator.
#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace effv2::cuda {

Extent extent_of(const Step& step) {
  return with_kernel<Extent>(step, [](auto kernel, const auto& parameters) {
    using Kernel = decltype(kernel);
    if (!Kernel::fits(parameters)) return Extent{};
    const int shared_bytes = Kernel::shared_bytes(parameters);
    return shared_bytes > kMostShared ? Extent{}
                                      : Extent{Kernel::tiles(parameters), Kernel::kThreads, shared_bytes};
  });
}

Extent launched_extent_of(const Step& step) {
  const Extent extent = extent_of(step);
  if (extent.threads) return extent;
  throw std::invalid_argument(name_of(step) + ": there is no such kernel, or its tiles are too large for it");
}

std::string name_of(const Step& step) {
  return std::string(kKindNames[static_cast<int>(step.kind)]) + " " +
         kFormatNames[static_cast<int>(step.format)] + ", shape " + std::to_string(step.shape);
}

}  // namespace effv2::cuda
