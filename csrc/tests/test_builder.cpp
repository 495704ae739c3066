// What the builder refuses, field by field.
#include <algorithm>
#include <cmath>
#include <limits>

#include "networks.h"

namespace effv2::tests {
namespace {

std::vector<Sample> one_of_each(Random& random) {
  return {stem_sample(random, 3, 8, 16),
          ffn_sample(random, 16, 24),
          attention_sample(random, 16, {2, 4, 6}, 1, {2, 3}),
          attention_sample(random, 16, {2, 4, 6}, 2, {2, 3, true}),
          conv_sample(random, 16, 24, {3, 2}),
          conv_sample(random, 16, 24, {5, 1, Activation::silu}),
          bottleneck_sample(random, 16, 24, 32, {true, 5, 2, false}),
          bottleneck_sample(random, 16, 0, 32, {false, 3, 1, false}),
          attention_sample(random, 16, {2, 4, 6}, 1, {2, 3}, {false, false, false}),
          attention_downsample_sample(random, 16, 24, {2, 4, 6}, {2, 3}),
          head_sample(random, 16, 10)};
}

// The message with which the builder refuses the fields; empty, and a failure, if it takes them. The
// network must stay as it was.
std::string refusal(const std::string& kind, const Fields& fields, const std::string& what,
                    Network* network = nullptr) {
  Network empty(fp32_targets().front());
  if (!network) network = &empty;
  const int size = network->size(), channels = network->out_channels();
  std::string message;
  try {
    add_block(*network, kind, fields);
    fail(__FILE__, __LINE__, what + ": was accepted");
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK_THAT(network->size() == size && network->out_channels() == channels,
             what + ": the network was changed");
  return message;
}

// Whether a tensor of this shape says something that no other tensor of the block contradicts: the grid
// that a bias was made for, or the channels that the block reads.
bool stands_alone(const Sample& sample, const std::string& name, const std::vector<std::int64_t>& shape) {
  const std::vector<std::int64_t>& given = sample.tensors.at(name).shape;
  if (shape.size() != given.size() || shape[0] != given[0]) return false;
  if (name == "bias") return shape.size() == 3;
  const bool only_reader = name == "conv1_weight" || name == "weight" ||
                           (name == "fc1_weight" && sample.options.at("residual") == 0);
  return only_reader && std::equal(shape.begin() + 2, shape.end(), given.begin() + 2);
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

}  // namespace

TEST(builder, takes_what_is_complete) {
  Random random;
  for (const Target* target : fp32_targets()) {
    for (const Sample& sample : one_of_each(random)) {
      Network network(target);
      CHECK(network.out_channels() == 0 && network.size() == 0);
      add_block(network, sample.kind, sample.fields());
      CHECK(network.in_channels() == sample.in_channels && network.out_channels() > 0 && network.size() == 1);
    }
  }
}

TEST(builder, copies_the_fields) {
  Random random;
  const Map size{2, 3, 16};
  const std::vector<float> x = random.normal(size.values());
  for (const Target* target : fp32_targets()) {
    for (const Sample& sample : one_of_each(random)) {
      if (sample.in_channels != size.channels) continue;
      NetworkSample twice{{sample}, {}};
      const std::unique_ptr<Network> network = twice.build(*target), kept = twice.build(*target);
      for (auto& [name, weight] : twice.blocks[0].tensors) weight = {weight.shape, {}};  // freed
      const Batch batch = batch_of(x, 1, size, nhwc(size));
      const NetworkSample original{{sample}, {}};
      CHECK(same_bits(run_network(original, *network, batch.images, 1, sample.name),
                      run_network(original, *original.build(*target), batch.images, 1, sample.name)));
    }
  }
}

TEST(builder, missing_tensors) {
  Random random;
  for (const Sample& sample : one_of_each(random)) {
    for (const auto& [name, weight] : sample.tensors) {
      if (sample.kind == "attention" && name == "bias") continue;  // it may be left out
      Fields fields = sample.fields();
      fields.tensors.erase(name);
      const std::string message = refusal(sample.kind, fields, sample.name + " without " + name);
      CHECK_THAT(mentions(message, sample.kind) && mentions(message, name) && mentions(message, "missing"),
                 message);
    }
  }
}

// Every axis one longer, one shorter, and empty; an axis more and an axis less.
TEST(builder, misshapen_tensors) {
  Random random;
  for (const Sample& sample : one_of_each(random)) {
    for (const auto& [name, weight] : sample.tensors) {
      std::vector<std::vector<std::int64_t>> shapes;
      for (std::size_t axis = 0; axis < weight.shape.size(); ++axis) {
        for (const std::int64_t size : {weight.shape[axis] + 1, weight.shape[axis] - 1, std::int64_t{0}}) {
          shapes.push_back(weight.shape);
          shapes.back()[axis] = size;
        }
      }
      shapes.push_back(weight.shape);
      shapes.back().push_back(1);
      shapes.push_back({weight.shape.begin(), weight.shape.end() - 1});
      for (const auto& shape : shapes) {
        std::int64_t count = 1;
        for (const std::int64_t n : shape) count *= n;
        if (count > 0 && stands_alone(sample, name, shape)) continue;
        Sample changed = sample;
        changed.tensors[name] = {shape, random.normal(count)};
        const std::string message =
            refusal(sample.kind, changed.fields(), sample.name + " with another shape of " + name);
        CHECK_THAT(mentions(message, sample.kind) && mentions(message, "has the shape ("), message);
      }
    }
  }
}

TEST(builder, values_that_are_not_finite) {
  Random random;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Sample& sample : one_of_each(random)) {
    for (const auto& [name, weight] : sample.tensors) {
      for (const float value : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        Sample changed = sample;
        std::vector<float>& values = changed.tensors.at(name).values;
        for (const std::size_t at : {std::size_t{0}, values.size() / 2, values.size() - 1}) {
          const float kept = values[at];
          values[at] = value;
          const std::string message = refusal(sample.kind, changed.fields(), sample.name + ": " + name);
          CHECK_THAT(mentions(message, sample.kind) && mentions(message, name) && mentions(message, "finite"),
                     message);
          values[at] = kept;
        }
      }
    }
  }
}

TEST(builder, options) {
  Random random;
  for (const Sample& sample : one_of_each(random)) {
    for (const auto& [name, value] : sample.options) {
      std::vector<std::int64_t> wrong = {0,
                                         -1,
                                         value + 1,
                                         1 << 20,
                                         std::int64_t{1} << 20,
                                         std::int64_t{1} << 32,
                                         (std::int64_t{1} << 32) + value,
                                         std::numeric_limits<std::int64_t>::min()};
      if (name == "stride") wrong = {0, -1, 3, (std::int64_t{1} << 32) + 1};
      if (name == "resize_bias") wrong = {-1, 2, (std::int64_t{1} << 32) + 1};
      if (name == "residual") wrong = {-1, 2, (std::int64_t{1} << 32) + 1};
      if (name == "activation") wrong = {-1, 6, (std::int64_t{1} << 32) + 1};
      for (const std::int64_t w : wrong) {
        Sample changed = sample;
        changed.options[name] = w;
        const std::string what = sample.name + ", " + name + "=" + std::to_string(w);
        CHECK(mentions(refusal(sample.kind, changed.fields(), what), sample.kind));
      }
      // These have a value of their own unless given.
      if (name == "stride" || name == "residual" || name == "activation" || name == "resize_bias") continue;
      Sample changed = sample;
      changed.options.erase(name);
      const std::string message = refusal(sample.kind, changed.fields(), sample.name + " without " + name);
      CHECK_THAT(mentions(message, sample.kind) && mentions(message, name), message);
    }
  }
}

// Products of sizes that do not fit into an int: 2^16 heads of 2^16 would make 2^32, which wraps to 0.
TEST(builder, sizes_that_overflow) {
  Random random;
  for (const Sample& sample : one_of_each(random)) {
    if (!sample.options.count("heads")) continue;
    for (const std::int64_t heads : {1 << 12, 1 << 16, 1 << 20}) {
      Sample changed = sample;
      changed.options["heads"] = heads;
      for (const char* name : {"key_dim", "value_dim"}) changed.options[name] = 1 << 20;
      CHECK(mentions(refusal(sample.kind, changed.fields(), sample.name), sample.kind));
    }
  }
}

TEST(builder, stride_two_needs_its_convolution) {
  Random random;
  Sample sample = attention_sample(random, 16, {2, 4, 6}, 1, {2, 3});
  sample.options["stride"] = 2;
  CHECK(mentions(refusal("attention", sample.fields(), "stride 2 without dw"), "dw_weight"));
}

TEST(builder, windows) {
  Random random;
  for (const int kernel : {1, 2, 4, 9}) {
    const Sample ffn = bottleneck_sample(random, 8, 16, 8, {true, kernel, 1});
    CHECK(mentions(refusal("ffn", ffn.fields(), ffn.name), "windows are of 3, 5 or 7"));
    if (kernel == 1) continue;
    const Sample conv = conv_sample(random, 8, 16, {kernel, 1});
    CHECK(mentions(refusal("conv", conv.fields(), conv.name), "windows are of 1, 3, 5 or 7"));
  }
}

TEST(builder, a_residual_needs_its_size) {
  Random random;
  Sample sample = bottleneck_sample(random, 8, 16, 8, {true, 3, 2, false});
  sample.options["residual"] = 1;
  CHECK(mentions(refusal("ffn", sample.fields(), "a strided residual"), "stride"));
  sample = bottleneck_sample(random, 8, 16, 12, {true, 3, 1, false});
  sample.options["residual"] = 1;
  CHECK(mentions(refusal("ffn", sample.fields(), "a residual of other channels"), "fc2_weight"));
}

TEST(builder, talking_heads_are_whole) {
  Random random;
  const Sample sample = attention_sample(random, 16, {2, 4, 6}, 1, {2, 3});
  for (const char* left : {"mix1_weight", "mix2_weight", "mix2_bias"}) {
    Fields fields = sample.fields();
    fields.tensors.erase(left);
    CHECK(mentions(refusal("attention", fields, left), left));
  }
}

TEST(builder, channels_must_agree) {
  Random random;
  for (const Target* target : fp32_targets()) {
    Network network(target);
    add_block(network, "conv", conv_sample(random, 8, 24, {3, 2}).fields());
    for (const Sample& sample : one_of_each(random)) {
      const std::string message =
          refusal(sample.kind, sample.fields(), sample.name + " behind 24 channels", &network);
      CHECK_THAT(mentions(message, "24") && mentions(message, std::to_string(sample.in_channels)), message);
    }
    add_block(network, "ffn", ffn_sample(random, 24, 16).fields());
    CHECK(network.size() == 2 && network.in_channels() == 8 && network.out_channels() == 24);
  }
}

TEST(builder, fields_that_a_block_has_not) {
  Random random;
  Sample sample = attention_sample(random, 16, {2, 4, 6}, 1, {2, 3});
  sample.tensors["dw_weight"] = {{16, 3, 3}, random.normal(144)};
  CHECK(mentions(refusal("attention", sample.fields(), "dw without stride"), "no field 'dw_weight'"));
  sample = conv_sample(random, 8, 16, {3, 1});
  sample.options["groups"] = 1;
  CHECK(mentions(refusal("conv", sample.fields(), "an unknown option"), "no field 'groups'"));
  // The name of a tensor that is there does not excuse an option of this name.
  sample = conv_sample(random, 8, 16, {3, 1});
  sample.options["bias"] = 1;
  CHECK(mentions(refusal("conv", sample.fields(), "an option for a tensor"), "no field 'bias'"));
}

// Right operands of products, and these alone, may have been stored in 16 bits.
TEST(builder, stored_bits) {
  Random random;
  const std::map<std::string, std::vector<std::string>> operands{
      {"stem", {"conv1_weight", "conv2_weight"}},
      {"ffn", {"fc1_weight", "fc2_weight"}},
      {"attention", {"qkv_weight", "proj_weight"}},
      {"conv", {"weight"}},
      {"attention_downsample", {"q_weight", "kv_weight", "proj_weight", "conv_weight"}},
      {"head", {"weight"}}};
  for (const Sample& sample : one_of_each(random)) {
    Fields fields = sample.fields();
    fields.halves = true;
    for (const std::string& name : operands.at(sample.kind)) {
      if (fields.tensors.count(name)) fields.tensors.at(name).half = true;
    }
    Network network(fp32_targets().front());
    add_block(network, sample.kind, fields);
    for (auto& [name, tensor] : fields.tensors) {
      tensor.half = !tensor.half;
      CHECK(mentions(refusal(sample.kind, fields, sample.name), name + " is stored in"));
      tensor.half = !tensor.half;
    }
  }
}

TEST(builder, unknown_kinds) {
  Random random;
  for (const char* kind : {"", "FFN", "ffn2", "attention_"}) {
    CHECK_THAT(mentions(refusal(kind, ffn_sample(random, 8, 8).fields(), kind), "unknown kind of block"),
               kind);
  }
}

}  // namespace effv2::tests
