#include "storage/structure.h"

#include <set>

#include "engine/fields.h"
#include "storage/errors.h"
#include "storage/json.h"

namespace effv2 {
namespace {

// A block of an earlier version, by what it is now; see EARLIER_KINDS of effv2_kernels/blocks.py.
void modernise(Part& part) {
  if (part.kind != "conv_downsample") return;
  part.kind = "conv";
  if (!part.options.emplace("stride", 2).second) throw FormatError("a block conv_downsample has no stride");
}

std::int64_t option_of(const std::string& name, const Json& value) {
  if (name == "activation") return activation_option(string(value, "an activation"));
  return integer(value, "an option");
}

Part part_of(const Json& entry) {
  object_with(entry, "a block", {"kind", "name", "options", "tensors"});
  Part part{string(entry["kind"], "a block's kind"), string(entry["name"], "a block's name"), {}, {}};
  if (!entry["options"].is_object()) throw FormatError("a block's options must be an object");
  for (const auto& [name, value] : entry["options"].items()) part.options[name] = option_of(name, value);
  std::set<std::string> seen;
  for (const Json& name : array(entry["tensors"], "a block's tensors")) {
    part.tensors.push_back(string(name, "a tensor's name"));
    if (!seen.insert(part.tensors.back()).second) {
      throw FormatError("a block " + shown(part.kind) + " has " + shown(part.tensors.back()) + " twice");
    }
  }
  modernise(part);
  return part;
}

}  // namespace

Structure parse_structure(const std::string& text) {
  const Json data = parsed_object(text);
  object_with(data, "the structure", {"blocks", "features", "source"});
  Structure structure;
  for (const Json& entry : array(data["blocks"], "the blocks")) structure.parts.push_back(part_of(entry));
  for (const Json& entry : array(data["features"], "the features")) {
    object_with(entry, "a feature", {"block", "scaled"});
    if (!entry["scaled"].is_boolean()) throw FormatError("'scaled' must be true or false");
    structure.features.push_back({integer(entry["block"], "a feature's block"), entry["scaled"].get<bool>()});
  }
  string(data["source"], "'source'");
  return structure;
}

void check(const Structure& structure) {
  const std::vector<Part>& parts = structure.parts;
  if (parts.empty()) throw FormatError("a network needs at least one block");
  if (structure.has_head() == !structure.features.empty()) {
    throw FormatError("a network ends in a head or returns features: one of them, not both");
  }
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    if (parts[i].kind == "head")
      throw FormatError("block " + std::to_string(i) + " is a head; it must be the last block");
  }
  std::int64_t least = 0;
  for (const Structure::Feature& feature : structure.features) {
    if (feature.block < least)
      throw FormatError("features are listed in the order of their blocks, once each");
    if (feature.block >= static_cast<std::int64_t>(parts.size())) {
      throw FormatError("a feature names block " + std::to_string(feature.block) + "; there are " +
                        std::to_string(parts.size()) + " blocks");
    }
    least = feature.block + 1;
  }
}

std::string block_key(std::size_t block, const std::string& tensor) {
  return "blocks." + std::to_string(block) + "." + tensor;
}

std::string feature_key(std::size_t feature, const char* part) {
  return "features." + std::to_string(feature) + "." + part;
}

}  // namespace effv2
