#include "runner/preprocess.h"

#include <cmath>

#include "engine/errors.h"
#include "runner/failure.h"

namespace effv2::runner {
namespace {

constexpr double kCrop = 0.95;
constexpr float kMean[] = {0.485f, 0.456f, 0.406f}, kDeviation[] = {0.229f, 0.224f, 0.225f};

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
  const std::size_t pixels = height * width;
  Array image{{1, 3, rows, columns}, zeros<float>(3 * pixels)};
  for (std::size_t channel = 0; channel < 3; ++channel) {
    for (std::size_t i = 0; i < pixels; ++i) {
      const float value = static_cast<float>(cut.rgb[3 * i + channel]) / 255;
      image.values[channel * pixels + i] = (value - kMean[channel]) / kDeviation[channel];
    }
  }
  return image;
}

}  // namespace effv2::runner
