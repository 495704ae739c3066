// Kernels of one kind and format, EFFV2_KIND and EFFV2_FORMAT: compiled once for each, side by side.
#include "cuda/kernels.h"

#include <type_traits>

#include "cuda/entry.h"

namespace effv2::cuda {
namespace {

// Blocks that are to be resident on a multiprocessor, by which the compiler chooses how many registers a
// thread has. Unless a kernel says more it has as many as it likes: left to itself, the compiler would rather
// spill some.
template <class Kernel, class = void>
constexpr int kResident = 1;
template <class Kernel>
constexpr int kResident<Kernel, std::void_t<decltype(Kernel::kResident)>> = Kernel::kResident;

// Parameters stay where the launch puts them, which makes indexing them free: a copy would be on the stack.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, kResident<Kernel>)
    single(const __grid_constant__ typename Kernel::Parameters parameters,
           const __grid_constant__ Buffers buffers) {
  Kernel::run(parameters, buffers, block(), [] {});
}

using Parameters = decltype(Step::EFFV2_KIND);
using T = std::conditional_t<Format::EFFV2_FORMAT == Format::fp16, Half, Bf16>;

}  // namespace

#define EFFV2_EXPANDED(kind, format) EFFV2_ENTRY_NAME(kind, format)
Entry EFFV2_EXPANDED(EFFV2_KIND, EFFV2_FORMAT)(const Step& step) {
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
