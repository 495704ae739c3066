// A network behind the C ABI, whose statuses become failures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "effv2.h"
#include "runner/array.h"
#include "runner/options.h"
#include "runner/values.h"

namespace effv2::runner {

class Network {
 public:
  explicit Network(const Options& options);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  ~Network() { effv2_free(network_); }

  const effv2_description& about() const { return about_; }
  effv2_block block(int index, std::int64_t height, std::int64_t width) const;
  // Null where the file has no names.
  const char* class_name(int index) const { return effv2_class_name(network_, index); }
  std::int64_t working_bytes() const { return effv2_working_bytes(network_); }
  double measure_peak(double milliseconds) const;

 private:
  friend class Call;
  effv2_network* network_ = nullptr;
  effv2_description about_{};
};

// One call that is made again and again: images, and room for what they give, in the network's dtype.
class Call {
 public:
  // (N, C, H, W). Throws Failure where the network cannot take them.
  Call(const Network& network, Array images);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  void run();
  // The seconds of every block.
  std::vector<double> profile();
  // (N, classes), or (N, C, H, W) of each map.
  std::vector<Array> outputs() const;
  // Of images, outputs, and the arrays of these.
  std::size_t bytes() const;

 private:
  const Network& network_;
  Values images_;
  effv2_images call_{};
  std::vector<effv2_shape> shapes_;
  std::vector<Values> memory_;
  std::vector<void*> addresses_;
};

}  // namespace effv2::runner
