// effv2-run: a saved network, an image and what comes of it, on any Linux of x86-64 or 64-bit Arm.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "engine/errors.h"
#include "runner/failure.h"
#include "runner/files.h"
#include "runner/preprocess.h"
#include "runner/report.h"

namespace effv2::runner {
namespace {

// Uniform between -1 and 1, the same everywhere.
Array random_image(int channels, std::int64_t rows, std::int64_t columns) {
  Array image{{1, channels, rows, columns},
              zeros<float>(static_cast<std::size_t>(channels) * static_cast<std::size_t>(rows) *
                           static_cast<std::size_t>(columns))};
  std::mt19937 bits;
  for (float& value : image.values) value = static_cast<float>(bits() >> 8) * 0x1p-23f - 1;
  return image;
}

Array images_of(const Options& options, int channels) {
  if (!options.image.empty()) {
    if (channels != 3 && channels != 1) {
      throw Failure(kBadInput,
                    options.network + " takes images of " + std::to_string(channels) +
                        " channels, and a picture has 3 or, in grey, 1; give an array with --input");
    }
    const Picture picture = read_picture(options.image);
    return prepare(channels == 1 ? grey(picture) : picture, options.rows, options.columns);
  }
  if (options.input.empty()) return random_image(channels, options.rows, options.columns);
  Array images = read_npy(options.input);
  const std::string given = shown(images.shape);
  if (images.shape.size() == 3) images.shape.insert(images.shape.begin(), 1);
  const bool fits =
      images.shape.size() == 4 && images.shape[1] == channels &&
      std::all_of(images.shape.begin(), images.shape.end(), [](std::int64_t n) { return n > 0; });
  if (!fits) {
    throw Failure(kBadInput, options.input + " has the shape " + given +
                                 "; expected (N, C, H, W) or (C, H, W) of " + std::to_string(channels) +
                                 " channels");
  }
  return images;
}

// "y.npy", or "y.0.npy", "y.1.npy", ... where there are several.
std::string numbered(const std::string& path, std::size_t index, std::size_t count) {
  if (count == 1) return path;
  const std::string ending = ".npy";
  const bool ends = path.size() > ending.size() && path.compare(path.size() - ending.size(), 4, ending) == 0;
  const std::string stem = ends ? path.substr(0, path.size() - ending.size()) : path;
  return stem + "." + std::to_string(index) + (ends ? ending : "");
}

// Before anything is computed: of all files that are written.
void check_outputs(const Options& options, std::size_t count) {
  std::vector<Read> read{{options.network, "the network"}};
  if (!options.image.empty()) read.push_back({options.image, "the picture"});
  if (!options.input.empty()) read.push_back({options.input, "the array of images"});
  for (std::size_t i = 0; i < count && !options.output.empty(); ++i)
    check_output(numbered(options.output, i, count), read);
}

void run(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Network network(options);
  const std::chrono::duration<double, std::milli> loaded = std::chrono::steady_clock::now() - start;
  const effv2_description& about = network.about();
  check_outputs(options, static_cast<std::size_t>(about.outputs));
  std::vector<std::int64_t> shape;
  Call call = [&] {
    Array images = images_of(options, about.channels);
    shape = images.shape;
    return Call(network, std::move(images));
  }();
  const Latency latency = measure(call, options.warmup, options.repeat);
  std::vector<Array> outputs = call.outputs();
  for (std::size_t i = 0; i < outputs.size() && !options.output.empty(); ++i)
    write_npy(numbered(options.output, i, outputs.size()), outputs[i]);
  std::vector<std::vector<Class>> top;
  if (about.has_head) top = top_classes(network, outputs[0], options.top);
  std::optional<Profile> blocks;
  if (options.profile) blocks = profile(network, call, shape, options.warmup, options.repeat);
  const Report report{options,
                      about,
                      loaded.count(),
                      shape,
                      std::move(outputs),
                      std::move(top),
                      latency,
                      blocks,
                      memory_of(network, call, options.network)};
  (options.json ? print_json : print_text)(report, std::cout);
}

// Messages quote files, which may hold anything: one line of UTF-8, without control characters.
std::string in_one_line(const std::string& text) {
  using Json = nlohmann::json;
  std::string valid =
      Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  std::replace_if(valid.begin(), valid.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return valid;
}

int fail(int code, const std::string& why) {
  std::cerr << "effv2-run: " << in_one_line(why) << "\n";
  return code;
}

// Where there may be none for strings, either.
int fail_for_memory(const char* asked_for) {
  std::fprintf(stderr,
               "effv2-run: there is not enough memory%s: give fewer or smaller images, fewer threads, or a "
               "dtype of 16 bits%s\n",
               asked_for, kLessMemory);
  return EFFV2_OUT_OF_MEMORY;
}

int guarded(int argc, char** argv) {
  try {
    const std::optional<Options> options = parse_options(argc, argv);
    if (options) run(*options);
    if (!std::cout.flush()) return fail(EFFV2_FILE_ERROR, "the output cannot be written");
    return 0;
  } catch (const Failure& failure) {
    return fail(failure.code(), failure.what());
  } catch (const MemoryError& error) {
    return fail_for_memory(AskedFor(error.bytes()).text);
  } catch (const std::bad_alloc&) {
    return fail_for_memory("");
  } catch (const std::length_error&) {
    return fail_for_memory("; a size is beyond what can be addressed");
  } catch (const std::exception& error) {
    return fail(EFFV2_FAILED, error.what());
  }
}

}  // namespace
}  // namespace effv2::runner

int main(int argc, char** argv) { return effv2::runner::guarded(argc, argv); }
