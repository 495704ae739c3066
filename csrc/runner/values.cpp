#include "runner/values.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "engine/errors.h"
#include "runner/failure.h"
#include "storage/half.h"

namespace effv2::runner {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A bf16 is the upper half of a float.
std::uint16_t bf16_of(float value) {
  const std::uint32_t bits = bits_of(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float float_of_bf16(std::uint16_t value) {
  const std::uint32_t bits = std::uint32_t{value} << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

struct Sixteen {
  std::uint16_t (*of)(float);
  float (*back)(std::uint16_t);
};

// Of a dtype of 16 bits; null functions for fp32.
Sixteen functions(const std::string& dtype) {
  if (dtype == "fp16") return {half_of_float, float_of_half};
  if (dtype == "bf16") return {bf16_of, float_of_bf16};
  return {nullptr, nullptr};
}

}  // namespace

Values::Values(std::size_t count, const std::string& dtype) : back_(functions(dtype).back) {
  if (back_)
    narrow_ = zeros<std::uint16_t>(count);
  else
    wide_ = zeros<float>(count);
}

Values::Values(std::vector<float> values, const std::string& dtype) : back_(functions(dtype).back) {
  if (!back_) {
    wide_ = std::move(values);
    return;
  }
  const auto of = functions(dtype).of;
  narrow_ = zeros<std::uint16_t>(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float value = values[i];
    narrow_[i] = of(value);
    if (std::isfinite(value) && !std::isfinite(back_(narrow_[i]))) {
      throw Failure(kBadInput, "the input has a value of " + std::to_string(value) +
                                   ", which is beyond what " + dtype + " holds; use --dtype fp32");
    }
  }
}

}  // namespace effv2::runner
