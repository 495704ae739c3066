// Conv: any odd window, stride 1 or 2, an activation behind it.
#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

constexpr Size kMaps[] = {{1, 1},  {1, 2},  {2, 1},  {2, 2},   {3, 3},
                          {1, 29}, {31, 1}, {7, 12}, {14, 15}, {6, 51}};

}  // namespace

TEST(conv, map_sizes) {
  Random random;
  const Sample sample = conv_sample(random, 24, 40, {3, 2});
  for (const Size& map : kMaps) check_block(sample, map.height, map.width, random);
}

TEST(conv, widths) {
  Random random;
  for (const int in : {8, 24, 40, 72, 104})
    check_block(conv_sample(random, in, in + 16, {3, 2}), 5, 8, random);
  for (const int out : {1, 7, 10, 33, 132}) check_block(conv_sample(random, 13, out, {3, 2}), 6, 7, random);
}

TEST(conv, windows_strides_and_activations) {
  Random random;
  constexpr Activation kAll[] = {Activation::none,  Activation::gelu, Activation::relu,
                                 Activation::relu6, Activation::silu, Activation::hardswish};
  int next = 0;
  for (const int kernel : {1, 3, 5, 7}) {
    for (const int stride : {1, 2}) {
      for (const Size& map : {Size{1, 1}, {2, 3}, {5, 4}, {7, 12}}) {
        check_block(conv_sample(random, 9, 21, {kernel, stride, kAll[next++ % 6]}), map.height, map.width,
                    random);
      }
    }
  }
}

// More pixels than outputs are shared out by pixels, some at a time; more outputs by panels.
TEST(conv, pixels_alone) {
  Random random;
  for (const Activation activation : {Activation::relu6, Activation::silu, Activation::none}) {
    check_block(conv_sample(random, 24, 40, {1, 1, activation}), 19, 31, random);
    check_block(conv_sample(random, 300, 130, {1, 1, activation}), 7, 7, random);
    check_block(conv_sample(random, 16, 264, {1, 1, activation}), 3, 5, random);
  }
}

TEST(conv, exact_on_integers) {
  Random random;
  for (const Size& map : kMaps) {
    Sample sample = conv_sample(random, 40, 56, {3, 2});
    sample.set_integers("weight", random, -9, 9);
    sample.set_integers("bias", random, -99, 99);
    const Map in{map.height, map.width, 40};
    check_block(sample, in, random.integers(in.values(), -99, 99), 0);
  }
}

}  // namespace effv2::tests
