// The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#include "engine/errors.h"
#include "runner/array.h"
#include "runner/failure.h"
#include "runner/files.h"
#include "storage/half.h"

namespace effv2::runner {
namespace {

constexpr std::size_t kMostDimensions = 8;

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// A literal of Python's, of which a header has strings, integers, booleans, a tuple and a dictionary.
class Literal {
 public:
  explicit Literal(std::string text) : text_(std::move(text)) {}

  bool skip(char expected) {
    space();
    const bool found = at_ < text_.size() && text_[at_] == expected;
    at_ += found;
    return found;
  }
  void expect(char expected) {
    if (!skip(expected)) throw std::invalid_argument(std::string("there is no ") + expected);
  }
  std::string string() {
    space();
    const char quote = at_ < text_.size() ? text_[at_] : ' ';
    const std::size_t end = quote == '\'' || quote == '"' ? text_.find(quote, at_ + 1) : std::string::npos;
    if (end == std::string::npos) throw std::invalid_argument("there is no string");
    const std::string found = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return found;
  }
  bool boolean() {
    space();
    for (const char* word : {"True", "False"}) {
      if (text_.compare(at_, std::strlen(word), word) != 0) continue;
      at_ += std::strlen(word);
      return *word == 'T';
    }
    throw std::invalid_argument("fortran_order is neither True nor False");
  }
  std::vector<std::int64_t> sizes() {
    std::vector<std::int64_t> found;
    expect('(');
    while (!skip(')')) {
      found.push_back(size());
      if (found.size() > kMostDimensions) throw std::invalid_argument("it has too many dimensions");
      if (!skip(',')) {
        expect(')');
        break;
      }
    }
    return found;
  }
  void end() {
    space();
    if (at_ != text_.size()) throw std::invalid_argument("something follows it");
  }

 private:
  void space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) ++at_;
  }
  std::int64_t size() {
    space();
    const std::size_t begin = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[at_] - '0', &value))
        throw std::invalid_argument("a size is too large");
    }
    if (at_ == begin) throw std::invalid_argument("a size is no number");
    return value;
  }

  std::string text_;
  std::size_t at_ = 0;
};

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

// Throws std::invalid_argument.
Header parse_header(const std::string& text) {
  Header header;
  Literal literal(text);
  int seen = 0;
  literal.expect('{');
  while (!literal.skip('}')) {
    const std::string key = literal.string();
    const int which = key == "descr" ? 1 : key == "fortran_order" ? 2 : key == "shape" ? 4 : 0;
    if (!which || (seen & which))
      throw std::invalid_argument("it has " + effv2::shown(key) + " once too often");
    seen |= which;
    literal.expect(':');
    if (which == 1) header.descr = literal.string();
    if (which == 2) header.fortran_order = literal.boolean();
    if (which == 4) header.shape = literal.sizes();
    if (!literal.skip(',')) {
      literal.expect('}');
      break;
    }
  }
  literal.end();
  if (seen != 7) throw std::invalid_argument("it lacks descr, fortran_order or shape");
  return header;
}

// Where the values begin.
std::size_t header_end(const std::vector<unsigned char>& bytes, std::size_t* begin) {
  if (bytes.size() < 10 || std::memcmp(bytes.data(), kMagic, kMagicBytes) != 0)
    throw std::invalid_argument("it is no .npy file");
  const int version = bytes[kMagicBytes];
  if (version < 1 || version > 3) throw std::invalid_argument("it has version " + std::to_string(version));
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  *begin = kMagicBytes + 2 + length_bytes;
  std::size_t length = 0;
  for (std::size_t i = 0; i < length_bytes && *begin <= bytes.size(); ++i)
    length |= static_cast<std::size_t>(bytes[kMagicBytes + 2 + i]) << 8 * i;
  if (*begin > bytes.size() || length > bytes.size() - *begin)
    throw std::invalid_argument("it ends within its header");
  return *begin + length;
}

Array decode(const std::vector<unsigned char>& bytes) {
  std::size_t begin = 0;
  const std::size_t end = header_end(bytes, &begin);
  const Header header = parse_header(
      {bytes.begin() + static_cast<std::ptrdiff_t>(begin), bytes.begin() + static_cast<std::ptrdiff_t>(end)});
  const bool half = header.descr == "<f2";
  if (!half && header.descr != "<f4") {
    throw std::invalid_argument("its dtype is " + effv2::shown(header.descr) +
                                "; expected '<f4' or '<f2': save x.astype(\"float32\")");
  }
  if (header.fortran_order)
    throw std::invalid_argument("it is in Fortran order; save numpy.ascontiguousarray(x)");
  std::int64_t count = 1;
  for (const std::int64_t n : header.shape) {
    if (__builtin_mul_overflow(count, n, &count)) throw std::invalid_argument("its shape is too large");
  }
  const std::size_t each = half ? 2 : 4, found = bytes.size() - end;
  if (static_cast<std::uint64_t>(count) > std::numeric_limits<std::size_t>::max() / 4 ||
      static_cast<std::size_t>(count) * each != found) {
    throw std::invalid_argument(
        "it has " + std::to_string(found) + " bytes of values, and its shape " + shown(header.shape) +
        " needs " + (static_cast<std::size_t>(count) > found / each ? "more: it is truncated" : "fewer"));
  }
  Array array{header.shape, zeros<float>(static_cast<std::size_t>(count))};
  const unsigned char* values = bytes.data() + end;
  if (!half && found) std::memcpy(array.values.data(), values, found);
  for (std::size_t i = 0; half && i < array.values.size(); ++i)
    array.values[i] = float_of_half(static_cast<std::uint16_t>(values[2 * i] | values[2 * i + 1] << 8));
  return array;
}

}  // namespace

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t n : shape) text += (text.empty() ? "" : "x") + std::to_string(n);
  return text.empty() ? "()" : text;
}

Array read_npy(const std::string& path) {
  try {
    return decode(read_file(path));
  } catch (const std::invalid_argument& error) {
    throw Failure(kBadInput, path + " cannot be taken: " + error.what());
  }
}

void write_npy(const std::string& path, const Array& array) {
  std::string sizes;
  for (const std::int64_t n : array.shape) sizes += std::to_string(n) + ",";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + sizes + "), }";
  const std::size_t front = kMagicBytes + 4;
  header.append(63 - (front + header.size()) % 64, ' ');
  header += '\n';
  const unsigned char version_and_length[] = {1, 0, static_cast<unsigned char>(header.size() & 0xff),
                                              static_cast<unsigned char>(header.size() >> 8)};
  File file(std::fopen(path.c_str(), "wb"), std::fclose);
  bool done = file != nullptr;
  const auto put = [&](const void* data, std::size_t bytes) {
    done = done && std::fwrite(data, 1, bytes, file.get()) == bytes;
  };
  put(kMagic, kMagicBytes);
  put(version_and_length, sizeof version_and_length);
  put(header.data(), header.size());
  put(array.values.data(), array.values.size() * sizeof(float));
  if (file && std::fclose(file.release()) != 0) done = false;
  if (!done) throw Failure(EFFV2_FILE_ERROR, "cannot write " + path + ": " + reason(errno));
}

}  // namespace effv2::runner
