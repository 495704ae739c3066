// What the engine throws. Each says what was given, what was expected and what to do, in one line.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

namespace effv2 {

// A value as messages have it.
inline std::string shown(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", static_cast<double>(value));
  return text;
}

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

// A value went beyond what the number format holds, while images ran.
class OverflowError : public Error {
 public:
  using Error::Error;
};

}  // namespace effv2
