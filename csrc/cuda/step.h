// One launch as plain data: which kernel, and what it is told.
#pragma once

#include "cuda/blocks/ffn.h"
#include "cuda/tiles/product.h"

namespace effv2::cuda {

enum class Kind : int { product, ffn };
constexpr const char* kKindNames[] = {"product", "ffn"};
enum class Format : int { fp16, bf16 };
constexpr const char* kFormatNames[] = {"fp16", "bf16"};

struct Step {
  Kind kind;
  Format format;
  int shape;  // which of its kind's kernels, see kernels.h
  union {
    Product product;
    Ffn ffn;
  };

  // f(parameters) of its kind.
  template <class F>
  auto with_parameters(F&& f) {
    switch (kind) {
      case Kind::product:
        return f(product);
      case Kind::ffn:
        break;
    }
    return f(ffn);
  }
  template <class F>
  auto with_parameters(F&& f) const {
    return const_cast<Step*>(this)->with_parameters([&](const auto& parameters) { return f(parameters); });
  }
};

}  // namespace effv2::cuda
