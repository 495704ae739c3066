// What the command line says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace effv2::runner {

struct Options {
  std::string network;
  std::string image, input;                // at most one of them; neither is an image of random numbers
  std::string output;                      // where outputs go; empty for nowhere
  std::string dtype, isa;                  // empty for the library's choice
  std::int64_t rows = 224, columns = 224;  // of a picture or random image
  int threads = 0;                         // 0 for the library's choice
  int repeat = 10, warmup = 3, top = 5;
  bool profile = false, json = false;
};

// Nothing where help or the version was asked for, and printed. Throws Failure where options are wrong.
std::optional<Options> parse_options(int argc, char** argv);

}  // namespace effv2::runner
