#include <algorithm>
#include <cmath>

#include "engine/errors.h"
#include "runner/preprocess.h"

namespace effv2::runner {
namespace {

constexpr int kBits = 22;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// Of one output: the inputs that it covers, from `first` on, each with its weight.
struct Taps {
  std::size_t first;
  std::vector<std::int64_t> weights;
};

// For outputs [begin, begin + count) of a line of `inputs` that becomes one of `outputs`.
std::vector<Taps> taps(std::size_t inputs, std::size_t outputs, std::size_t begin, std::size_t count) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double stretch = std::max(scale, 1.0), support = 2 * stretch;
  std::vector<Taps> found(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double center = (static_cast<double>(begin + i) + 0.5) * scale;
    const auto first = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
    const auto last = static_cast<std::size_t>(std::min(center + support + 0.5, static_cast<double>(inputs)));
    std::vector<double> weights;
    double sum = 0;
    for (std::size_t at = first; at < last; ++at) {
      weights.push_back(bicubic((static_cast<double>(at) - center + 0.5) / stretch));
      sum += weights.back();
    }
    found[i].first = first;
    for (const double weight : weights)
      found[i].weights.push_back(static_cast<std::int64_t>(std::round(weight / sum * (1 << kBits))));
  }
  return found;
}

// One channel of one output; the inputs lie `stride` apart.
unsigned char weighted(const Taps& taps, const unsigned char* input, std::size_t stride) {
  std::int64_t sum = std::int64_t{1} << (kBits - 1);
  input += taps.first * stride;
  for (const std::int64_t weight : taps.weights) {
    sum += weight * *input;
    input += stride;
  }
  return static_cast<unsigned char>(std::clamp<std::int64_t>(sum >> kBits, 0, 255));
}

}  // namespace

Picture resize(const Picture& picture, std::size_t rows, std::size_t columns, const Window& window) {
  const std::vector<Taps> across = taps(picture.columns, columns, window.left, window.columns);
  const std::vector<Taps> down = taps(picture.rows, rows, window.top, window.rows);
  const std::size_t channels = picture.channels, stride = window.columns * channels;
  Picture narrow{picture.rows, window.columns, channels, zeros<unsigned char>(picture.rows * stride)};
  // The rows that the window needs, and no others.
  const std::size_t begin = down.front().first, end = down.back().first + down.back().weights.size();
  for (std::size_t row = begin; row < end; ++row) {
    const unsigned char* from = picture.values.data() + row * picture.columns * channels;
    unsigned char* to = narrow.values.data() + row * stride;
    for (const Taps& taps : across) {
      for (std::size_t channel = 0; channel < channels; ++channel)
        *to++ = weighted(taps, from + channel, channels);
    }
  }
  Picture cut{window.rows, window.columns, channels, zeros<unsigned char>(window.rows * stride)};
  for (std::size_t row = 0; row < window.rows; ++row) {
    for (std::size_t i = 0; i < stride; ++i)
      cut.values[row * stride + i] = weighted(down[row], narrow.values.data() + i, stride);
  }
  return cut;
}

}  // namespace effv2::runner
