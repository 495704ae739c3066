#include "storage/labels.h"

#include "storage/errors.h"
#include "storage/json.h"

namespace effv2 {
namespace {

// Of UTF-8: U+0000 to U+001F, and U+007F to U+009F.
bool has_control_character(const std::string& text) {
  unsigned char before = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || (before == 0xc2 && byte < 0xa0)) return true;
    before = byte;
  }
  return false;
}

void check(const std::string& label, const std::string& which) {
  if (label.empty()) throw FormatError(which + " is empty");
  if (has_control_character(label))
    throw FormatError(which + " has a control character, such as the end of a line");
}

}  // namespace

std::vector<std::string> parse_labels(const std::string& text, int classes) {
  const Json data = parsed_list(text);
  const Json::array_t& entries = array(data, "the labels");
  if (classes == 0) throw FormatError("the network has no classes, it returns maps");
  if (entries.size() != static_cast<std::size_t>(classes)) {
    throw FormatError("there are " + std::to_string(entries.size()) + " for " + std::to_string(classes) +
                      " classes");
  }
  std::vector<std::string> labels;
  labels.reserve(entries.size());
  for (const Json& entry : entries) {
    const std::string which = "that of class " + std::to_string(labels.size());
    check(string(entry, which.c_str()), which);
    labels.push_back(entry.get<std::string>());
  }
  return labels;
}

}  // namespace effv2
