#include "runner/options.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "effv2.h"
#include "engine/errors.h"
#include "runner/failure.h"

namespace effv2::runner {
namespace {

constexpr int kMostRuns = 1000000, kLongestSide = 1 << 24;

constexpr const char* kAbout =
    "Runs a network that effv2_kernels.save() or `python -m effv2_kernels convert` wrote: the most probable "
    "classes, how long it takes, and what memory it takes.";
constexpr const char* kExitCodes =
    "Exit codes: 0 done; 1 another failure; 2 wrong options; 3 a file cannot be read or written; 4 the "
    "network's file is damaged or none; 5 it is of a newer version; 6 this processor lacks the dtype or "
    "instruction set; 7 the network cannot take images of this size; 8 not enough memory; 9 a weight, or a "
    "value that was computed, is beyond what the dtype holds; 10 the picture or array is not what it should "
    "be.";

[[noreturn]] void refuse(const std::string& why) {
  throw Failure(EFFV2_INVALID_ARGUMENT, why + "; see effv2-run --help");
}

void check_range(const char* option, int value, int least, int most) {
  if (value >= least && value <= most) return;
  refuse(std::string(option) + " is " + std::to_string(value) + "; expected " + std::to_string(least) +
         " to " + std::to_string(most));
}

// "224" or "160x224".
void parse_size(const std::string& text, Options& options) {
  const std::size_t times = text.find_first_of("xX");
  const auto side = [&](const std::string& digits) -> std::int64_t {
    const bool plain =
        !digits.empty() && digits.size() < 9 && digits.find_first_not_of("0123456789") == std::string::npos;
    const std::int64_t value = plain ? std::stoll(digits) : 0;
    if (value < 1 || value > kLongestSide)
      refuse("--img-size is " + effv2::shown(text) +
             "; expected 224 or ROWSxCOLUMNS such as 160x224, at most " + std::to_string(kLongestSide) +
             " of each");
    return value;
  };
  options.rows = side(text.substr(0, times));
  options.columns = times == std::string::npos ? options.rows : side(text.substr(times + 1));
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  Options options;
  std::string size;
  CLI::App app(kAbout, "effv2-run");
  app.footer(kExitCodes);
  app.set_version_flag("--version", std::string("effv2-run ") + effv2_version());
  app.add_option("network", options.network, "such as s0.effv2")->required()->type_name("FILE");
  CLI::Option* image = app.add_option(
      "--image", options.image, "a JPEG, PNG or PPM, prepared as ImageNet's photographs are for evaluation");
  image->type_name("FILE");
  app.add_option("--input", options.input, "a NumPy array of float32 or float16, (N, C, H, W) or (C, H, W)")
      ->type_name("FILE.npy")
      ->excludes(image);
  app.add_option(
         "--output", options.output,
         "write the outputs here, as float32, (N, classes) or (N, C, H, W); of several, with their numbers")
      ->type_name("FILE.npy");
  app.add_option("--img-size", size, "of a picture or a random image: 224 (default) or ROWSxCOLUMNS")
      ->type_name("SIZE");
  app.add_option("--dtype", options.dtype,
                 "fp32, bf16 or fp16; default: the file's own where that runs, else fp32")
      ->type_name("NAME");
  app.add_option("--isa", options.isa, "avx512, avx2, neon or scalar; default: the best of this processor")
      ->type_name("NAME");
  const auto count = [&](const char* name, int& value, const char* about) {
    return app.add_option(name, value, about)->type_name("N");
  };
  CLI::Option* threads =
      count("--threads", options.threads, "default: one for each fast or middle core that may be used");
  count("--repeat", options.repeat, "timed runs; default: 10");
  count("--warmup", options.warmup, "runs before them; default: 3");
  count("--top", options.top, "classes to print; default: 5");
  app.add_flag("--profile", options.profile, "time every block");
  app.add_flag("--json", options.json, "print one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    app.exit(asked, std::cout, std::cerr);
    return std::nullopt;
  } catch (const CLI::ConversionError& error) {
    refuse(std::string(error.what()) + "; expected a whole number of 32 bits");
  } catch (const CLI::ParseError& error) {
    refuse(error.what());
  }
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& value : option->results()) {
      if (value.empty()) refuse(option->get_name() + " is empty; expected " + option->get_type_name());
    }
  }
  if (threads->count()) check_range("--threads", options.threads, 1, 1 << 16);
  check_range("--repeat", options.repeat, 1, kMostRuns);
  check_range("--warmup", options.warmup, 0, kMostRuns);
  check_range("--top", options.top, 1, kMostRuns);
  if (!size.empty()) parse_size(size, options);
  return options;
}

}  // namespace effv2::runner
