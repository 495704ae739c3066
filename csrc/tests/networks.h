// Small whole networks, batches of images in any layout, and how to run them in guarded memory.
#pragma once

#include <string>
#include <vector>

#include "engine/network.h"
#include "memory.h"
#include "samples.h"

namespace effv2::tests {

// An output: after which block, and what it is scaled and shifted by (both empty: by nothing).
struct FeatureSample {
  int block;
  std::vector<float> scale, shift;
};

struct NetworkSample {
  std::vector<Sample> blocks;
  std::vector<FeatureSample> features;

  std::unique_ptr<Network> build(const Target& target, std::int64_t weight_bytes = 0) const;
  // Of one image, every output.
  std::vector<Exact> reference(const Exact& image) const;
};

// That of the map which an image of this size is after so many steps to half the resolution.
BiasTable table_after(int halvings, int height, int width);

// All six blocks, both attentions, a head; for images of this size, or of any with a resized bias.
NetworkSample small_network(Random& random, int height, int width, bool resize_bias = false);

// Images in memory that is NaN wherever they are not.
struct Batch {
  Guarded memory;
  Images images;
};
struct Strides {
  std::int64_t image, channel, row, pixel;
};
Strides nchw(Map size);
Strides nhwc(Map size);
// values: images one after the other, each NHWC.
Batch batch_of(const std::vector<float>& values, int count, Map size, const Strides& strides);
// In the target's format, NHWC as the values are, of which `count` images are taken.
Batch stored_batch(const Target& target, const std::vector<float>& values, int count, Map size);

// The values of every output, all images; fails the test where memory is overrun, or in fp32 left unwritten.
using Outputs = std::vector<std::vector<float>>;
Outputs run_network(const NetworkSample& sample, const Network& network, const Images& images, int threads,
                    const std::string& what);

bool same_bits(const Outputs& a, const Outputs& b);
// Image number `image` of `count`.
Outputs image_of(const Outputs& outputs, int image, int count);

}  // namespace effv2::tests
