// FFN: 1x1, an activation, depthwise, the activation, 1x1, residual; most of it optional.
#include <algorithm>

#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

// Maps that are computed whole: around the sizes of tiles, up to 256 pixels; single rows and columns; and
// rows that divide evenly among threads.
constexpr Size kSmall[] = {{1, 1},  {1, 2},  {2, 1},  {2, 2},   {3, 5}, {7, 7},  {1, 31},
                           {29, 1}, {9, 13}, {17, 3}, {16, 16}, {8, 3}, {12, 5}, {20, 1}};
// Maps that are walked in bands of rows: just above 256 pixels, odd, narrow, and wider than one band may be.
constexpr Size kLarge[] = {{17, 16}, {16, 17}, {19, 23}, {300, 1}, {1, 300},
                           {130, 3}, {3, 350}, {2, 401}, {5, 170}, {40, 9}};

}  // namespace

TEST(ffn, small_maps) {
  Random random;
  const Sample sample = ffn_sample(random, 24, 79);
  for (const Size& map : kSmall) check_block(sample, map.height, map.width, random);
}

TEST(ffn, large_maps) {
  Random random;
  const Sample sample = ffn_sample(random, 16, 44);
  for (const Size& map : kLarge) check_block(sample, map.height, map.width, random);
}

TEST(ffn, widths_and_ratios) {
  Random random;
  constexpr Size kWidths[] = {{8, 8}, {8, 29}, {10, 20}, {40, 132}, {56, 168}, {72, 216}, {104, 343}};
  for (const auto& [channels, hidden] : kWidths) {
    const Sample sample = ffn_sample(random, channels, hidden);
    check_block(sample, 5, 9, random);
    check_block(sample, 3, 2, random);
  }
}

// More hidden channels than one part of the sum holds: 256 of them, and the last part small or full.
TEST(ffn, many_hidden_channels) {
  Random random;
  for (const int hidden : {256, 257, 300, 512, 785}) {
    const Sample sample = ffn_sample(random, 24, hidden);
    check_block(sample, 4, 5, random);
    check_block(sample, 13, 3, random);
    check_block(sample, 7, 41, random);
    check_block(sample, 12, 7, random);
    check_block(sample, 20, 12, random);
  }
}

// More input channels than that: the first product is cut as well.
TEST(ffn, many_channels) {
  Random random;
  check_block(ffn_sample(random, 264, 300), 3, 4, random);
  check_block(ffn_sample(random, 384, 520), 2, 3, random);
}

// With and without expansion and residual, windows, strides and activations; whole maps and bands of rows.
TEST(ffn, bottlenecks) {
  Random random;
  constexpr Activation kAll[] = {Activation::relu6, Activation::none, Activation::relu,
                                 Activation::silu,  Activation::gelu, Activation::hardswish};
  constexpr Size kMaps[] = {{1, 1}, {2, 3}, {7, 7}, {14, 14}, {9, 13}, {19, 23}, {3, 350}, {33, 9}};
  int next = 0;
  for (const bool expands : {true, false}) {
    for (const int kernel : {3, 5, 7}) {
      for (const int stride : {1, 2}) {
        for (const Size& map : kMaps) {
          const bool residual = stride == 1 && next % 2;
          const int channels = 8 + next % 3 * 12;
          const Bottleneck options{expands, kernel, stride, residual, kAll[next++ % 6]};
          check_block(bottleneck_sample(random, channels, 45, residual ? channels : 20, options), map.height,
                      map.width, random);
        }
      }
    }
  }
}

// Sums of several parts, in maps of every kind, where the output is not in floats as well.
TEST(ffn, wide_bottlenecks) {
  Random random;
  for (const int stride : {1, 2}) {
    for (const Size& map : {Size{5, 7}, {12, 12}, {8, 3}, {20, 21}}) {
      check_block(bottleneck_sample(random, 40, 600, 72, {true, 3, stride, false}), map.height, map.width,
                  random);
      check_block(bottleneck_sample(random, 300, 0, 56, {false, 3, stride, false}), map.height, map.width,
                  random);
    }
  }
}

// Without biases all activations have the size of the input: far below and far above 1.
TEST(ffn, the_whole_range_of_gelu) {
  Random random;
  for (const float scale : {1e-3f, 1e-2f, 10.0f, 1e3f}) {
    Sample sample = ffn_sample(random, 32, 128);
    for (const char* bias : {"fc1_bias", "dw_bias", "fc2_bias"}) {
      std::vector<float>& values = sample.tensors.at(bias).values;
      std::fill(values.begin(), values.end(), 0.0f);
    }
    const Map in{7, 6, 32};
    std::vector<float> x = random.normal(in.values());
    for (float& value : x) value *= scale;
    check_block(sample, in, x);
  }
}

// GELU(x) is x where x is large, so with large biases all is integer arithmetic. Weights behind a GELU are
// packed times 16 / 5 or 1 / 10 (see gelu.h), which multiples of 5 survive.
TEST(ffn, exact_on_integers) {
  Random random;
  constexpr Size kMaps[] = {{1, 1}, {5, 7}, {14, 14}, {3, 101}};
  for (const Size& map : kMaps) {
    for (const int hidden : {24, 132, 300}) {
      Sample sample = ffn_sample(random, 24, hidden);
      sample.set_integers("fc1_weight", random, -2, 2);
      sample.set_integers("fc1_bias", random, 224, 260);  // 24 products of at most 2 * 4
      sample.set_integers("dw_weight", random, 0, 2);     // the bias keeps the borders large as well
      sample.set_integers("dw_bias", random, 30, 64);
      sample.set_integers("fc2_weight", random, -1, 1, 5);
      sample.set_integers("fc2_bias", random, -9, 9);
      const Map in{map.height, map.width, 24};
      check_block(sample, in, random.integers(in.values(), -4, 4), 0);
    }
  }
}

}  // namespace effv2::tests
