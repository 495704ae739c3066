#include "engine/errors.h"

namespace effv2 {

std::size_t whole_characters(const char* text, std::size_t length, std::size_t longest) noexcept {
  if (length <= longest) return length;
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; };
  while (longest > 0 && continues(text[longest])) --longest;
  return longest;
}

std::string shortened(const std::string& text, std::size_t longest) {
  const std::size_t end = whole_characters(text.data(), text.size(), longest);
  std::string start = text.substr(0, end);
  for (std::size_t i = 0; i < start.size(); ++i) {
    const auto byte = static_cast<unsigned char>(start[i]);
    if (byte < 0x20 || byte == 0x7f) start[i] = '?';
    // U+0080 to U+009F, of which some end a line as well.
    if (byte == 0xc2 && i + 1 < start.size() && static_cast<unsigned char>(start[i + 1]) < 0xa0)
      start.replace(i, 2, "?");
  }
  return end < text.size() ? start + "..." : start;
}

std::string shown(const std::string& text) {
  constexpr std::size_t kLongest = 80;
  return "'" + shortened(text, kLongest) + "'";
}

AskedFor::AskedFor(std::size_t bytes) noexcept {
  text[0] = '\0';
  if (bytes > SIZE_MAX / 2) {
    std::snprintf(text, sizeof text, "; more was asked for than can be addressed");
  } else if (bytes) {
    double amount = static_cast<double>(bytes);
    const char* unit = "bytes";
    for (const char* larger : {"KiB", "MiB", "GiB", "TiB", "PiB"}) {
      if (amount < 1024) break;
      amount /= 1024;
      unit = larger;
    }
    std::snprintf(text, sizeof text, "; %.4g %s were asked for", amount, unit);
  }
}

}  // namespace effv2
