#include "networks.h"

#include "run_block.h"

namespace effv2::tests {

std::unique_ptr<Network> NetworkSample::build(const Target& target, std::int64_t weight_bytes) const {
  auto network = std::make_unique<Network>(&target, weight_bytes);
  std::size_t next = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    add_block(*network, blocks[i].kind, blocks[i].fields());
    if (next == features.size() || features[next].block != static_cast<int>(i)) continue;
    const FeatureSample& feature = features[next++];
    const bool scaled = !feature.scale.empty();
    network->add_feature(scaled ? feature.scale.data() : nullptr, scaled ? feature.shift.data() : nullptr,
                         network->out_channels());
  }
  return network;
}

std::vector<Exact> NetworkSample::reference(const Exact& image) const {
  std::vector<Exact> outputs;
  Exact x = image;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    x = blocks[i].reference(x);
    for (const FeatureSample& feature : features) {
      if (feature.block != static_cast<int>(i)) continue;
      Exact y = x;
      for (std::size_t at = 0; at < y.values.size() && !feature.scale.empty(); ++at) {
        const std::size_t c = at % feature.scale.size();
        y.values[at] = y.values[at] * feature.scale[c] + feature.shift[c];
      }
      outputs.push_back(y);
    }
  }
  if (features.empty()) outputs.push_back(x);
  return outputs;
}

BiasTable table_after(int halvings, int height, int width) {
  for (; halvings > 0; --halvings) {
    height = (height + 1) / 2;
    width = (width + 1) / 2;
  }
  return {height, width};
}

NetworkSample small_network(Random& random, int height, int width, bool resize_bias) {
  const auto table = [&](int halvings) {
    return resize_bias ? BiasTable{3, 2, true} : table_after(halvings, height, width);
  };
  NetworkSample network;
  network.blocks = {stem_sample(random, 3, 8, 16),
                    ffn_sample(random, 16, 44),
                    conv_sample(random, 16, 24, {3, 2}),
                    ffn_sample(random, 24, 72),
                    conv_sample(random, 24, 40, {3, 2}),
                    attention_sample(random, 40, {3, 8, 12}, 2, table(5)),
                    ffn_sample(random, 40, 132),
                    attention_downsample_sample(random, 40, 56, {3, 8, 12}, table(4)),
                    attention_sample(random, 56, {2, 8, 20}, 1, table(5)),
                    ffn_sample(random, 56, 300),
                    head_sample(random, 56, 10)};
  // Ten logits may all come out small, and rounding upstream would then look large beside them.
  network.blocks.back().enlarge("bias", 3.0f);
  return network;
}

Strides nchw(Map size) { return {size.values(), size.pixels(), size.width, 1}; }

Strides nhwc(Map size) { return {size.values(), 1, std::int64_t{size.width} * size.channels, size.channels}; }

Batch batch_of(const std::vector<float>& values, int count, Map size, const Strides& s) {
  const std::int64_t extent = (count - 1) * s.image + (size.channels - 1) * s.channel +
                              (size.height - 1) * s.row + (size.width - 1) * s.pixel + 1;
  Batch batch{Guarded(extent), {}};
  batch.images = {batch.memory.data(), count, size.channels, size.height, size.width, s.image,
                  s.channel,           s.row, s.pixel};
  const float* from = values.data();
  for (int n = 0; n < count; ++n) {
    for (int y = 0; y < size.height; ++y) {
      for (int x = 0; x < size.width; ++x) {
        for (int c = 0; c < size.channels; ++c) {
          batch.memory.data()[n * s.image + y * s.row + x * s.pixel + c * s.channel] = *from++;
        }
      }
    }
  }
  return batch;
}

Batch stored_batch(const Target& target, const std::vector<float>& values, int count, Map size) {
  const Strides s = nhwc(size);
  const std::vector<float> some(values.begin(), values.begin() + count * size.values());
  Batch batch{stored(target, some), {}};
  batch.images = {batch.memory.data(), count, size.channels, size.height, size.width, s.image,
                  s.channel,           s.row, s.pixel};
  return batch;
}

Outputs run_network(const NetworkSample& sample, const Network& network, const Images& images, int threads,
                    const std::string& what) {
  const Target& target = network.target();
  const std::vector<Map> maps = network.maps(images.height, images.width);
  std::vector<Guarded> memory;
  std::vector<std::int64_t> counts;
  const auto add_output = [&](const Map& map) {
    counts.push_back(images.count * map.values());
    memory.push_back(room_for(target, counts.back()));
  };
  for (const FeatureSample& feature : sample.features)
    add_output(maps[static_cast<std::size_t>(feature.block)]);
  if (memory.empty()) add_output(maps.back());
  std::vector<void*> addresses;
  for (const Guarded& output : memory) addresses.push_back(output.data());
  network.run(images, addresses.data(), threads, nullptr);
  Outputs outputs;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    memory[i].check(what + ": output");
    // In halves what is not written is NaN, and far from everything.
    const std::int64_t unwritten = target.value_bytes == 4 ? memory[i].unwritten() : 0;
    CHECK_THAT(unwritten == 0, what + ": " + std::to_string(unwritten) + " outputs were not written");
    outputs.push_back(loaded(target, memory[i], counts[i]));
  }
  return outputs;
}

bool same_bits(const Outputs& a, const Outputs& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size() ||
        std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

Outputs image_of(const Outputs& outputs, int image, int count) {
  Outputs one;
  for (const std::vector<float>& output : outputs) {
    const auto each = static_cast<std::ptrdiff_t>(output.size()) / count;
    one.emplace_back(output.begin() + image * each, output.begin() + (image + 1) * each);
  }
  return one;
}

}  // namespace effv2::tests
