#include "runner/network.h"

#include "runner/failure.h"
#include "runner/values.h"

namespace effv2::runner {
namespace {

void check(effv2_status status, const std::string& hint = "") {
  if (status) throw Failure(status, effv2_error() + hint);
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
  check(status, status == EFFV2_UNAVAILABLE ? "; without --dtype and --isa what this processor has is taken" : "");
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

Call::Call(const Network& network, const Array& images) : network_(network) {
  const effv2_description& about = network.about();
  const std::vector<std::int64_t>& shape = images.shape;
  call_ = {nullptr, shape[0], shape[1], shape[2], shape[3], 0, 0, 0, 0};
  for (int i = 0; i < about.outputs; ++i) {
    effv2_shape output{};
    check(effv2_output_shape(network.network_, i, shape[2], shape[3], &output),
          "; the images are of " + std::to_string(shape[2]) + "x" + std::to_string(shape[3]) +
              ": give the size that the network was made for (--img-size, or that of --input)");
    shapes_.push_back(output);
    memory_.emplace_back(count_of(output, shape[0]) * about.value_bytes);
    addresses_.push_back(memory_.back().data());
  }
  images_ = encoded(images.values, about.dtype);
  call_.data = images_.data();
}

void Call::run() {
  check(effv2_run(network_.network_, &call_, addresses_.data(), network_.about().outputs, 0));
}

std::vector<double> Call::profile() {
  const int blocks = network_.about().blocks;
  std::vector<double> seconds(static_cast<std::size_t>(blocks));
  check(effv2_profile(network_.network_, &call_, addresses_.data(), network_.about().outputs, 0, seconds.data(),
                      blocks));
  return seconds;
}

std::vector<Array> Call::outputs() const {
  std::vector<Array> found;
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    std::vector<float> values = decoded(memory_[i], network_.about().dtype);
    const std::int64_t channels = shapes_[i].channels, pixels = std::int64_t{shapes_[i].height} * shapes_[i].width;
    if (network_.about().has_head) {
      found.push_back({{call_.count, channels}, std::move(values)});
      continue;
    }
    // From channels innermost to columns innermost.
    Array map{{call_.count, channels, shapes_[i].height, shapes_[i].width}, std::vector<float>(values.size())};
    float* to = map.values.data();
    for (std::int64_t image = 0; image < call_.count; ++image) {
      const float* from = values.data() + image * pixels * channels;
      for (std::int64_t channel = 0; channel < channels; ++channel) {
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) *to++ = from[pixel * channels + channel];
      }
    }
    found.push_back(std::move(map));
  }
  return found;
}

std::size_t Call::bytes() const {
  std::size_t sum = images_.size();
  for (const std::vector<std::byte>& output : memory_) sum += output.size();
  return sum;
}

}  // namespace effv2::runner
