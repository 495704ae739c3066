// The description of a network's blocks, as its file has it. The same rules are in
// effv2_kernels/structure.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace effv2 {

// One block: its kind, where it comes from, the options that have another value than their default, and the
// names of its tensors.
struct Part {
  std::string kind, name;
  std::map<std::string, std::int64_t> options;
  std::vector<std::string> tensors;
};

struct Structure {
  struct Feature {
    std::int64_t block;
    bool scaled;
  };
  std::vector<Part> parts;
  std::vector<Feature> features;

  bool has_head() const { return !parts.empty() && parts.back().kind == "head"; }
};

// Throws FormatError where the text does not describe blocks and features.
Structure parse_structure(const std::string& text);
// Throws FormatError where they make no network: a head is the last block, or features are in the order of
// theirs.
void check(const Structure& structure);

// How the file calls a block's or a feature's tensor: "blocks.3.fc1_weight", "features.0.scale".
std::string block_key(std::size_t block, const std::string& tensor);
std::string feature_key(std::size_t feature, const char* part);

}  // namespace effv2
