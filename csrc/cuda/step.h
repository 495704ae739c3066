// One launch as plain data: which kernel, and what it is told.
#pragma once

#include "cuda/blocks/attention.h"
#include "cuda/blocks/attention_downsample.h"
#include "cuda/blocks/feature.h"
#include "cuda/blocks/ffn.h"
#include "cuda/blocks/head.h"
#include "cuda/blocks/stem.h"
#include "cuda/tiles/depthwise_map.h"
#include "cuda/tiles/image_conv.h"
#include "cuda/tiles/product.h"

namespace effv2::cuda {

enum class Kind : int {
  product,
  depthwise,
  image_conv,
  stem,
  ffn,
  attention,
  attention_downsample,
  mean,
  feature
};
constexpr const char* kKindNames[] = {"product", "depthwise", "image_conv",           "stem",
                                      "ffn",     "attention", "attention_downsample", "mean",
                                      "feature"};
enum class Format : int { fp16, bf16 };
constexpr const char* kFormatNames[] = {"fp16", "bf16"};

struct alignas(16) Step {
  Kind kind;
  Format format;
  int shape;  // which of its kind's kernels, see kernels.h
  union {
    Product product;
    Depthwise depthwise;
    ImageConv image_conv;
    Stem stem;
    Ffn ffn;
    Attention attention;
    AttentionDownsample attention_downsample;
    Mean mean;
    Feature feature;
  };

  // f(parameters) of its kind.
  template <class F>
  auto with_parameters(F&& f) {
    switch (kind) {
      case Kind::product:
        return f(product);
      case Kind::depthwise:
        return f(depthwise);
      case Kind::image_conv:
        return f(image_conv);
      case Kind::stem:
        return f(stem);
      case Kind::ffn:
        return f(ffn);
      case Kind::attention:
        return f(attention);
      case Kind::attention_downsample:
        return f(attention_downsample);
      case Kind::mean:
        return f(mean);
      case Kind::feature:
        break;
    }
    return f(feature);
  }
  template <class F>
  auto with_parameters(F&& f) const {
    return const_cast<Step*>(this)->with_parameters([&](const auto& parameters) { return f(parameters); });
  }
};

}  // namespace effv2::cuda
