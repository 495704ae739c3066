#include "runner/values.h"

#include <cmath>
#include <cstdint>
#include <cstring>

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

std::vector<std::byte> encoded(const std::vector<float>& values, const std::string& dtype) {
  const Sixteen convert = functions(dtype);
  std::vector<std::byte> made(values.size() * (convert.of ? 2 : 4));
  if (!convert.of) {
    std::memcpy(made.data(), values.data(), made.size());
    return made;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t value = convert.of(values[i]);
    if (std::isfinite(values[i]) && !std::isfinite(convert.back(value))) {
      throw Failure(kBadInput, "the input has a value of " + std::to_string(values[i]) + ", which is beyond what " +
                                   dtype + " holds; use --dtype fp32");
    }
    std::memcpy(made.data() + 2 * i, &value, 2);
  }
  return made;
}

std::vector<float> decoded(const std::vector<std::byte>& values, const std::string& dtype) {
  const Sixteen convert = functions(dtype);
  std::vector<float> found(values.size() / (convert.of ? 2 : 4));
  if (!convert.of) {
    std::memcpy(found.data(), values.data(), values.size());
    return found;
  }
  for (std::size_t i = 0; i < found.size(); ++i) {
    std::uint16_t value;
    std::memcpy(&value, values.data() + 2 * i, 2);
    found[i] = convert.back(value);
  }
  return found;
}

}  // namespace effv2::runner
