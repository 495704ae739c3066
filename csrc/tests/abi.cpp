#include "abi.h"

namespace effv2::tests {

NetworkSample sample_with_head() {
  Random random(7);
  return small_network(random, kHeight, kWidth);
}

Loaded::Loaded(const std::string& bytes, const char* dtype, const char* isa) {
  effv2_options options{};
  options.size = sizeof options;
  options.dtype = dtype;
  options.isa = isa;
  const effv2_status status = effv2_load_memory(bytes.data(), bytes.size(), &options, &network);
  CHECK_THAT(status == EFFV2_OK && network, effv2_error());
}

effv2_images images_of(const Images& x) {
  return {x.data,         x.count,          x.channels,   x.height,      x.width,
          x.image_stride, x.channel_stride, x.row_stride, x.pixel_stride};
}

std::string reason(effv2_status expected, effv2_status status) {
  CHECK_THAT(status == expected, "status " + std::to_string(status) + ": " + effv2_error());
  return status ? effv2_error() : "";
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

effv2_description describe(const effv2_network* network) {
  effv2_description about{};
  about.size = sizeof about;
  CHECK(effv2_describe(network, &about) == EFFV2_OK);
  return about;
}

}  // namespace effv2::tests
