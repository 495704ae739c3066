// Stem: two 3x3 convolutions with stride 2, each behind a GELU; reads maps of any strides.
#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

// Around the sizes of tiles and of the groups of rows that are computed at once; single rows and columns.
constexpr Size kMaps[] = {{1, 1},  {1, 2},  {2, 1},   {3, 2},   {4, 4},  {5, 3},
                          {1, 33}, {37, 1}, {17, 18}, {33, 21}, {40, 67}};

}  // namespace

TEST(stem, map_sizes) {
  Random random;
  const Sample sample = stem_sample(random, 3, 16, 32);
  for (const Size& map : kMaps) check_block(sample, map.height, map.width, random);
}

TEST(stem, widths) {
  Random random;
  for (const int width : {8, 16, 24, 40, 56, 72, 104}) {
    check_block(stem_sample(random, 3, width / 2, width), 13, 10, random);
  }
  check_block(stem_sample(random, 3, 13, 27), 9, 11, random);
}

TEST(stem, input_channels) {
  Random random;
  for (const int channels : {1, 2, 4, 5, 13})
    check_block(stem_sample(random, channels, 12, 24), 10, 9, random);
}

// GELU(x) is x where x is large, so with large biases all is integer arithmetic.
TEST(stem, exact_on_integers) {
  Random random;
  for (const Size& map : kMaps) {
    Sample sample = stem_sample(random, 3, 8, 24);
    sample.set_integers("conv1_weight", random, -2, 2);
    sample.set_integers("conv1_bias", random, 256, 300);  // 27 products of at most 2 * 4
    sample.set_integers("conv2_weight", random, -1, 1);
    sample.set_integers("conv2_bias", random, 50000, 50100);  // 72 products of at most 516
    const Map in{map.height, map.width, 3};
    check_block(sample, in, random.integers(in.values(), -4, 4), 0);
  }
}

}  // namespace effv2::tests
