#include "runner/picture.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "engine/errors.h"
#include "runner/array.h"
#include "runner/failure.h"
#include "runner/files.h"

#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_PNM
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

namespace effv2::runner {
namespace {

// A file's bytes as the decoder asks for them. It takes what is missing for zeros; what it asked for beyond
// the end tells that the file is truncated.
struct Source {
  const std::vector<unsigned char>& bytes;
  std::size_t at = 0;
  bool beyond = false;

  std::size_t left() const { return bytes.size() - at; }

  static int read(void* user, char* data, int size) {
    Source& source = *static_cast<Source*>(user);
    const std::size_t wanted = static_cast<std::size_t>(std::max(size, 0));
    const std::size_t given = std::min(wanted, source.left());
    // Its buffer is filled with as much as there is; anything else is wanted as a whole.
    constexpr std::size_t kBuffer = sizeof(stbi__context::buffer_start);
    if (given < wanted && (given == 0 || wanted != kBuffer)) source.beyond = true;
    std::memcpy(data, source.bytes.data() + source.at, given);
    source.at += given;
    return static_cast<int>(given);
  }
  static void skip(void* user, int size) {
    Source& source = *static_cast<Source*>(user);
    const std::size_t wanted = static_cast<std::size_t>(std::max(size, 0));
    if (wanted > source.left()) source.beyond = true;
    source.at += std::min(wanted, source.left());
  }
  static int eof(void* user) { return static_cast<Source*>(user)->left() == 0; }
};

constexpr stbi_io_callbacks kCallbacks{Source::read, Source::skip, Source::eof};

bool begins_with(const std::vector<unsigned char>& bytes, std::size_t at, const char* text) {
  const std::size_t length = std::strlen(text);
  return bytes.size() >= at + length && std::memcmp(bytes.data() + at, text, length) == 0;
}

// What a file is that the decoder does not know.
std::string foreign(const std::vector<unsigned char>& bytes) {
  if (bytes.empty()) return "is empty; fetch it again";
  for (const char* brand : {"ftypheic", "ftypheix", "ftyphevc", "ftypmif1", "ftypmsf1"}) {
    if (begins_with(bytes, 4, brand)) return "is a HEIC picture, as telephones take them; save it as JPEG";
  }
  return "is not a picture that can be read; give a JPEG, PNG or PPM file";
}

Picture decode(const std::vector<unsigned char>& bytes, const std::string& path) {
  if (!jpeg_tables_have_room(bytes))
    throw Failure(kBadInput,
                  path + " cannot be decoded: a Huffman table of it has too many codes; save it again");
  Source looked{bytes};
  int columns = 0, rows = 0, channels = 0;
  if (!stbi_info_from_callbacks(&kCallbacks, &looked, &columns, &rows, &channels)) {
    const bool known = begins_with(bytes, 0, "\xff\xd8\xff") || begins_with(bytes, 0, "\x89PNG");
    throw Failure(kBadInput,
                  path + (known ? " cannot be decoded, it may be truncated or damaged; save it again"
                                : " " + foreign(bytes)));
  }
  const std::size_t pixels = static_cast<std::size_t>(columns) * static_cast<std::size_t>(rows);
  if (pixels == 0 || pixels > kMostPixels) {
    throw Failure(kBadInput, path + " has " + std::to_string(columns) + "x" + std::to_string(rows) +
                                 " pixels; expected at least 1 and at most " + std::to_string(kMostPixels) +
                                 ": make it smaller first");
  }
  Source source{bytes};
  const std::unique_ptr<stbi_uc, void (*)(void*)> rgb(
      stbi_load_from_callbacks(&kCallbacks, &source, &columns, &rows, &channels, 3), stbi_image_free);
  if (!rgb && std::string(stbi_failure_reason()) == "outofmem") throw MemoryError(3 * pixels);
  if (!rgb || source.beyond) {
    throw Failure(kBadInput, path + " cannot be decoded, it may be truncated: " +
                                 (source.beyond ? "it ends too early" : stbi_failure_reason()) +
                                 "; save it again as JPEG or PNG");
  }
  return {static_cast<std::size_t>(rows),
          static_cast<std::size_t>(columns),
          3,
          {rgb.get(), rgb.get() + 3 * pixels}};
}

}  // namespace

Picture read_picture(const std::string& path) {
  const std::vector<unsigned char> bytes = read_file(path);
  return upright(decode(bytes, path), orientation_of(bytes));
}

Picture grey(const Picture& coloured) {
  constexpr unsigned kRed = 19595, kGreen = 38470, kBlue = 7471, kHalf = 1 << 15;  // of 2^16
  const std::size_t pixels = coloured.rows * coloured.columns;
  Picture found{coloured.rows, coloured.columns, 1, zeros<unsigned char>(pixels)};
  const unsigned char* from = coloured.values.data();
  for (unsigned char& value : found.values) {
    value = static_cast<unsigned char>((kRed * from[0] + kGreen * from[1] + kBlue * from[2] + kHalf) >> 16);
    from += 3;
  }
  return found;
}

}  // namespace effv2::runner
