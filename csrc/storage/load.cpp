#include "storage/load.h"

#include <cstring>
#include <map>
#include <set>

#include "engine/builder.h"
#include "storage/container.h"
#include "storage/errors.h"
#include "storage/half.h"
#include "storage/labels.h"
#include "storage/structure.h"

namespace effv2 {
namespace {

constexpr const char* kFormat = "effv2_kernels.network";

// A value of the metadata; empty where there is none.
std::string said(const Container& container, const char* key) {
  const auto found = container.metadata.find(key);
  return found == container.metadata.end() ? "" : found->second;
}

// Of the right operands of products: version 1 knows one.
std::string stored_dtype(const Container& container, const std::string& name) {
  const std::string version = said(container, "version");
  if (version == "1") return "fp32";
  if (version != "2") {
    throw VersionError(
        name + " has version " + shown(version) +
        " of the format, and this library reads versions '1' and '2'. Save the model again, or use "
        "a library as new as the package that wrote it");
  }
  const std::string dtype = said(container, "dtype");
  if (dtype != "fp16") throw FormatError(name + " has dtype " + shown(dtype) + "; expected 'fp16'");
  return dtype;
}

// The file holds exactly the tensors that its structure names.
void check_keys(const Structure& structure, const Container& container, const std::string& name) {
  std::set<std::string> expected;
  for (std::size_t i = 0; i < structure.parts.size(); ++i) {
    for (const std::string& tensor : structure.parts[i].tensors) expected.insert(block_key(i, tensor));
  }
  for (std::size_t i = 0; i < structure.features.size(); ++i) {
    if (!structure.features[i].scaled) continue;
    for (const char* part : {"scale", "shift"}) expected.insert(feature_key(i, part));
  }
  const auto refuse = [&](const std::string& what, const std::string& key) {
    throw FormatError(name + " does not hold the tensors that it describes: " + what + " " + shown(key));
  };
  for (const std::string& key : expected) {
    if (!container.tensors.count(key)) refuse("missing", key);
  }
  for (const auto& [key, tensor] : container.tensors) {
    if (!expected.count(key)) refuse("unexpected", key);
  }
}

// Floats for the engine to read: where they lie in the file, or made of what does.
class Values {
 public:
  Tensor of(const StoredTensor& stored) {
    const bool half = stored.dtype == "F16";
    if (!half && reinterpret_cast<std::uintptr_t>(stored.data) % alignof(float) == 0) {
      return {reinterpret_cast<const float*>(stored.data), stored.shape, half};
    }
    const auto count =
        static_cast<std::size_t>(stored.bytes) / (half ? sizeof(std::uint16_t) : sizeof(float));
    std::vector<float>& made = made_.emplace_back(zeros<float>(count));
    if (half) {
      for (std::size_t i = 0; i < count; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, stored.data + i * sizeof bits, sizeof bits);
        made[i] = float_of_half(bits);
      }
    } else if (count) {
      std::memcpy(made.data(), stored.data, count * sizeof(float));
    }
    return {made.data(), stored.shape, half};
  }

 private:
  std::vector<std::vector<float>> made_;
};

void add_part(Network& network, const Part& part, std::size_t index, const Container& container,
              const std::string& dtype) {
  Values values;
  Fields fields;
  fields.options = part.options;
  fields.halves = dtype == "fp16";
  for (const std::string& tensor : part.tensors) {
    fields.tensors[tensor] = values.of(container.tensors.at(block_key(index, tensor)));
  }
  try {
    add_block(network, part.kind, fields);
  } catch (const OverflowError& error) {
    throw OverflowError("block " + std::to_string(index) + ": " + error.what());
  } catch (const Error& error) {
    throw FormatError("block " + std::to_string(index) + ": " + error.what());
  }
}

void add_scaled(Network& network, std::size_t index, bool scaled, const Container& container) {
  if (!scaled) return add_feature(network, nullptr, nullptr);
  Values values;
  const Tensor scale = values.of(container.tensors.at(feature_key(index, "scale")));
  const Tensor shift = values.of(container.tensors.at(feature_key(index, "shift")));
  const std::string what = "feature " + std::to_string(index) + ": ";
  if (scale.half || shift.half) throw FormatError(what + "scale and shift are stored in 32 bits");
  try {
    add_feature(network, &scale, &shift);
  } catch (const Error& error) {
    throw FormatError(what + error.what());
  }
}

std::unique_ptr<Network> build(const Structure& structure, const Container& container,
                               const std::string& dtype, const Target& target) {
  std::int64_t weight_bytes = 0;
  for (const auto& [key, tensor] : container.tensors)
    weight_bytes += tensor.dtype == "F16" ? 2 * tensor.bytes : tensor.bytes;
  auto network = std::make_unique<Network>(&target, weight_bytes);
  std::size_t feature = 0;
  for (std::size_t i = 0; i < structure.parts.size(); ++i) {
    add_part(*network, structure.parts[i], i, container, dtype);
    const bool wanted = feature < structure.features.size() &&
                        structure.features[feature].block == static_cast<std::int64_t>(i);
    if (!wanted) continue;
    add_scaled(*network, feature, structure.features[feature].scaled, container);
    ++feature;
  }
  return network;
}

// f(), whose messages are said of the file.
template <class Function>
auto said_of(const std::string& prefix, const char* suffix, Function f) {
  try {
    return f();
  } catch (const OverflowError&) {
    throw;
  } catch (const Error& error) {
    throw FormatError(prefix + error.what() + suffix);
  }
}

}  // namespace

LoadedNetwork load_network(const std::byte* data, std::size_t bytes, const std::string& name,
                           const ChooseTarget& choose) {
  const Container container =
      said_of(name + " is truncated or not a safetensors file (", "); expected one of effv2_kernels.save()",
              [&] { return read_container(data, bytes); });
  if (said(container, "format") != kFormat) {
    throw FormatError(name +
                      " is a safetensors file, but was not written by effv2_kernels.save(). Make one with: "
                      "python -m effv2_kernels convert");
  }
  const std::string dtype = stored_dtype(container, name);
  const std::string refused = name + " does not describe a network that can be run: ";
  said_of(refused, "", [&] { check_values(container); });
  const Structure structure =
      said_of(refused, "", [&] { return parse_structure(said(container, "structure")); });
  check_keys(structure, container, name);
  said_of(refused, "", [&] { check(structure); });
  const Target& target = choose(dtype);
  const auto made = [&] {
    try {
      return build(structure, container, dtype, target);
    } catch (const OverflowError& error) {  // the file is sound
      throw OverflowError(name + " cannot run in " + target.format + ": " + error.what());
    }
  };
  LoadedNetwork loaded{said_of(refused, "", made), {}, dtype, structure.has_head(), {}};
  for (const Part& part : structure.parts) loaded.blocks.push_back({part.kind, part.name});
  if (container.metadata.count("labels")) {
    const int classes = loaded.has_head ? loaded.network->out_channels() : 0;
    loaded.labels = said_of(name + " has labels that do not name its classes: ", "",
                            [&] { return parse_labels(said(container, "labels"), classes); });
  }
  return loaded;
}

}  // namespace effv2
