// The fuzzer's way in: any bytes as a saved network, see use_file.h. Built by clang, with libFuzzer; `make
// fuzz`.
//
// Most changes of a file's bytes only break its JSON. So half of the time the bytes are left to libFuzzer,
// and else one value of the header or of the structure becomes another one, and all lengths are put right
// again.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "use_file.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using Json = nlohmann::json;
using Random = std::minstd_rand;

constexpr const char* kMetadata = "__metadata__";

std::size_t below(Random& random, std::size_t count) { return count ? random() % count : 0; }

// Every value in it, itself among them.
void gather(Json& value, std::vector<Json*>& found) {
  found.push_back(&value);
  if (value.is_structured()) {
    for (Json& item : value) gather(item, found);
  }
}

Json odd_value(Random& random) {
  static const std::vector<Json> values{0,
                                        1,
                                        2,
                                        3,
                                        5,
                                        7,
                                        8,
                                        16,
                                        -1,
                                        1 << 20,
                                        (1 << 20) + 1,
                                        std::int64_t{1} << 32,
                                        std::int64_t{1} << 62,
                                        ~std::uint64_t{0},
                                        0.5,
                                        true,
                                        false,
                                        nullptr,
                                        "",
                                        "stem",
                                        "ffn",
                                        "attention",
                                        "conv",
                                        "conv_downsample",
                                        "attention_downsample",
                                        "head",
                                        "weight",
                                        "bias",
                                        "stride",
                                        "relu6",
                                        "F32",
                                        "F16",
                                        "1",
                                        "2",
                                        "fp16",
                                        Json::array(),
                                        Json::object()};
  return values[below(random, values.size())];
}

void change(Json& root, Random& random) {
  std::vector<Json*> places;
  gather(root, places);
  Json& place = *places[below(random, places.size())];
  switch (below(random, 5)) {
    case 0:
      place = odd_value(random);
      break;
    case 1:
      place = Json(*places[below(random, places.size())]);
      break;
    case 2:
      if (place.is_number_integer())
        place = place.get<std::int64_t>() + static_cast<int>(below(random, 9)) - 4;
      break;
    case 3:
      if (place.is_structured() && !place.empty()) {
        auto gone = place.begin();
        std::advance(gone, below(random, place.size()));
        place.erase(gone);
      }
      break;
    default:
      if (place.is_array()) place.push_back(odd_value(random));
      if (place.is_object()) place[odd_value(random).dump()] = odd_value(random);
  }
}

// Discarded where it is no JSON, or nested deeper than is of use.
Json parsed(const std::string& text) {
  const auto shallow = [](int depth, Json::parse_event_t, const Json&) { return depth < 40; };
  return Json::parse(text, shallow, false);
}

std::string text_of(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The file with a value changed; empty where its header is no JSON.
std::string changed(const std::string& file, Random& random) {
  if (file.size() < 8) return "";
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8) return "";
  Json header = parsed(file.substr(8, static_cast<std::size_t>(length)));
  if (!header.is_object()) return "";
  Json structure;
  if (header.contains(kMetadata) && header[kMetadata].is_object()) {
    const Json text = header[kMetadata].value("structure", Json());
    if (text.is_string()) structure = parsed(text.get<std::string>());
  }
  if (structure.is_object() && below(random, 2)) {
    change(structure, random);
    header[kMetadata]["structure"] = text_of(structure);
  } else {
    change(header, random);
  }
  std::string text = text_of(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t made = text.size();
  std::string front(8, '\0');
  std::memcpy(front.data(), &made, 8);
  return front + text + file.substr(8 + static_cast<std::size_t>(length));
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  Random random(seed);
  if (below(random, 2) == 0) return LLVMFuzzerMutate(data, size, most);
  const std::string made = changed({reinterpret_cast<const char*>(data), size}, random);
  if (made.empty() || made.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, made.data(), made.size());
  return made.size();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  effv2::tests::use_file(data, size);
  return 0;
}
