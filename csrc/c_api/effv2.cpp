// The C ABI: what goes in is checked and what was thrown becomes a status here, and nothing else happens.
#include "effv2.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "engine/call.h"
#include "engine/cores.h"
#include "engine/peak.h"
#include "storage/errors.h"
#include "storage/load.h"
#include "storage/mapped_file.h"

struct effv2_network {
  effv2::LoadedNetwork loaded;
  int threads;
};

namespace {

using effv2::InputError;

thread_local char last_error[1024];

// Whatever a message quotes, such as a path, it is one line, and no character of UTF-8 is cut.
effv2_status failed(effv2_status status, const char* why) noexcept {
  const std::size_t length = effv2::whole_characters(why, std::strlen(why), sizeof last_error - 1);
  std::memmove(last_error, why, length);
  last_error[length] = '\0';
  for (std::size_t i = 0; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(last_error[i]);
    const auto next = static_cast<unsigned char>(last_error[i + 1]);
    if (byte < 0x20 || byte == 0x7f) last_error[i] = ' ';
    // U+0080 to U+009F, of which some end a line as well.
    if (byte == 0xc2 && next >= 0x80 && next < 0xa0) last_error[i] = last_error[i + 1] = ' ';
  }
  return status;
}

// What memory was for, and what takes less.
struct Purpose {
  char what[160];
  const char* instead;
};
Purpose of_a_question() noexcept { return {"", ""}; }

effv2_status out_of_memory(const Purpose& purpose, std::size_t bytes) noexcept {
  char why[sizeof last_error];
  std::snprintf(why, sizeof why, "there is not enough memory%s%s%s", purpose.what,
                effv2::AskedFor(bytes).text, purpose.instead);
  return failed(EFFV2_OUT_OF_MEMORY, why);
}

// f(), and the status of what it throws. purpose() is asked for where there is no memory.
template <class Function, class Why = Purpose (*)() noexcept>
effv2_status guarded(Function f, Why purpose = of_a_question) noexcept {
  try {
    f();
    return EFFV2_OK;
  } catch (const effv2::VersionError& error) {
    return failed(EFFV2_UNKNOWN_VERSION, error.what());
  } catch (const effv2::FormatError& error) {
    return failed(EFFV2_INVALID_NETWORK, error.what());
  } catch (const effv2::FileError& error) {
    return failed(EFFV2_FILE_ERROR, error.what());
  } catch (const effv2::UnavailableError& error) {
    return failed(EFFV2_UNAVAILABLE, error.what());
  } catch (const effv2::OverflowError& error) {
    return failed(EFFV2_OVERFLOW, error.what());
  } catch (const effv2::ResolutionError& error) {
    return failed(EFFV2_INVALID_SIZE, error.what());
  } catch (const InputError& error) {
    return failed(EFFV2_INVALID_ARGUMENT, error.what());
  } catch (const effv2::MemoryError& error) {
    return out_of_memory(purpose(), error.bytes());
  } catch (const std::bad_alloc&) {
    return out_of_memory(purpose(), 0);
  } catch (const std::length_error&) {  // beyond what can be addressed
    return out_of_memory(purpose(), 0);
  } catch (const std::exception& error) {
    return failed(EFFV2_FAILED, error.what());
  } catch (...) {
    return failed(EFFV2_FAILED, "an unknown error");
  }
}

void require(const void* pointer, const char* what) {
  if (!pointer) throw InputError(std::string(what) + " is NULL");
}

// A caller may have been compiled with an earlier version of a struct, which is shorter.
template <class Struct>
void check_size(const Struct& given, const char* what) {
  if (given.size < sizeof(std::size_t) || given.size > sizeof(Struct)) {
    throw InputError(std::string(what) + " has the size " + std::to_string(given.size) +
                     "; expected sizeof(" + what + "), which is " + std::to_string(sizeof(Struct)) +
                     " in this library");
  }
}

template <class Struct>
void give(Struct made, Struct* to) {
  made.size = to->size;
  std::memcpy(to, &made, to->size);
}

effv2_options options_of(const effv2_options* given) {
  effv2_options options{};
  if (!given) return options;
  check_size(*given, "effv2_options");
  std::memcpy(&options, given, given->size);
  if (options.threads < 0)
    throw InputError("threads is " + std::to_string(options.threads) + "; expected 0 or more");
  return options;
}

std::string isa_of(const effv2_options& options) { return options.isa ? options.isa : effv2::default_isa(); }

// The dtype asked for, or that of the file, or else fp32, which every instruction set has.
const effv2::Target& target_of(const effv2_options& options, const std::string& stored) {
  constexpr const char* kDtypes[] = {"fp32", "bf16", "fp16"};
  const std::string isa = isa_of(options);
  if (options.dtype) {
    const auto same = [&](const char* dtype) { return std::strcmp(dtype, options.dtype) == 0; };
    if (!std::any_of(std::begin(kDtypes), std::end(kDtypes), same)) {
      throw InputError("unknown dtype " + effv2::shown(options.dtype) + "; known: fp32, bf16, fp16");
    }
    return effv2::target_named(isa, options.dtype);
  }
  const effv2::Target* own = effv2::find_target(isa.c_str(), stored.c_str());
  return own && own->available() ? *own : effv2::target_named(isa, "fp32");
}

Purpose of_loading() noexcept {
  return {" to load the network", ": free some, or load it in a dtype of 16 bits"};
}

Purpose of_running(const effv2_images* images) noexcept {
  Purpose purpose{"",
                  ": give fewer or smaller images, fewer threads, or load the network in a dtype of 16 bits"};
  if (images) {
    const effv2_images& x = *images;
    std::snprintf(purpose.what, sizeof purpose.what, " to run images of %lldx%lldx%lldx%lld",
                  static_cast<long long>(x.count), static_cast<long long>(x.channels),
                  static_cast<long long>(x.height), static_cast<long long>(x.width));
  }
  return purpose;
}

void load(const std::byte* data, std::size_t bytes, const std::string& name, const effv2_options& options,
          effv2_network** network) {
  const auto choose = [&](const std::string& stored) -> const effv2::Target& {
    return target_of(options, stored);
  };
  const int threads = options.threads ? options.threads : effv2::default_threads();
  *network = new effv2_network{effv2::load_network(data, bytes, name, choose), threads};
}

int threads_of(const effv2_network& network, int threads) {
  if (threads < 0) throw InputError("threads is " + std::to_string(threads) + "; expected 0 or more");
  return threads ? threads : network.threads;
}

// Of every block, for images that the network can take.
std::vector<effv2::Map> maps_of(const effv2_network& network, std::int64_t height, std::int64_t width) {
  for (const std::int64_t n : {height, width}) {
    if (n < 1 || n > effv2::kLongestSide) {
      throw InputError("an image has " + std::to_string(height) + "x" + std::to_string(width) +
                       " pixels; expected at least 1 and at most " + std::to_string(effv2::kLongestSide) +
                       " of each");
    }
  }
  return network.loaded.network->maps(static_cast<int>(height), static_cast<int>(width));
}

void check_index(int index, int count, const char* what) {
  if (index < 0 || index >= count) {
    throw InputError("there is no " + std::string(what) + " " + std::to_string(index) + "; the network has " +
                     std::to_string(count));
  }
}

effv2_shape shape_of(const effv2::Map& map) { return {map.channels, map.height, map.width}; }

void run(const effv2_network* network, const effv2_images* images, void* const* outputs, int output_count,
         int threads, double* seconds) {
  require(network, "the network");
  require(images, "images");
  const effv2_images& x = *images;
  std::array<std::int64_t, 4> strides{x.image_stride, x.channel_stride, x.row_stride, x.column_stride};
  const std::array<std::int64_t, 4> shape{x.count, x.channels, x.height, x.width};
  const bool dense =
      std::all_of(strides.begin(), strides.end(), [](std::int64_t stride) { return stride == 0; });
  if (dense) {
    std::int64_t stride = 1;
    for (std::size_t axis = 4; axis > 0; --axis) {
      strides[axis - 1] = stride;
      if (__builtin_mul_overflow(stride, shape[axis - 1], &stride)) throw InputError("images are too large");
    }
  }
  const auto count = static_cast<std::size_t>(std::max(output_count, 0));
  effv2::run(*network->loaded.network,
             {x.data, shape, strides, outputs, count, threads_of(*network, threads), seconds, 0});
}

}  // namespace

effv2_status effv2_load_file(const char* path, const effv2_options* options, effv2_network** network) {
  return guarded(
      [&] {
        require(network, "where the network is to be put");
        *network = nullptr;
        require(path, "the path");
        if (!*path) throw InputError("the path is empty; expected that of a saved network");
        const effv2_options how = options_of(options);
        const effv2::MappedFile file(path);
        load(file.data(), file.bytes(), path, how, network);
      },
      of_loading);
}

effv2_status effv2_load_memory(const void* data, size_t bytes, const effv2_options* options,
                               effv2_network** network) {
  return guarded(
      [&] {
        require(network, "where the network is to be put");
        *network = nullptr;
        require(data, "the data");
        load(static_cast<const std::byte*>(data), bytes, "the data", options_of(options), network);
      },
      of_loading);
}

void effv2_free(effv2_network* network) { delete network; }

effv2_status effv2_describe(const effv2_network* network, effv2_description* description) {
  return guarded([&] {
    require(network, "the network");
    require(description, "the description");
    check_size(*description, "effv2_description");
    const effv2::Network& made = *network->loaded.network;
    const effv2::Target& target = made.target();
    effv2_description found{};
    found.dtype = target.format;
    found.isa = target.isa;
    found.file_dtype = network->loaded.dtype.c_str();
    found.value_bytes = static_cast<std::size_t>(target.value_bytes);
    found.channels = made.in_channels();
    found.outputs = made.outputs();
    found.has_head = network->loaded.has_head;
    found.blocks = made.size();
    found.threads = network->threads;
    found.packed_bytes = made.packed_bytes();
    give(found, description);
  });
}

effv2_status effv2_output_shape(const effv2_network* network, int index, int64_t height, int64_t width,
                                effv2_shape* shape) {
  return guarded([&] {
    require(network, "the network");
    require(shape, "the shape");
    const effv2::Network& made = *network->loaded.network;
    check_index(index, made.outputs(), "output");
    *shape = shape_of(maps_of(*network, height, width)[static_cast<std::size_t>(made.output_block(index))]);
  });
}

effv2_status effv2_describe_block(const effv2_network* network, int index, int64_t height, int64_t width,
                                  effv2_block* block) {
  return guarded([&] {
    require(network, "the network");
    require(block, "the block");
    check_size(*block, "effv2_block");
    check_index(index, network->loaded.network->size(), "block");
    const auto at = static_cast<std::size_t>(index);
    const effv2::LoadedNetwork::Block& known = network->loaded.blocks[at];
    effv2_block found{};
    found.kind = known.kind.c_str();
    found.name = known.name.c_str();
    found.output = shape_of(maps_of(*network, height, width)[at]);
    found.multiply_adds =
        network->loaded.network->multiply_adds(static_cast<int>(height), static_cast<int>(width))[at];
    give(found, block);
  });
}

const char* effv2_class_name(const effv2_network* network, int index) {
  if (!network || index < 0) return nullptr;
  const std::vector<std::string>& labels = network->loaded.labels;
  const auto at = static_cast<std::size_t>(index);
  return at < labels.size() ? labels[at].c_str() : nullptr;
}

int64_t effv2_working_bytes(const effv2_network* network) {
  return network ? network->loaded.network->working_bytes() : 0;
}

effv2_status effv2_run(const effv2_network* network, const effv2_images* images, void* const* outputs,
                       int output_count, int threads) {
  return guarded([&] { run(network, images, outputs, output_count, threads, nullptr); },
                 [&]() noexcept { return of_running(images); });
}

effv2_status effv2_profile(const effv2_network* network, const effv2_images* images, void* const* outputs,
                           int output_count, int threads, double* seconds, int block_count) {
  return guarded(
      [&] {
        require(network, "the network");
        require(seconds, "seconds");
        if (block_count != network->loaded.network->size()) {
          throw InputError("expected room for " + std::to_string(network->loaded.network->size()) +
                           " blocks, got " + std::to_string(block_count));
        }
        run(network, images, outputs, output_count, threads, seconds);
      },
      [&]() noexcept { return of_running(images); });
}

effv2_status effv2_measure_peak(const effv2_network* network, int threads, double milliseconds,
                                double* gflops) {
  return guarded([&] {
    require(network, "the network");
    require(gflops, "gflops");
    if (!(milliseconds > 0 && milliseconds <= 1e6))
      throw InputError("milliseconds must be above 0 and at most 1e6");
    const effv2::Target& fp32 = effv2::target_named(network->loaded.network->target().isa, "fp32");
    *gflops = effv2::measure_peak(fp32, threads_of(*network, threads), milliseconds);
  });
}

int effv2_default_threads(void) {
  int threads = 1;
  guarded([&] { threads = effv2::default_threads(); });
  return threads;
}

const char* effv2_error(void) { return last_error; }

const char* effv2_version(void) { return EFFV2_VERSION; }
