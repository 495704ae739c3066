// Why the program stops, and with which exit code.
#pragma once

#include <stdexcept>
#include <string>

#include "effv2.h"

namespace effv2::runner {

// Exit codes are the statuses of effv2.h, and one more. --help lists them.
inline constexpr int kBadInput = 10;  // a picture or an array that is not what it should be

// What takes less, by the options of the program.
inline constexpr const char* kLessMemory = " (--img-size, --input, --threads, --dtype)";

class Failure : public std::runtime_error {
 public:
  Failure(int code, const std::string& why) : std::runtime_error(why), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

}  // namespace effv2::runner
