// Attention: talking heads over all positions, plain and at half the resolution.
#include <algorithm>

#include "run_block.h"

namespace effv2::tests {
namespace {

struct Size {
  int height, width;
};

constexpr Size kMaps[] = {{1, 1},  {1, 2}, {2, 1}, {2, 2}, {3, 5}, {1, 17},
                          {13, 1}, {4, 4}, {7, 7}, {6, 9}, {11, 5}};

int tokens(int n, int stride) { return (n + stride - 1) / stride; }

Sample for_map(Random& random, int channels, HeadSizes sizes, int stride, Size map) {
  return attention_sample(random, channels, sizes, stride,
                          {tokens(map.height, stride), tokens(map.width, stride)});
}

void check_map(Random& random, int channels, HeadSizes sizes, int stride, Size map) {
  check_block(for_map(random, channels, sizes, stride, map), map.height, map.width, random);
}

}  // namespace

TEST(attention, map_sizes) {
  Random random;
  for (const Size& map : kMaps) check_map(random, 24, {8, 8, 16}, 1, map);
}

TEST(attention, map_sizes_strided) {
  Random random;
  for (const Size& map : kMaps) check_map(random, 24, {8, 8, 16}, 2, map);
}

// Sizes of heads that fill no panel, one that fills several, and any number of heads.
TEST(attention, heads) {
  Random random;
  constexpr HeadSizes kHeads[] = {{1, 1, 1},   {1, 32, 128}, {3, 5, 7},    {3, 16, 40}, {8, 3, 20},
                                  {8, 12, 33}, {5, 40, 9},   {2, 24, 100}, {16, 4, 8}};
  for (const HeadSizes& sizes : kHeads) {
    for (const int stride : {1, 2}) check_map(random, 16, sizes, stride, {5, 6});
  }
}

// Without talking heads, bias or local branch, and with other activations.
TEST(attention, parts_left_out) {
  Random random;
  constexpr Activation kAll[] = {Activation::gelu, Activation::none, Activation::relu6,
                                 Activation::hardswish};
  for (int parts = 0; parts < 8; ++parts) {
    const AttentionParts kept{(parts & 1) != 0, (parts & 2) != 0, (parts & 4) != 0, kAll[parts % 4]};
    for (const int stride : {1, 2}) {
      for (const Size& map : {Size{1, 1}, {5, 6}, {9, 7}}) {
        const BiasTable table{tokens(map.height, stride), tokens(map.width, stride)};
        check_block(attention_sample(random, 24, {3, 8, 20}, stride, table, kept), map.height, map.width,
                    random);
      }
    }
  }
}

// Where there is no bias, any grid fits.
TEST(attention, no_bias_fits_any_grid) {
  Random random;
  for (const Target* target : available_targets()) {
    const auto block = attention_sample(random, 8, {2, 4, 8}, 1, {1, 1}, {true, false, true}).build(*target);
    Map out{};
    char error[256] = "";
    CHECK(block->output({7, 9, 8}, &out, error) && block->output({12, 5, 8}, &out, error));
  }
}

TEST(attention, widths) {
  Random random;
  for (const int channels : {8, 13, 40, 72, 104, 264}) {
    for (const int stride : {1, 2}) check_map(random, channels, {3, 8, 16}, stride, {4, 7});
  }
}

// The heads of the published networks.
TEST(attention, published_sizes) {
  Random random;
  check_map(random, 176, {8, 32, 128}, 1, {7, 7});
  check_map(random, 96, {8, 32, 128}, 2, {14, 14});
}

// More tokens than one tile of queries and keys holds, and more than 256: sums over keys are cut.
TEST(attention, many_tokens) {
  Random random;
  check_map(random, 8, {2, 4, 6}, 1, {15, 19});
  check_map(random, 8, {3, 4, 8}, 2, {27, 33});
  check_map(random, 8, {1, 4, 8}, 1, {1, 290});
}

// The gathered bias would hold more than 2^20 floats: it is computed for the queries at hand.
TEST(attention, bias_that_is_not_gathered) {
  Random random;
  check_map(random, 8, {8, 4, 8}, 1, {17, 22});
  check_map(random, 8, {3, 5, 7}, 2, {45, 52});
}

TEST(attention, resized_bias) {
  Random random;
  const HeadSizes sizes{3, 8, 16};
  check_block(attention_sample(random, 16, sizes, 1, {7, 7, true}), 7, 7, random);
  check_block(attention_sample(random, 16, sizes, 1, {7, 7, true}), 6, 9, random);
  check_block(attention_sample(random, 16, sizes, 1, {4, 6, true}), 9, 5, random);
  check_block(attention_sample(random, 16, sizes, 2, {7, 7, true}), 19, 12, random);
  check_block(attention_sample(random, 16, sizes, 2, {3, 3, true}), 1, 2, random);
  check_block(attention_sample(random, 16, sizes, 1, {1, 1, true}), 3, 4, random);
  check_block(attention_sample(random, 16, sizes, 1, {1, 5, true}), 1, 1, random);
}

TEST(attention, resized_bias_that_is_not_gathered) {
  Random random;
  check_block(attention_sample(random, 8, {8, 4, 8}, 1, {5, 6, true}), 17, 22, random);
}

// Logits far apart: a softmax that forgot to subtract the maximum would overflow. A logit of size L is
// rounded by L * 2^-24, and its probability moves by that share.
TEST(attention, large_logits) {
  Random random;
  for (const int stride : {1, 2}) {
    Sample sample = for_map(random, 16, {4, 8, 16}, stride, {6, 7});
    const float largest = sample.enlarge("bias", 300);
    check_block(sample, 6, 7, random, kBlockBound + 2 * largest / (1 << 24));
  }
}

// With equal logits the probabilities of 16 tokens are 1/16, GELU(x) is x where x is large, and all is
// exact. Weights behind a GELU are packed times 16 / 5 or 1 / 10 (see gelu.h), which multiples of 5 survive.
TEST(attention, exact_on_uniform_probabilities) {
  Random random;
  for (const int stride : {1, 2}) {
    const HeadSizes sizes{3, 4, 12};
    const Map in{4 * stride, 4 * stride, 24};
    Sample sample = for_map(random, in.channels, sizes, stride, {in.height, in.width});
    for (const auto& [name, weight] : sample.tensors) sample.set_integers(name, random, -1, 1);
    sample.set_integers("bias", random, 1, 1);
    // No queries, so no logits.
    const int queries = sizes.heads * sizes.key_dim;
    std::fill_n(sample.tensors.at("qkv_weight").values.begin(), queries * in.channels, 0.0f);
    std::fill_n(sample.tensors.at("qkv_bias").values.begin(), queries, 0.0f);
    // Values are at most 241, what attention and local convolution make of them at most 6,800.
    sample.set_integers("local_bias", random, 8000, 8100);
    // Every output takes one value channel: sums of many would need more than 24 bits.
    std::vector<float>& projection = sample.tensors.at("proj_weight").values;
    const int values = sizes.heads * sizes.value_dim;
    std::fill(projection.begin(), projection.end(), 0.0f);
    for (int c = 0; c < in.channels; ++c)
      projection[static_cast<std::size_t>(c * values + (5 * c + 7) % values)] = 5;
    check_block(sample, in, random.integers(in.values(), -1, 1), 0);
  }
}

TEST(attention, refuses_a_map_that_the_bias_does_not_fit) {
  Random random;
  for (const Target* target : fp32_targets()) {
    const auto plain = for_map(random, 8, {2, 4, 8}, 1, {7, 9}).build(*target);
    const auto strided = for_map(random, 8, {2, 4, 8}, 2, {7, 9}).build(*target);
    Map out{};
    char error[256] = "";
    CHECK(plain->output({7, 9, 8}, &out, error));
    CHECK(strided->output({7, 9, 8}, &out, error));
    CHECK(strided->output({8, 10, 8}, &out, error));  // the same tokens
    CHECK(error[0] == '\0');
    for (const Map& map : {Map{9, 7, 8}, Map{7, 10, 8}, Map{1, 1, 8}, Map{70, 90, 8}}) {
      error[0] = '\0';
      CHECK(!plain->output(map, &out, error));
      CHECK_THAT(std::string(error).find("7 x 9") != std::string::npos, error);
      CHECK(map.width == 10 || !strided->output(map, &out, error));
    }
  }
}

}  // namespace effv2::tests
