// Formats that end far below float: what they hold runs, and what goes beyond is an error of that call alone.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/errors.h"
#include "networks.h"
#include "run_block.h"

namespace effv2::tests {
namespace {

constexpr Map kImage{38, 51, 3};
constexpr Activation kActivations[] = {Activation::none,  Activation::gelu, Activation::relu,
                                       Activation::relu6, Activation::silu, Activation::hardswish};

// Those whose largest value weights and images of ordinary networks may pass.
std::vector<const Target*> narrow_targets() {
  std::vector<const Target*> found;
  for (const Target* target : available_targets()) {
    if (target->largest < 1e6f) found.push_back(target);
  }
  if (found.empty()) note("skipped: no target of this processor computes in fp16");
  return found;
}

// y = activation(x + bias), channel by channel.
Sample identity(int channels, float bias, Activation activation) {
  Random random;
  Sample sample = conv_sample(random, channels, channels, {1, 1, activation});
  std::vector<float>& weight = sample.tensors["weight"].values;
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = i % (weight.size() / channels + 1) == 0;
  for (float& b : sample.tensors["bias"].values) b = bias;
  return sample;
}

// The reason that a run gave for refusing its images; empty where it took them.
std::string refusal(const NetworkSample& sample, const Network& network, const Images& images, int threads) {
  try {
    run_network(sample, network, images, threads, "a call");
    return "";
  } catch (const OverflowError& error) {
    return error.what();
  }
}

}  // namespace

TEST(overflow, the_last_value_and_the_next) {
  constexpr int kChannels = 9;
  const Map size{3, 5, kChannels};
  for (const Target* target : narrow_targets()) {
    std::vector<float> values(static_cast<std::size_t>(size.values()), 1.0f);
    values[71] = target->largest;
    const Batch batch = stored_batch(*target, values, 1, size);
    // Steps there are of 32: what is less than half of one rounds to the last value.
    for (const float bias : {0.0f, 15.0f, 16.0f, 40.0f}) {
      const NetworkSample sample{{identity(kChannels, bias, Activation::none)}, {}};
      const std::unique_ptr<Network> network = sample.build(*target);
      const std::string what = std::to_string(bias) + " more than the largest value";
      if (bias < 16) {
        const Outputs outputs = run_network(sample, *network, batch.images, 2, what);
        CHECK_THAT(outputs[0][71] == target->largest, what);
      } else {
        const std::string why = refusal(sample, *network, batch.images, 2);
        CHECK_THAT(why.rfind("a value went beyond 65504, the largest of fp16", 0) == 0, what + ": " + why);
      }
    }
  }
}

// Nothing inside of an activation goes beyond what its input and output need.
TEST(overflow, activations_take_all_values) {
  constexpr int kChannels = 8;
  const Map size{4, 7, kChannels};
  for (const Target* target : narrow_targets()) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < size.values(); ++i) {
      values.push_back(target->largest * std::exp2(-0.05f * static_cast<float>(i)) * (i % 2 ? 1.0f : -1.0f));
    }
    values[0] = -target->largest;
    values[1] = target->largest;
    values = rounded(*target, values);
    const Batch batch = stored_batch(*target, values, 1, size);
    for (const Activation activation : kActivations) {
      const NetworkSample sample{{identity(kChannels, 0, activation)}, {}};
      const std::string what = "activation " + std::to_string(static_cast<int>(activation));
      Exact exact(size);
      exact.values.assign(values.begin(), values.end());
      // GELU rounds a weight, and with it all values.
      const Outputs outputs = run_network(sample, *sample.build(*target), batch.images, 1, what);
      check_close(outputs[0].data(), sample.reference(exact)[0], 1e-3, what);
    }
  }
}

// Of one image in a batch, wherever it is, in whatever block: no output is returned, and the next call with
// the same memory knows nothing of it.
TEST(overflow, of_one_call) {
  Random random;
  constexpr int kImages = 4;
  for (const Target* target : narrow_targets()) {
    NetworkSample sample = small_network(random, kImage.height, kImage.width);
    sample.blocks.pop_back();
    sample.features = {{2, {}, {}}, {9, random.normal(56), random.normal(56)}};
    const std::vector<float> good = random.normal(kImages * kImage.values());
    const Batch ordinary = stored_batch(*target, good, kImages, kImage);
    const std::unique_ptr<Network> network = sample.build(*target);
    const Outputs expected = run_network(sample, *network, ordinary.images, 1, "ordinary images");
    for (const int place : {0, kImages - 1}) {
      std::vector<float> values = good;
      const auto image = values.begin() + place * kImage.values();
      // Large, and in the format still, whatever was drawn: beyond 5.4 deviations is seldom, and not never.
      const float most = target->largest;
      std::for_each(image, image + kImage.values(),
                    [most](float& value) { value = std::clamp(12000.0f * value, -most, most); });
      const Batch batch = stored_batch(*target, values, kImages, kImage);
      for (const float value : rounded(*target, values)) CHECK(std::isfinite(value));
      for (const int threads : {1, 2, 3, 8}) {
        const std::string what = std::to_string(threads) + " threads, image " + std::to_string(place);
        CHECK_THAT(!refusal(sample, *network, batch.images, threads).empty(), what);
        CHECK_THAT(same_bits(run_network(sample, *network, ordinary.images, threads, what), expected), what);
      }
    }
    // Images are ordinary, and so are weights; what they come to in the midst of the network is not.
    for (const std::size_t block : {std::size_t{3}, std::size_t{6}, sample.blocks.size() - 1}) {
      NetworkSample large = sample;
      const float most = large.blocks[block].enlarge("fc2_weight", 1.0f);
      large.blocks[block].enlarge("fc2_weight", 20000.0f / most);
      CHECK_THAT(!refusal(large, *large.build(*target), ordinary.images, 2).empty(), std::to_string(block));
    }
    // Of a feature's scale alone.
    NetworkSample scaled = sample;
    scaled.features[1].scale.assign(56, 60000.0f);
    CHECK(!refusal(scaled, *scaled.build(*target), ordinary.images, 2).empty());
  }
}

// An infinity or a NaN in an image is none: it comes out.
TEST(overflow, not_of_what_is_not_finite) {
  Random random;
  const NetworkSample sample = small_network(random, kImage.height, kImage.width);
  for (const Target* target : narrow_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> values = random.normal(2 * kImage.values());
      values[77] = bad;
      const Batch batch = stored_batch(*target, values, 2, kImage);
      const Outputs outputs = run_network(sample, *network, batch.images, 2, "not finite");
      for (int i = 0; i < 10; ++i) {
        CHECK(!std::isfinite(outputs[0][static_cast<std::size_t>(i)]));
        CHECK(std::isfinite(outputs[0][static_cast<std::size_t>(10 + i)]));
      }
    }
  }
}

// Weights are refused when a network is made, with the tensor's name or the block's.
TEST(overflow, of_weights) {
  Random random;
  for (const Target* target : narrow_targets()) {
    for (const char* name : {"fc1_weight", "dw_weight", "fc2_bias"}) {
      Sample block = ffn_sample(random, 16, 40);
      for (const bool fits : {true, false}) {
        block.tensors[name].values[5] = fits ? 60000.0f : 66000.0f;
        std::string reason;
        try {
          NetworkSample{{block}, {}}.build(*target);
        } catch (const Error& error) {
          reason = error.what();
        }
        CHECK_THAT(reason.empty() == fits, std::string(name) + ": " + reason);
        CHECK_THAT(fits || reason.find("fp16") != std::string::npos, reason);
      }
    }
  }
}

}  // namespace effv2::tests
