// What the engine throws. Each says what was given, what was expected and what to do, in one line.
#pragma once

#include <cstdint>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace effv2 {

// A value as messages have it.
inline std::string shown(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", static_cast<double>(value));
  return text;
}

// Bytes of a text, at most so many, that end with a whole character of UTF-8.
std::size_t whole_characters(const char* text, std::size_t length, std::size_t longest) noexcept;
// A text of a file or of a caller, for a message: one line, no control characters, and not longer than this.
std::string shortened(const std::string& text, std::size_t longest);
// The same in quotes, as messages have names.
std::string shown(const std::string& text);

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Of a call: a size, an address, a number of threads, a name that does not exist.
class InputError : public Error {
 public:
  using Error::Error;
};

// Of a call whose images have a size that the network cannot take.
class ResolutionError : public InputError {
 public:
  using InputError::InputError;
};

// Something known cannot run here: an instruction set, a number format.
class UnavailableError : public Error {
 public:
  using Error::Error;
};

// A value is beyond what the number format holds: a weight, or one that was computed while images ran.
class OverflowError : public Error {
 public:
  using Error::Error;
};

// Memory that cannot be had, where it is known how much it would have been. To say so takes none.
class MemoryError : public std::bad_alloc {
 public:
  explicit MemoryError(std::size_t bytes) noexcept : bytes_(bytes) {}
  std::size_t bytes() const noexcept { return bytes_; }
  const char* what() const noexcept override { return "there is not enough memory"; }

 private:
  std::size_t bytes_;
};

// So many zeros. Throws MemoryError.
template <class T>
std::vector<T> zeros(std::size_t count) {
  std::vector<T> values;
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(count, sizeof(T), &bytes) || count > values.max_size())
    throw MemoryError(SIZE_MAX);
  try {
    values.resize(count);
  } catch (const std::bad_alloc&) {
    throw MemoryError(bytes);
  }
  return values;
}

// How much was asked for, as messages have it: "; 12.3 MiB were asked for", or nothing where it is not known,
// which is 0.
struct AskedFor {
  char text[48];
  explicit AskedFor(std::size_t bytes) noexcept;
};

}  // namespace effv2
