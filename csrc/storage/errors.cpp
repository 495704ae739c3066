#include "storage/errors.h"

namespace effv2 {

std::string shown(const std::string& text) {
  constexpr std::size_t kLongest = 80;
  std::string start = text.substr(0, kLongest);
  for (char& c : start) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  }
  return "'" + start + (text.size() > kLongest ? "..." : "") + "'";
}

}  // namespace effv2
