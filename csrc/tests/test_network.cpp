// Whole networks: batches, threads, layouts, features, resolutions.
#include <chrono>
#include <cmath>
#include <limits>

#include "networks.h"
#include "run_block.h"

namespace effv2::tests {
namespace {

constexpr Map kImage{70, 51, 3};  // odd somewhere at every stage: 18x13, 9x7, 5x4, 3x2

std::string named(const Target& target, int count, int threads) {
  return std::string(target.isa) + ", " + std::to_string(count) + " images, " + std::to_string(threads) +
         " threads";
}

Exact exact_image(const std::vector<float>& values, int image, Map size) {
  Exact exact(size);
  const auto begin = values.begin() + image * size.values();
  exact.values.assign(begin, begin + size.values());
  return exact;
}

void check_outputs(const Outputs& outputs, const std::vector<Exact>& expected, const std::string& what,
                   double bound = kNetworkBound) {
  CHECK_THAT(outputs.size() == expected.size(), what + ": wrong number of outputs");
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK_THAT(outputs[i].size() == expected[i].values.size(), what + ": wrong size of output");
    check_close(outputs[i].data(), expected[i], bound, what + ", output " + std::to_string(i));
  }
}

// Every output of every image is right, and the same bits for any batch, place in it, threads and layout.
void check_network(const NetworkSample& sample, Map size, Random& random) {
  constexpr int kImages = 9;
  const std::vector<float> values = random.normal(kImages * size.values());
  std::vector<std::vector<Exact>> expected;
  for (int n = 0; n < kImages; ++n) expected.push_back(sample.reference(exact_image(values, n, size)));
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    const Batch all = batch_of(values, kImages, size, nchw(size));
    const Outputs first = run_network(sample, *network, all.images, 1, named(*target, kImages, 1));
    for (int n = 0; n < kImages; ++n) {
      check_outputs(image_of(first, n, kImages), expected[static_cast<std::size_t>(n)],
                    named(*target, kImages, 1) + ", image " + std::to_string(n));
    }
    for (const int count : {1, 2, 3, kImages}) {
      const Batch some = batch_of(values, count, size, nhwc(size));
      for (const int threads : {-1, 1, 2, 3, 8}) {
        const Outputs outputs =
            run_network(sample, *network, some.images, threads, named(*target, count, threads));
        for (int n = 0; n < count; ++n) {
          CHECK_THAT(same_bits(image_of(outputs, n, count), image_of(first, n, kImages)),
                     named(*target, count, threads) + ": other bits in image " + std::to_string(n));
        }
      }
    }
  }
}

}  // namespace

// What a network says of the sizes that fit is what it takes: those and no others.
TEST(network, sizes_that_fit) {
  Random random;
  const NetworkSample sample = small_network(random, 40, 56);
  const std::unique_ptr<Network> network = sample.build(*fp32_targets().front());
  for (const int height : {1, 32, 33, 40, 48, 49, 1000}) {
    for (const int width : {1, 48, 49, 56, 64, 65, 1000}) {
      const std::string size = std::to_string(height) + "x" + std::to_string(width);
      const bool fits = height >= 33 && height <= 48 && width >= 49 && width <= 64;
      try {
        network->maps(height, width);
        CHECK_THAT(fits, size);
      } catch (const ResolutionError& error) {
        const std::string expected =
            "the attention biases of this network fit images of 33-48 rows by 49-64 columns, but this one "
            "is ";
        CHECK_THAT(!fits && error.what() == expected + size, error.what());
      }
    }
  }
}

// An attention with a stride has a grid of half the resolution; what is behind a downsampling counts as well.
TEST(network, sizes_that_fit_each_kind_of_attention) {
  Random random;
  const auto refusal = [](const NetworkSample& sample) -> std::string {
    try {
      sample.build(*fp32_targets().front())->maps(1000, 1000);
    } catch (const ResolutionError& error) {
      return error.what();
    }
    return "";
  };
  NetworkSample sample;
  sample.blocks = {conv_sample(random, 3, 16, {3, 2}), attention_sample(random, 16, {2, 4, 6}, 2, {2, 3})};
  CHECK_THAT(refusal(sample).find("of 5-8 rows by 9-12 columns") != std::string::npos, refusal(sample));
  sample.blocks = {attention_downsample_sample(random, 16, 24, {2, 4, 6}, {5, 7}),
                   attention_sample(random, 24, {2, 4, 6}, 1, {3, 4})};
  CHECK_THAT(refusal(sample).find("of 5-5 rows by 7-7 columns") != std::string::npos, refusal(sample));
  sample.blocks[1] = attention_sample(random, 24, {2, 4, 6}, 1, {9, 9});
  CHECK_THAT(refusal(sample).find("none fits all of them") != std::string::npos, refusal(sample));
  // As many halvings as there may be.
  sample.blocks = {};
  for (int i = 0; i < 70; ++i) sample.blocks.push_back(conv_sample(random, 8, 8, {1, 2}));
  sample.blocks.push_back(attention_sample(random, 8, {2, 4, 6}, 1, {1, 2}));
  CHECK_THAT(refusal(sample).find("none fits all of them") != std::string::npos, refusal(sample));
}

TEST(network, logits) {
  Random random;
  check_network(small_network(random, kImage.height, kImage.width), kImage, random);
}

// Large networks have their weights in an arena.
TEST(network, weights_in_an_arena) {
  Random random;
  const NetworkSample sample = small_network(random, kImage.height, kImage.width);
  const Batch batch = batch_of(random.normal(2 * kImage.values()), 2, kImage, nchw(kImage));
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> small = sample.build(*target), large = sample.build(*target, 1 << 30);
    CHECK(!small->arena() && large->arena());
    CHECK_THAT(same_bits(run_network(sample, *small, batch.images, 2, target->isa),
                         run_network(sample, *large, batch.images, 2, target->isa)),
               std::string(target->isa) + ": other bits in an arena");
  }
}

// What one arena gives overlaps nothing else and is aligned, whether or not it fits into a piece.
TEST(network, arena_gives_separate_memory) {
  Arena arena;
  std::vector<std::pair<float*, std::int64_t>> taken;
  for (const std::int64_t floats : {1, 100, 1 << 20, 1 << 24, 17, (1 << 24) + 5, 3}) {
    taken.emplace_back(reinterpret_cast<float*>(arena.take(4 * floats)), floats);
    CHECK(reinterpret_cast<std::uintptr_t>(taken.back().first) % 64 == 0);
    taken.back().first[0] = taken.back().first[floats - 1] = static_cast<float>(taken.size());
  }
  for (std::size_t i = 0; i < taken.size(); ++i) {
    const auto [data, floats] = taken[i];
    CHECK(data[0] == static_cast<float>(i + 1) && data[floats - 1] == static_cast<float>(i + 1));
    for (std::size_t j = 0; j < i; ++j) {
      CHECK(data >= taken[j].first + taken[j].second || data + floats <= taken[j].first);
    }
  }
}

TEST(network, features) {
  Random random;
  NetworkSample sample = small_network(random, kImage.height, kImage.width);
  sample.blocks.pop_back();
  // The first block, two in a row, and the last; scaled and shifted, and as they are.
  sample.features = {{0, {}, {}},
                     {1, random.normal(16), random.normal(16)},
                     {5, random.normal(40), random.normal(40)},
                     {6, {}, {}},
                     {9, random.normal(56), random.normal(56)}};
  check_network(sample, kImage, random);
  sample.features = {{4, {}, {}}, {9, {}, {}}};
  check_network(sample, kImage, random);
  // Blocks behind the last feature run for nothing, and must not disturb it.
  sample.features = {{0, random.normal(16), random.normal(16)}, {2, random.normal(24), random.normal(24)}};
  check_network(sample, kImage, random);
}

TEST(network, one_feature_per_block) {
  Random random;
  Network network(fp32_targets().front());
  const auto refused = [&] {
    try {
      network.add_feature(nullptr, nullptr, 24);
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  CHECK(refused());
  for (int i = 0; i < 2; ++i) {
    add_block(network, "ffn", ffn_sample(random, 24, 32).fields());
    network.add_feature(nullptr, nullptr, 24);
    CHECK(refused());
  }
  CHECK(network.outputs() == 2);
}

TEST(network, layouts) {
  Random random;
  const std::int64_t h = kImage.height, w = kImage.width, c = kImage.channels;
  const Strides layouts[] = {nchw(kImage),
                             nhwc(kImage),
                             {h * w * c, h * w, 1, h},                              // transposed
                             {1, 3 * h * w, 3 * w, 3},                              // batch innermost
                             {c * (h + 3) * (w + 5), (h + 3) * (w + 5), w + 5, 1},  // a window
                             {(h + 3) * (w + 5) * c, 1, (w + 5) * c, c},
                             {12 * h * w * c, 6 * h * w, 6 * w, 3}};  // every second row, third column
  const NetworkSample whole = small_network(random, kImage.height, kImage.width);
  const std::vector<float> values = random.normal(3 * kImage.values());
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = whole.build(*target);
    Outputs first;
    for (const Strides& strides : layouts) {
      const Batch batch = batch_of(values, 3, kImage, strides);
      for (const int threads : {1, 2, 3}) {
        const Outputs outputs =
            run_network(whole, *network, batch.images, threads, named(*target, 3, threads));
        if (first.empty()) first = outputs;
        CHECK_THAT(same_bits(outputs, first), named(*target, 3, threads) + ": other bits for another layout");
      }
    }
  }
}

// Only the stem reads other maps than dense ones: inputs of single blocks are made dense first.
TEST(network, single_blocks_take_any_layout) {
  Random random;
  const Map size{6, 5, 24};
  const std::int64_t h = size.height, w = size.width, c = size.channels;
  const Strides layouts[] = {
      nhwc(size), nchw(size), {1, 3 * h * w, 3 * w, 3}, {(h + 3) * (w + 5) * c, 1, (w + 5) * c, c}};
  const Sample samples[] = {ffn_sample(random, 24, 72),
                            conv_sample(random, 24, 40, {3, 2}),
                            attention_sample(random, 24, {3, 8, 12}, 1, {6, 5}),
                            attention_sample(random, 24, {3, 8, 12}, 2, {3, 3}),
                            attention_downsample_sample(random, 24, 40, {3, 8, 12}, {6, 5}),
                            head_sample(random, 24, 10)};
  for (const Sample& block : samples) {
    NetworkSample sample{{block}, {}};
    check_network(sample, size, random);
    const std::vector<float> values = random.normal(3 * size.values());
    for (const Target* target : fp32_targets()) {
      const std::unique_ptr<Network> network = sample.build(*target);
      Outputs first;
      for (const Strides& strides : layouts) {
        const Batch batch = batch_of(values, 3, size, strides);
        const std::string what = block.name + ", " + named(*target, 3, 2);
        const Outputs outputs = run_network(sample, *network, batch.images, 2, what);
        if (first.empty()) first = outputs;
        CHECK_THAT(same_bits(outputs, first), what + ": other bits for another layout");
      }
    }
  }
}

// An expanded tensor has strides of zero.
TEST(network, expanded_images) {
  Random random;
  const NetworkSample sample = small_network(random, 33, 40);
  const Map size{33, 40, 3};
  const std::vector<float> row = random.normal(40);
  std::vector<float> values;
  for (int y = 0; y < 33; ++y) {
    for (int x = 0; x < 40; ++x) values.insert(values.end(), 3, row[static_cast<std::size_t>(x)]);
  }
  const std::vector<Exact> expected = sample.reference(exact_image(values, 0, size));
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    const Images images{row.data(), 3, 3, 33, 40, 0, 0, 0, 1};
    const Outputs outputs = run_network(sample, *network, images, 2, target->isa);
    for (int n = 0; n < 3; ++n) check_outputs(image_of(outputs, n, 3), expected, target->isa);
  }
}

// More resolutions in turn than are remembered: arenas and prepared biases must fit the image at hand.
TEST(network, many_resolutions) {
  Random random;
  const NetworkSample sample = small_network(random, 0, 0, true);
  const std::unique_ptr<Network> network = sample.build(*fp32_targets().front());
  struct Case {
    Batch batch;
    Outputs outputs;
  };
  std::vector<Case> cases;
  for (int i = 0; i < 20; ++i) {
    const Map size{1 + 7 * i % 53, 1 + 11 * i % 61, 3};
    const std::vector<float> values = random.normal(2 * size.values());
    Batch batch = batch_of(values, 2, size, nchw(size));
    const std::string what = std::to_string(size.height) + "x" + std::to_string(size.width);
    Outputs outputs = run_network(sample, *network, batch.images, 1 + i % 3, what);
    for (int n = 0; n < 2; ++n) {
      check_outputs(image_of(outputs, n, 2), sample.reference(exact_image(values, n, size)), what);
    }
    cases.push_back({std::move(batch), std::move(outputs)});
  }
  for (int i = 0; i < 60; ++i) {
    const Case& c = cases[static_cast<std::size_t>(random.bits() % cases.size())];
    CHECK(same_bits(run_network(sample, *network, c.batch.images, 1 + i % 3, "again"), c.outputs));
  }
}

TEST(network, what_is_not_finite_stays_in_its_image) {
  Random random;
  const NetworkSample sample = small_network(random, 33, 40);
  const Map size{33, 40, 3};
  const std::vector<float> values = random.normal(5 * size.values());
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    const Batch clean = batch_of(values, 5, size, nchw(size));
    const Outputs expected = run_network(sample, *network, clean.images, 1, target->isa);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const int place : {0, 2, 4}) {
        const Batch batch = batch_of(values, 5, size, nchw(size));
        batch.memory.data()[place * size.values() + random.bits() % size.values()] = bad;
        // Afterwards the same memory serves clean images again.
        const Outputs outputs = run_network(sample, *network, batch.images, 2, target->isa);
        CHECK_THAT(same_bits(run_network(sample, *network, clean.images, 2, target->isa), expected),
                   target->isa);
        for (int n = 0; n < 5; ++n) {
          if (n == place) {
            const Outputs logits = image_of(outputs, n, 5);
            for (const float logit : logits[0]) CHECK_THAT(!std::isfinite(logit), target->isa);
          } else {
            CHECK_THAT(same_bits(image_of(outputs, n, 5), image_of(expected, n, 5)), target->isa);
          }
        }
      }
    }
  }
}

// Stored in halves, a whole network stays near the reference, and its bits depend on neither threads nor
// batch.
TEST(network, in_halves) {
  Random random;
  NetworkSample sample = small_network(random, kImage.height, kImage.width);
  const auto check = [&] {
    for (const Target* target : available_targets()) {
      if (target->value_bytes != 2) continue;
      const std::unique_ptr<Network> network = sample.build(*target);
      const std::vector<float> values = rounded(*target, random.normal(3 * kImage.values()));
      const auto run = [&](int first, int count, int threads) {
        const std::vector<float> from(values.begin() + first * kImage.values(), values.end());
        const Batch batch = stored_batch(*target, from, count, kImage);
        return run_network(sample, *network, batch.images, threads, named(*target, count, threads));
      };
      const Outputs all = run(0, 3, 1);
      for (const int threads : {2, 3, 5}) CHECK(same_bits(run(0, 3, threads), all));
      for (int n = 0; n < 3; ++n) {
        CHECK(same_bits(run(n, 1, 3), image_of(all, n, 3)));
        check_outputs(image_of(all, n, 3), sample.reference(exact_image(values, n, kImage)),
                      named(*target, 3, 1) + " in halves", kHalfNetworkBound);
      }
    }
  };
  check();  // logits
  sample.blocks.pop_back();
  sample.features = {{1, {}, {}}, {4, random.normal(40), random.normal(40)}, {9, {}, {}}};
  check();
}

TEST(network, times_of_blocks) {
  Random random;
  const NetworkSample sample = small_network(random, 70, 51);
  const std::vector<float> values = random.normal(3 * kImage.values());
  const Batch batch = batch_of(values, 3, kImage, nchw(kImage));
  for (const Target* target : fp32_targets()) {
    const std::unique_ptr<Network> network = sample.build(*target);
    const Outputs expected = run_network(sample, *network, batch.images, 1, target->isa);
    for (const int threads : {1, 2}) {
      Guarded logits(3 * 10), seconds_memory(2 * static_cast<std::int64_t>(sample.blocks.size()));
      std::vector<double> seconds(sample.blocks.size(), -1);
      void* address = logits.data();
      const auto start = std::chrono::steady_clock::now();
      network->run(batch.images, &address, threads, seconds.data());
      const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      for (const double s : seconds) CHECK_THAT(s > 0 && s <= elapsed, target->isa);
      CHECK(same_bits({{logits.data(), logits.data() + 30}}, expected));
    }
  }
}

TEST(network, shapes) {
  Random random;
  const NetworkSample sample = small_network(random, 70, 51);
  const std::unique_ptr<Network> network = sample.build(*fp32_targets().front());
  CHECK(network->in_channels() == 3 && network->out_channels() == 10);
  CHECK(network->size() == static_cast<int>(sample.blocks.size()) && network->outputs() == 1);
  constexpr Map kExpected[] = {{18, 13, 16}, {18, 13, 16}, {9, 7, 24}, {9, 7, 24}, {5, 4, 40}, {5, 4, 40},
                               {5, 4, 40},   {3, 2, 56},   {3, 2, 56}, {3, 2, 56}, {1, 1, 10}};
  const std::vector<Map> maps = network->maps(70, 51);
  CHECK(maps.size() == std::size(kExpected));
  for (std::size_t i = 0; i < maps.size() && i < std::size(kExpected); ++i) {
    CHECK(maps[i].height == kExpected[i].height && maps[i].width == kExpected[i].width);
    CHECK(maps[i].channels == kExpected[i].channels);
  }
  const std::vector<std::int64_t> multiply_adds = network->multiply_adds(70, 51);
  CHECK(multiply_adds.size() == maps.size());
  CHECK(multiply_adds.front() == 35 * 26 * 8 * 27 + 18 * 13 * 16 * 72);
  CHECK(multiply_adds.back() == 560);

  // The same tokens: the biases fit. One row more at the deepest stage: they do not.
  CHECK(network->maps(72, 49).size() == maps.size());
  std::string message;
  try {
    network->maps(100, 51);
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK_THAT(message.find("attention bias") != std::string::npos, "no or another error: " + message);
}

}  // namespace effv2::tests
