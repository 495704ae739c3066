// Kernels of one kind and format, EFFV2_KIND and EFFV2_FORMAT: compiled once for each, side by side.
#include "cuda/kernels.h"

#include <type_traits>

#include "cuda/entry.h"

namespace effv2::cuda {
namespace {

using Parameters = decltype(Step::EFFV2_KIND);
using T = std::conditional_t<Format::EFFV2_FORMAT == Format::fp16, Half, Bf16>;

// Parameters stay where the launch puts them, which makes indexing them free: a copy would be on the stack.
// The compiler is told how many blocks a multiprocessor should hold: left to itself it would rather spill
// some registers than use as many as there are.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    single(const __grid_constant__ Parameters parameters, const __grid_constant__ Buffers buffers) {
  Kernel::run(parameters, buffers, block(), Shared(), [] {});
}

}  // namespace

Entry EFFV2_ENTRY(EFFV2_KIND, EFFV2_FORMAT)(const Step& step) {
  return with_kernel_of<Entry, T>(step, [](auto kernel, const auto&) {
    using Kernel = decltype(kernel);
    if constexpr (std::is_same_v<typename Kernel::Parameters, Parameters>) {
      static std::atomic<std::uint64_t> prepared;
      return Entry{reinterpret_cast<const void*>(single<Kernel>), &prepared};
    } else {
      return Entry{};
    }
  });
}

}  // namespace effv2::cuda
