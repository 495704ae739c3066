#include "saved.h"

namespace effv2::tests {
namespace {

using Json = nlohmann::json;

}  // namespace

Saved::Saved(const NetworkSample& sample) {
  header = Json::object();
  const auto add = [&](const std::string& key, const std::vector<std::int64_t>& shape,
                       const std::vector<float>& tensor) {
    const std::size_t begin = values.size();
    values.append(reinterpret_cast<const char*>(tensor.data()), tensor.size() * sizeof(float));
    header[key] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, values.size()}}};
  };
  Json blocks = Json::array(), features = Json::array();
  for (std::size_t i = 0; i < sample.blocks.size(); ++i) {
    const Sample& block = sample.blocks[i];
    Json names = Json::array(), options = Json::object();
    for (const auto& [name, weight] : block.tensors) {
      names.push_back(name);
      add("blocks." + std::to_string(i) + "." + name, weight.shape, weight.values);
    }
    for (const auto& [name, value] : block.options) options[name] = value;
    if (options.contains("activation"))
      options["activation"] = kActivationNames[options["activation"].get<int>()];
    blocks.push_back({{"kind", block.kind},
                      {"name", "part." + std::to_string(i)},
                      {"options", options},
                      {"tensors", names}});
  }
  for (std::size_t i = 0; i < sample.features.size(); ++i) {
    const FeatureSample& feature = sample.features[i];
    const bool scaled = !feature.scale.empty();
    features.push_back({{"block", feature.block}, {"scaled", scaled}});
    if (!scaled) continue;
    const std::string key = "features." + std::to_string(i);
    add(key + ".scale", {static_cast<std::int64_t>(feature.scale.size())}, feature.scale);
    add(key + ".shift", {static_cast<std::int64_t>(feature.shift.size())}, feature.shift);
  }
  header["__metadata__"] = {{"format", "effv2_kernels.network"}, {"version", "1"}, {"returns", "default"}};
  set_structure({{"blocks", blocks}, {"features", features}, {"source", "tests"}});
}

Json Saved::structure() const { return Json::parse(header["__metadata__"]["structure"].get<std::string>()); }

void Saved::set_structure(const Json& structure) { header["__metadata__"]["structure"] = structure.dump(); }

std::string Saved::bytes() const {
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i)
    bytes[static_cast<std::size_t>(i)] = static_cast<char>(text.size() >> 8 * i & 0xff);
  return bytes + text + values;
}

}  // namespace effv2::tests
