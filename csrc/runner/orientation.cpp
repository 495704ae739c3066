// How a camera was held: a tag of the EXIF data that JPEG and PNG files may have.
#include <cstdint>
#include <cstring>

#include "runner/picture.h"

namespace effv2::runner {
namespace {

// A part of a file, whose numbers are of either byte order; 0 beyond its end.
class Bytes {
 public:
  Bytes() = default;
  Bytes(const unsigned char* data, std::size_t size, bool little = false)
      : data_(data), size_(size), little_(little) {}

  std::size_t size() const { return size_; }
  bool begins_with(const char* text, std::size_t length) const {
    return size_ >= length && std::memcmp(data_, text, length) == 0;
  }
  Bytes from(std::size_t at) const { return at < size_ ? Bytes(data_ + at, size_ - at, little_) : Bytes(); }
  Bytes first(std::size_t size) const { return Bytes(data_, size < size_ ? size : size_, little_); }
  Bytes ordered(bool little) const { return Bytes(data_, size_, little); }
  std::uint32_t number(std::size_t at, std::size_t bytes) const {
    if (at > size_ || bytes > size_ - at) return 0;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | data_[at + (little_ ? bytes - 1 - i : i)];
    return value;
  }

 private:
  const unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
  bool little_ = false;
};

// The first segment of EXIF data in front of the scan.
Bytes exif_of_jpeg(const Bytes& file) {
  std::size_t at = 2;
  while (at + 4 <= file.size() && file.number(at, 1) == 0xff) {
    const std::uint32_t marker = file.number(at + 1, 1);
    if (marker == 0xff) {  // fill
      ++at;
      continue;
    }
    if (marker == 0xda || marker == 0xd9) break;
    const std::size_t length = file.number(at + 2, 2);
    if (length < 2) break;
    const Bytes segment = file.from(at + 4).first(length - 2);
    if (marker == 0xe1 && segment.begins_with("Exif\0", 6)) return segment.from(6);
    at += 2 + length;
  }
  return {};
}

Bytes exif_of_png(const Bytes& file) {
  for (std::size_t at = 8; at + 8 <= file.size();) {
    const std::size_t length = file.number(at, 4);
    const Bytes chunk = file.from(at + 4);
    if (chunk.begins_with("eXIf", 4)) return chunk.from(4).first(length);
    at += 12 + length;
  }
  return {};
}

}  // namespace

int orientation_of(const std::vector<unsigned char>& bytes) {
  constexpr std::uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;
  const Bytes file(bytes.data(), bytes.size());
  Bytes tiff;
  if (file.begins_with("\xff\xd8", 2)) tiff = exif_of_jpeg(file);
  if (file.begins_with("\x89PNG\r\n\x1a\n", 8)) tiff = exif_of_png(file);
  const bool little = tiff.begins_with("II*\0", 4);
  if (!little && !tiff.begins_with("MM\0*", 4)) return 1;
  tiff = tiff.ordered(little);
  const Bytes directory = tiff.from(tiff.number(4, 4));
  const std::size_t entries = directory.number(0, 2);
  for (std::size_t i = 0; i < entries; ++i) {
    const Bytes entry = directory.from(2 + 12 * i);
    if (entry.number(0, 2) != kOrientation) continue;
    const std::uint32_t type = entry.number(2, 2);
    const std::uint32_t value = type == kShort ? entry.number(8, 2) : type == kLong ? entry.number(8, 4) : 1;
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Picture upright(Picture stored, int orientation) {
  if (orientation == 1) return stored;
  const bool transposed = orientation >= 5;
  const std::size_t rows = transposed ? stored.columns : stored.rows;
  const std::size_t columns = transposed ? stored.rows : stored.columns;
  // Of the stored rows and columns, which are then those of the transposed picture.
  const bool last_row = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool last_column = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const std::size_t channels = stored.channels;
  Picture found{rows, columns, channels, std::vector<unsigned char>(stored.values.size())};
  unsigned char* to = found.values.data();
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t column = 0; column < columns; ++column, to += channels) {
      const std::size_t r = last_row ? rows - 1 - row : row;
      const std::size_t c = last_column ? columns - 1 - column : column;
      const std::size_t from = transposed ? c * stored.columns + r : r * stored.columns + c;
      std::memcpy(to, stored.values.data() + channels * from, channels);
    }
  }
  return found;
}

}  // namespace effv2::runner
