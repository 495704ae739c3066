// ConvDownsample: a 3x3 convolution with stride 2.
#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

constexpr Size kMaps[] = {{1, 1},  {1, 2},  {2, 1},  {2, 2},   {3, 3},
                          {1, 29}, {31, 1}, {7, 12}, {14, 15}, {6, 51}};

}  // namespace

TEST(conv_downsample, map_sizes) {
  Random random;
  const Sample sample = conv_downsample_sample(random, 24, 40);
  for (const Size& map : kMaps) check_block(sample, map.height, map.width, random);
}

TEST(conv_downsample, widths) {
  Random random;
  for (const int in : {8, 24, 40, 72, 104})
    check_block(conv_downsample_sample(random, in, in + 16), 5, 8, random);
  for (const int out : {1, 7, 10, 33, 132})
    check_block(conv_downsample_sample(random, 13, out), 6, 7, random);
}

TEST(conv_downsample, exact_on_integers) {
  Random random;
  for (const Size& map : kMaps) {
    Sample sample = conv_downsample_sample(random, 40, 56);
    sample.set_integers("weight", random, -9, 9);
    sample.set_integers("bias", random, -99, 99);
    const Map in{map.height, map.width, 40};
    check_block(sample, in, random.integers(in.floats(), -99, 99), 0);
  }
}

}  // namespace effv2::tests
