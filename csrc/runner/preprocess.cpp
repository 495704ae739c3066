#include "runner/preprocess.h"

#include <cmath>

#include "engine/errors.h"
#include "runner/failure.h"

namespace effv2::runner {
namespace {

constexpr double kCrop = 0.95;
constexpr double kMean[] = {0.485, 0.456, 0.406}, kDeviation[] = {0.229, 0.224, 0.225};

struct Size {
  std::int64_t rows, columns;
};

Size resized_size(const Picture& picture, std::int64_t rows, std::int64_t columns) {
  const auto height = static_cast<std::int64_t>(static_cast<double>(rows) / kCrop);
  const auto width = static_cast<std::int64_t>(static_cast<double>(columns) / kCrop);
  const auto stored_rows = static_cast<std::int64_t>(picture.rows);
  const auto stored_columns = static_cast<std::int64_t>(picture.columns);
  if (height * stored_columns > width * stored_rows) return {height, height * stored_columns / stored_rows};
  return {width * stored_rows / stored_columns, width};
}

// Half to even, as Python's round().
std::size_t middle(std::int64_t whole, std::int64_t part) {
  return static_cast<std::size_t>(std::nearbyint(static_cast<double>(whole - part) / 2));
}

float of_channel(const double (&of_colours)[3], std::size_t channel, std::size_t channels) {
  const double grey = (of_colours[0] + of_colours[1] + of_colours[2]) / 3;
  return static_cast<float>(channels == 1 ? grey : of_colours[channel]);
}

}  // namespace

Array prepare(const Picture& picture, std::int64_t rows, std::int64_t columns) {
  const Size size = resized_size(picture, rows, columns);
  if (size.rows * size.columns > static_cast<std::int64_t>(kMostPixels)) {
    throw Failure(kBadInput, "a picture of " + std::to_string(picture.columns) + "x" +
                                 std::to_string(picture.rows) + " cannot be cut to " + std::to_string(rows) +
                                 "x" + std::to_string(columns) + ": resized, it would have " +
                                 std::to_string(size.rows * size.columns) + " pixels, and at most " +
                                 std::to_string(kMostPixels) +
                                 " are made; crop it, or give a smaller --img-size");
  }
  const auto height = static_cast<std::size_t>(rows), width = static_cast<std::size_t>(columns);
  const Picture cut =
      resize(picture, static_cast<std::size_t>(size.rows), static_cast<std::size_t>(size.columns),
             {middle(size.rows, rows), middle(size.columns, columns), height, width});
  const std::size_t pixels = height * width, channels = cut.channels;
  Array image{{1, static_cast<std::int64_t>(channels), rows, columns}, zeros<float>(channels * pixels)};
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const float mean = of_channel(kMean, channel, channels),
                deviation = of_channel(kDeviation, channel, channels);
    for (std::size_t i = 0; i < pixels; ++i) {
      const float value = static_cast<float>(cut.values[channels * i + channel]) / 255;
      image.values[channel * pixels + i] = (value - mean) / deviation;
    }
  }
  return image;
}

}  // namespace effv2::runner
