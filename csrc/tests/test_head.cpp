// Head: the mean of the map, and a linear layer.
#include "run_block.h"

namespace effv2::tests {

TEST(head, map_sizes) {
  Random random;
  const Sample sample = head_sample(random, 56, 37);
  for (const int height : {1, 2, 3, 7, 19}) {
    for (const int width : {1, 2, 5, 8, 13}) check_block(sample, height, width, random);
  }
}

TEST(head, widths_and_classes) {
  Random random;
  for (const int channels : {3, 8, 24, 40, 72, 104, 132, 176, 384}) {
    // A few logits alone may happen to lie near 0, where a relative error says nothing; see below.
    for (const int classes : {10, 15, 16, 17, 33, 100}) {
      check_block(head_sample(random, channels, classes), 3, 4, random);
    }
  }
}

// A thousand classes: many more panels than threads, and a last one that is not full.
TEST(head, a_thousand_classes) {
  Random random;
  check_block(head_sample(random, 176, 1000), 7, 7, random);
}

// The mean of 2^n integers is exact as well.
TEST(head, exact_on_integers) {
  Random random;
  for (const int classes : {1, 2, 3, 7, 8, 9, 45}) {
    Sample sample = head_sample(random, 88, classes);
    sample.set_integers("weight", random, -9, 9);
    sample.set_integers("bias", random, -99, 99);
    const Map in{4, 8, 88};
    check_block(sample, in, random.integers(in.values(), -99, 99), 0);
  }
}

}  // namespace effv2::tests
