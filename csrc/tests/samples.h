// Blocks with random weights, as the engine's factories, its builder and the reference take them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "engine/builder.h"
#include "reference.h"
#include "targets.h"

namespace effv2::tests {

class Random {
 public:
  explicit Random(std::uint64_t seed = test_seed()) : engine_(seed) {}
  // Normal, mean 0.
  std::vector<float> normal(std::int64_t count, double deviation = 1.0);
  // Integers of [low, high].
  std::vector<float> integers(std::int64_t count, int low, int high);
  std::uint32_t bits() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937_64 engine_;
};

struct Weight {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

struct Sample {
  std::string kind;  // the block's stem
  std::string name;  // for messages: the kind and its sizes
  int in_channels;
  std::map<std::string, Weight> tensors;  // by the field names of effv2_kernels/blocks.py
  std::map<std::string, std::int64_t> options;

  std::unique_ptr<Block> build(const Target& target) const;
  Exact reference(const Exact& x) const;
  // Points into tensors.
  Fields fields() const;
  // Multiplies a tensor by `factor` and returns its largest magnitude.
  float enlarge(const std::string& name, float factor);
  // Replaces a tensor by integers of [low, high] times `factor`.
  void set_integers(const std::string& name, Random& random, int low, int high, int factor = 1);
};

// Where the attention bias comes from: rows x cols of its table, and whether it is resized to the map.
struct BiasTable {
  int rows, cols;
  bool resize = false;
};

struct HeadSizes {
  int heads, key_dim, value_dim;
};

struct Window {
  int kernel, stride;
  Activation activation = Activation::none;
};

// Of an FFN; hidden is the number of channels where it does not expand.
struct Bottleneck {
  bool expands = true;
  int kernel = 3, stride = 1;
  bool residual = false;
  Activation activation = Activation::relu6;
};

struct AttentionParts {
  bool mixing = true, bias = true, local = true;
  Activation activation = Activation::gelu;
};

// Weights keep activations of order 1 and the branch as large as the residual, so that the relative error
// shows mistakes in either.
Sample stem_sample(Random& random, int in, int mid, int out);
Sample ffn_sample(Random& random, int channels, int hidden);
Sample bottleneck_sample(Random& random, int channels, int hidden, int out, const Bottleneck& options);
Sample attention_sample(Random& random, int channels, HeadSizes sizes, int stride, BiasTable bias,
                        const AttentionParts& parts = {});
Sample conv_sample(Random& random, int in, int out, const Window& window);
Sample attention_downsample_sample(Random& random, int in, int out, HeadSizes sizes, BiasTable bias);
Sample head_sample(Random& random, int channels, int classes);

}  // namespace effv2::tests
