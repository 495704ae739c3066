// All kernels that are compiled, by the shape of their tiles: the best for many tiles first.
#pragma once

#include <tuple>
#include <type_traits>

#include "cuda/shapes.h"
#include "cuda/step.h"

namespace effv2::cuda {

template <class... Kernels>
struct KernelList {
  static constexpr int kCount = sizeof...(Kernels);
  template <int Which>
  using At = std::tuple_element_t<Which, std::tuple<Kernels...>>;

  // f(Kernel{}) of one of them.
  template <class R, class F>
  static R with(int which, F&& f) {
    R result{};
    int i = 0;
    const bool found = ((i++ == which && (result = f(Kernels{}), true)) || ...);
    (void)found;
    return result;
  }
};

// --- Products --------------------------------------------------------------------------------------------
// Warps by rows, columns and parts of the sum; 16-row tiles of a warp; depth of a stage, and stages.

using Product128x64 = ProductShape<4, 2, 1, 2, 32, 4>;
using Product64x128 = ProductShape<2, 4, 1, 2, 32, 3>;
using Product64x64 = ProductShape<4, 2, 1, 1, 64, 3>;
using Product32x32 = ProductShape<2, 1, 4, 1, 128, 2>;
using Product16x32 = ProductShape<1, 1, 8, 1, 256, 2>;

template <class T, template <class> class SourceOf>
using Products = KernelList<ProductTile<T, SourceOf, Product128x64>, ProductTile<T, SourceOf, Product64x128>,
                            ProductTile<T, SourceOf, Product64x64>, ProductTile<T, SourceOf, Product32x32>,
                            ProductTile<T, SourceOf, Product16x32>>;
// From this one on they are for few tiles, and in the one launch as well (network.h).
constexpr int kSmallProducts = 2;

// --- FFN -------------------------------------------------------------------------------------------------
// Hidden channels of a slice, and products of a warp.

template <class T, FfnPart Part>
using FfnKernels =
    KernelList<FfnTile<T, Part, 8, 64, 1>, FfnTile<T, Part, 8, 64, 2>, FfnTile<T, Part, 8, 64, 3>,
               FfnTile<T, Part, 8, 32, 3>, FfnTile<T, Part, 8, 32, 6>>;
template <class T>
using FfnWideners = KernelList<FfnTile<T, FfnPart::widen, 8, 64, 1>, FfnTile<T, FfnPart::widen, 8, 32, 1>>;
// Those of the one launch; of other kinds it has the first.
constexpr int kFfnInOne = 0, kWidenInOne = 1;

// --- The others ------------------------------------------------------------------------------------------

template <class T>
using ImageConvs = KernelList<ImageConvTile<T, 8>>;
template <class T>
using Stems = KernelList<StemTile<T, 8, 1>, StemTile<T, 8, 2>, StemTile<T, 8, 4>>;
// Heads of a block.
template <class T>
using Attentions = KernelList<AttentionTile<T, 2>, AttentionTile<T, 4>>;
template <class T>
using AttentionDownsamples = KernelList<AttentionDownsampleTile<T>>;
template <class T>
using Depthwises = KernelList<DepthwiseTile<T, 256>>;
template <class T>
using Means = KernelList<MeanTile<T, 256>>;
template <class T>
using Features = KernelList<FeatureTile<T, 256>>;

template <class R, class T, class F>
R with_product(const Step& step, F&& f) {
  switch (step.product.source) {
    case Source::pixels:
      return Products<T, PixelsOf>::template with<R>(step.shape, f);
    case Source::window:
      return Products<T, WindowOf>::template with<R>(step.shape, f);
    case Source::joined:
      return Products<T, Joined>::template with<R>(step.shape, f);
    case Source::enlarged:
      break;
  }
  return Products<T, EnlargedOf>::template with<R>(step.shape, f);
}
template <class R, class T, class F>
R with_ffn(const Step& step, F&& f) {
  switch (step.ffn.part) {
    case FfnPart::whole:
      return FfnKernels<T, FfnPart::whole>::template with<R>(step.shape, f);
    case FfnPart::widen:
      return FfnWideners<T>::template with<R>(step.shape, f);
    case FfnPart::narrow:
      break;
  }
  return FfnKernels<T, FfnPart::narrow>::template with<R>(step.shape, f);
}

// f(Kernel{}, parameters) of a step; R{} for a shape that there is not.
template <class R, class T, class F>
R with_kernel_of(const Step& step, F&& f) {
  return step.with_parameters([&](const auto& parameters) {
    using P = std::decay_t<decltype(parameters)>;
    const auto g = [&](auto kernel) { return f(kernel, parameters); };
    if constexpr (std::is_same_v<P, Product>) return with_product<R, T>(step, g);
    if constexpr (std::is_same_v<P, Depthwise>) return Depthwises<T>::template with<R>(step.shape, g);
    if constexpr (std::is_same_v<P, ImageConv>) return ImageConvs<T>::template with<R>(step.shape, g);
    if constexpr (std::is_same_v<P, Stem>) return Stems<T>::template with<R>(step.shape, g);
    if constexpr (std::is_same_v<P, Ffn>) return with_ffn<R, T>(step, g);
    if constexpr (std::is_same_v<P, Attention>) return Attentions<T>::template with<R>(step.shape, g);
    if constexpr (std::is_same_v<P, AttentionDownsample>) {
      return AttentionDownsamples<T>::template with<R>(step.shape, g);
    }
    if constexpr (std::is_same_v<P, Mean>) return Means<T>::template with<R>(step.shape, g);
    if constexpr (std::is_same_v<P, Feature>) return Features<T>::template with<R>(step.shape, g);
  });
}
template <class R, class F>
R with_kernel(const Step& step, F&& f) {
  return step.format == Format::fp16 ? with_kernel_of<R, Half>(step, f) : with_kernel_of<R, Bf16>(step, f);
}

}  // namespace effv2::cuda
