// What the decoder of JPEG does not look at by itself: it writes a Huffman table of more than 256 codes
// beyond its own memory (stb_image before version 2.29).
#include "runner/picture.h"

namespace effv2::runner {
namespace {

constexpr std::size_t kMostCodes = 256;

// Of the tables of one segment, whose length stands at `at`; as the decoder reads them, which may be beyond
// it.
bool has_room(const std::vector<unsigned char>& bytes, std::size_t at) {
  if (at + 2 > bytes.size()) return true;
  std::ptrdiff_t left = (bytes[at] << 8 | bytes[at + 1]) - 2;
  for (at += 2; left > 0 && at + 17 <= bytes.size();) {
    std::size_t codes = 0;
    for (std::size_t i = 1; i <= 16; ++i) codes += bytes[at + i];
    if (codes > kMostCodes) return false;
    at += 17 + codes;
    left -= static_cast<std::ptrdiff_t>(17 + codes);
  }
  return at + 17 <= bytes.size() || left <= 0;
}

}  // namespace

bool jpeg_tables_have_room(const std::vector<unsigned char>& bytes) {
  if (bytes.size() < 2 || bytes[0] != 0xff || bytes[1] != 0xd8) return true;  // another kind of picture
  for (std::size_t at = 2; at + 2 <= bytes.size();) {
    const unsigned char marker = bytes[at + 1];
    // Pixels have no marker but those of restarts.
    const bool is_segment =
        bytes[at] == 0xff && marker > 0x01 && marker != 0xff && (marker < 0xd0 || marker > 0xd8);
    if (!is_segment) {
      ++at;
      continue;
    }
    if (marker == 0xd9) break;
    if (marker == 0xc4 && !has_room(bytes, at + 2)) return false;
    if (at + 4 > bytes.size()) break;
    at += 2 + static_cast<std::size_t>(bytes[at + 2] << 8 | bytes[at + 3]);
  }
  return true;
}

}  // namespace effv2::runner
