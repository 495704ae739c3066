#include "use_file.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "effv2.h"

namespace effv2::tests {
namespace {

constexpr int kSide = 32;
// Of one image: what is larger is asked, and not run.
constexpr std::int64_t kMostValues = 1 << 20, kMostMultiplyAdds = 1 << 26;
constexpr int kMostPositions = 256;  // a bias is made for each pair of them

void require(bool kept, const char* promise) {
  if (kept) return;
  std::fprintf(stderr, "a promise was broken: %s (%s)\n", promise, effv2_error());
  std::abort();
}

bool refused_well(effv2_status status) { return status != EFFV2_FAILED && std::strlen(effv2_error()) > 0; }

// Whether a small image can be run in little memory and time.
bool is_small(const effv2_network* network, const effv2_description& about) {
  std::int64_t multiply_adds = 0;
  for (int i = 0; i < about.blocks; ++i) {
    effv2_block block{};
    block.size = sizeof block;
    const effv2_status status = effv2_describe_block(network, i, kSide, kSide, &block);
    if (status) {
      require(status == EFFV2_INVALID_SIZE && refused_well(status),
              "a block is described, or does not fit the image");
      return false;
    }
    require(block.kind && block.name, "a block has a kind and a name");
    multiply_adds += block.multiply_adds;
    const std::int64_t values =
        std::int64_t{block.output.channels} * block.output.height * block.output.width;
    if (values > kMostValues) return false;
    const bool attends = std::string(block.kind).rfind("attention", 0) == 0;
    if (attends && block.output.height * block.output.width > kMostPositions) return false;
  }
  return multiply_adds <= kMostMultiplyAdds && about.channels <= 64 &&
         about.packed_bytes <= kMostMultiplyAdds;
}

void run(const effv2_network* network, const effv2_description& about) {
  const std::vector<char> images(static_cast<std::size_t>(about.channels) * kSide * kSide *
                                 about.value_bytes);
  std::vector<std::vector<char>> memory;
  std::vector<void*> outputs;
  for (int i = 0; i < about.outputs; ++i) {
    effv2_shape shape{};
    require(effv2_output_shape(network, i, kSide, kSide, &shape) == EFFV2_OK, "an output has a shape");
    memory.emplace_back(static_cast<std::size_t>(shape.channels) * static_cast<std::size_t>(shape.height) *
                        static_cast<std::size_t>(shape.width) * about.value_bytes);
    outputs.push_back(memory.back().data());
  }
  const effv2_images call{images.data(), 1, about.channels, kSide, kSide, 0, 0, 0, 0};
  require(effv2_run(network, &call, outputs.data(), about.outputs, 1) == EFFV2_OK, "it runs");
  require(effv2_working_bytes(network) > 0, "it has used memory");
}

}  // namespace

bool use_file(const std::uint8_t* data, std::size_t bytes) {
  effv2_network* network = nullptr;
  effv2_options options{};
  options.size = sizeof options;
  options.threads = 1;
  const std::uint8_t nothing = 0;
  const effv2_status status = effv2_load_memory(bytes ? data : &nothing, bytes, &options, &network);
  if (status) {
    require(!network && refused_well(status), "what is refused is refused with a reason");
    return false;
  }
  require(network, "a network was made");
  effv2_description about{};
  about.size = sizeof about;
  require(effv2_describe(network, &about) == EFFV2_OK, "it is described");
  const char* name = effv2_class_name(network, 0);
  require(!name || (about.has_head && std::strlen(name) > 0), "a class has no name, or one of some length");
  if (is_small(network, about)) run(network, about);
  effv2_free(network);
  return true;
}

}  // namespace effv2::tests
