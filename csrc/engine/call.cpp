#include "engine/call.h"

#include <algorithm>
#include <string>

namespace effv2 {
namespace {

void check(const Network& network, const Call& call) {
  if (network.out_channels() == 0) throw InputError("the network has no blocks");
  if (call.shape[1] != network.in_channels()) {
    throw InputError("expected " + std::to_string(network.in_channels()) + " channels, got " +
                     std::to_string(call.shape[1]));
  }
  for (const std::int64_t n : call.shape) {
    if (n < 1 || n > kLongestSide) {
      throw InputError("every size of the images must be at least 1 and at most " +
                       std::to_string(kLongestSide) + ", got " + std::to_string(n));
    }
  }
  if (call.threads < 1) {
    throw InputError("at least one thread is needed, got " + std::to_string(call.threads));
  }
  if (call.stop < 0 || call.stop > network.size()) {
    throw InputError("the network has " + std::to_string(network.size()) + " blocks and cannot stop after " +
                     std::to_string(call.stop));
  }
  const std::size_t expected = call.stop ? 1 : static_cast<std::size_t>(network.outputs());
  if (call.output_count != expected) {
    throw InputError("expected " + std::to_string(expected) + " outputs, got " +
                     std::to_string(call.output_count));
  }
  const auto missing = [](const void* address) { return !address; };
  if (missing(call.images) || !call.outputs ||
      std::any_of(call.outputs, call.outputs + call.output_count, missing)) {
    throw InputError("the images or an output have no memory: their address is 0");
  }
}

}  // namespace

void run(const Network& network, const Call& call) {
  check(network, call);
  const auto size = [&](std::size_t axis) { return static_cast<int>(call.shape[axis]); };
  const Images images{call.images,     size(0),         size(1),         size(2),        size(3),
                      call.strides[0], call.strides[1], call.strides[2], call.strides[3]};
  network.run(images, call.outputs, call.threads, call.seconds, call.stop);
}

}  // namespace effv2
