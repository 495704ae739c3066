// AttentionDownsample: attention from every second row and column, beside a strided convolution.

#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

constexpr Size kMaps[] = {{1, 1},  {1, 2}, {2, 1}, {2, 2}, {3, 5},  {1, 17},
                          {13, 1}, {4, 4}, {7, 7}, {6, 9}, {11, 5}, {14, 14}};

void check_map(Random& random, int in, int out, HeadSizes sizes, Size map) {
  const Sample sample = attention_downsample_sample(random, in, out, sizes, {map.height, map.width});
  check_block(sample, map.height, map.width, random);
}

}  // namespace

TEST(attention_downsample, map_sizes) {
  Random random;
  for (const Size& map : kMaps) check_map(random, 24, 40, {8, 8, 16}, map);
}

TEST(attention_downsample, heads) {
  Random random;
  constexpr HeadSizes kHeads[] = {{1, 1, 1},   {1, 16, 64}, {3, 5, 7},    {3, 16, 40}, {8, 3, 20},
                                  {8, 12, 33}, {5, 40, 9},  {2, 24, 100}, {16, 4, 8}};
  for (const HeadSizes& sizes : kHeads) check_map(random, 16, 24, sizes, {5, 6});
}

TEST(attention_downsample, widths) {
  Random random;
  constexpr Size kWidths[] = {{8, 8}, {13, 7}, {40, 72}, {72, 104}, {104, 24}, {264, 10}};
  for (const auto& [in, out] : kWidths) check_map(random, in, out, {3, 8, 16}, {4, 7});
}

// The heads of the published networks.
TEST(attention_downsample, published_sizes) {
  Random random;
  check_map(random, 96, 176, {8, 16, 64}, {14, 14});
}

// More keys than 256: sums over keys are cut.
TEST(attention_downsample, many_tokens) {
  Random random;
  check_map(random, 8, 16, {2, 4, 6}, {15, 19});
  check_map(random, 8, 16, {1, 4, 8}, {1, 290});
  check_map(random, 8, 16, {1, 4, 8}, {290, 1});
}

// The gathered bias would hold more than 2^20 floats: it is computed for the queries at hand.
TEST(attention_downsample, bias_that_is_not_gathered) {
  Random random;
  check_map(random, 8, 16, {8, 4, 8}, {25, 30});
  check_map(random, 8, 16, {3, 5, 7}, {33, 37});
}

TEST(attention_downsample, resized_bias) {
  Random random;
  const HeadSizes sizes{3, 8, 16};
  constexpr BiasTable kTables[] = {{7, 7, true}, {4, 6, true}, {1, 1, true}, {1, 5, true}, {9, 3, true}};
  constexpr Size kGrids[] = {{7, 7}, {6, 9}, {1, 1}, {9, 2}};
  for (const BiasTable& table : kTables) {
    const Sample sample = attention_downsample_sample(random, 16, 24, sizes, table);
    for (const Size& map : kGrids) check_block(sample, map.height, map.width, random);
  }
}

TEST(attention_downsample, resized_bias_that_is_not_gathered) {
  Random random;
  check_block(attention_downsample_sample(random, 8, 16, {8, 4, 8}, {5, 6, true}), 25, 30, random);
}

TEST(attention_downsample, large_logits) {
  Random random;
  Sample sample = attention_downsample_sample(random, 16, 24, {4, 8, 16}, {6, 7});
  const float largest = sample.enlarge("bias", 300);
  check_block(sample, 6, 7, random, kBlockBound + 2 * largest / (1 << 24));
}

// With equal logits the probabilities of 32 keys are 1/32, GELU(x) is x where x is large, and all is
// exact. Weights behind a GELU are packed times 16 / 5 or 1 / 10 (see gelu.h), which multiples of 5 survive.
TEST(attention_downsample, exact_on_uniform_probabilities) {
  Random random;
  const Map in{4, 8, 16};
  Sample sample = attention_downsample_sample(random, in.channels, 24, {3, 4, 12}, {in.height, in.width});
  for (const auto& [name, weight] : sample.tensors) sample.set_integers(name, random, -2, 2);
  sample.set_integers("bias", random, 1, 1);
  for (const char* name : {"q_weight", "q_bias"}) sample.set_integers(name, random, 0, 0);
  // Values are at most 66, and what attention and local convolution make of them at most 1,300.
  sample.set_integers("local_bias", random, 2000, 2100);
  sample.set_integers("proj_weight", random, -1, 1, 5);
  check_block(sample, in, random.integers(in.values(), -2, 2), 0);
}

TEST(attention_downsample, refuses_a_map_that_the_bias_does_not_fit) {
  Random random;
  for (const Target* target : fp32_targets()) {
    const auto block = attention_downsample_sample(random, 8, 16, {2, 4, 8}, {7, 9}).build(*target);
    Map out{};
    char error[256] = "";
    CHECK(block->output({7, 9, 8}, &out, error));
    CHECK(error[0] == '\0');
    for (const Map& map : {Map{9, 7, 8}, Map{8, 9, 8}, Map{7, 10, 8}, Map{1, 1, 8}}) {
      error[0] = '\0';
      CHECK(!block->output(map, &out, error));
      CHECK_THAT(std::string(error).find("7 x 9") != std::string::npos, error);
    }
  }
}

}  // namespace effv2::tests
