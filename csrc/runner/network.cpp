#include "runner/network.h"

#include <cstdlib>
#include <utility>

#include "engine/errors.h"
#include "runner/failure.h"

namespace effv2::runner {
namespace {

void check(effv2_status status, const std::string& hint = "") {
  if (status) throw Failure(status, effv2_error() + hint);
}

// Of a call: what would take less.
void check_call(effv2_status status) { check(status, status == EFFV2_OUT_OF_MEMORY ? kLessMemory : ""); }

// What was asked for that this processor lacks, and how not to ask for it.
std::string without(const Options& options) {
  const char* const forced = options.isa.empty() ? std::getenv("EFFV2_FORCE_ISA") : nullptr;
  std::string asked = options.dtype.empty() ? "" : "--dtype";
  if (!options.isa.empty()) asked += asked.empty() ? "--isa" : " and --isa";
  const std::string taken = "what this processor has is taken";
  if (forced && *forced)
    return "; with EFFV2_FORCE_ISA unset" + (asked.empty() ? "" : ", and without " + asked + ",") + " " +
           taken;
  return asked.empty() ? "" : "; without " + asked + " " + taken;
}

const char* named(const std::string& name) { return name.empty() ? nullptr : name.c_str(); }

std::size_t count_of(const effv2_shape& shape, std::int64_t images) {
  return static_cast<std::size_t>(images) * static_cast<std::size_t>(shape.channels) *
         static_cast<std::size_t>(shape.height) * static_cast<std::size_t>(shape.width);
}

}  // namespace

Network::Network(const Options& options) {
  effv2_options how{};
  how.size = sizeof how;
  how.dtype = named(options.dtype);
  how.isa = named(options.isa);
  how.threads = options.threads;
  const effv2_status status = effv2_load_file(options.network.c_str(), &how, &network_);
  check(status, status == EFFV2_UNAVAILABLE     ? without(options)
                : status == EFFV2_OUT_OF_MEMORY ? " (--dtype)"
                                                : "");
  about_.size = sizeof about_;
  check(effv2_describe(network_, &about_));
}

effv2_block Network::block(int index, std::int64_t height, std::int64_t width) const {
  effv2_block found{};
  found.size = sizeof found;
  check(effv2_describe_block(network_, index, height, width, &found));
  return found;
}

double Network::measure_peak(double milliseconds) const {
  double gflops = 0;
  check(effv2_measure_peak(network_, 0, milliseconds, &gflops));
  return gflops;
}

Call::Call(const Network& network, Array images) : network_(network) {
  const effv2_description& about = network.about();
  const std::vector<std::int64_t>& shape = images.shape;
  call_ = {nullptr, shape[0], shape[1], shape[2], shape[3], 0, 0, 0, 0};
  for (int i = 0; i < about.outputs; ++i) {
    effv2_shape output{};
    check(effv2_output_shape(network.network_, i, shape[2], shape[3], &output),
          ": give another --img-size, or an array of such images with --input");
    shapes_.push_back(output);
    memory_.emplace_back(count_of(output, shape[0]), about.dtype);
    addresses_.push_back(memory_.back().data());
  }
  images_ = Values(std::move(images.values), about.dtype);
  call_.data = images_.data();
}

void Call::run() {
  check_call(effv2_run(network_.network_, &call_, addresses_.data(), network_.about().outputs, 0));
}

std::vector<double> Call::profile() {
  const int blocks = network_.about().blocks;
  std::vector<double> seconds(static_cast<std::size_t>(blocks));
  check_call(effv2_profile(network_.network_, &call_, addresses_.data(), network_.about().outputs, 0,
                           seconds.data(), blocks));
  return seconds;
}

std::vector<Array> Call::outputs() const {
  std::vector<Array> found;
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    const Values& values = memory_[i];
    const auto channels = static_cast<std::size_t>(shapes_[i].channels);
    const std::size_t pixels =
        static_cast<std::size_t>(shapes_[i].height) * static_cast<std::size_t>(shapes_[i].width);
    Array array{{call_.count, shapes_[i].channels}, {}};
    if (!network_.about().has_head)
      array.shape.insert(array.shape.end(), {shapes_[i].height, shapes_[i].width});
    array.values.reserve(values.size());
    // From channels innermost to columns innermost.
    for (std::size_t image = 0; image < values.size(); image += pixels * channels) {
      for (std::size_t channel = 0; channel < channels; ++channel) {
        for (std::size_t pixel = 0; pixel < pixels; ++pixel)
          array.values.push_back(values[image + pixel * channels + channel]);
      }
    }
    found.push_back(std::move(array));
  }
  return found;
}

std::size_t Call::bytes() const {
  std::size_t sum = images_.bytes();
  for (const Values& output : memory_) sum += output.bytes() + output.size() * sizeof(float);
  return sum;
}

}  // namespace effv2::runner
