// Every block in double precision, as plainly as its equation in effv2_kernels/blocks.py is written: no
// packing, no order of execution, no code shared with the engine.
#pragma once

#include <vector>

#include "engine/block.h"
#include "engine/spec.h"

namespace effv2::tests {

// A feature map, dense NHWC.
struct Exact {
  Map size;
  std::vector<double> values;

  explicit Exact(Map map) : size(map), values(static_cast<std::size_t>(map.values())) {}
  double& at(int y, int x, int c) {
    return values[(static_cast<std::size_t>(y) * size.width + x) * size.channels + c];
  }
  double at(int y, int x, int c) const { return const_cast<Exact*>(this)->at(y, x, c); }
};

Exact reference(const StemSpec& spec, const Exact& x);
Exact reference(const FfnSpec& spec, const Exact& x);
Exact reference(const AttentionSpec& spec, const Exact& x);
Exact reference(const ConvSpec& spec, const Exact& x);
Exact reference(const AttentionDownsampleSpec& spec, const Exact& x);
Exact reference(const HeadSpec& spec, const Exact& x);

}  // namespace effv2::tests
