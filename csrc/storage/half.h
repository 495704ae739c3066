// Floating-point values of 16 bits, as IEEE 754 has them.
#pragma once

#include <cstdint>
#include <cstring>

namespace effv2 {

// Exactly; infinities and NaNs stay what they are.
inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude < 0x400) {  // zero, or too small to be normal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  // The exponent has a bias of 15 there and of 127 here; that of infinities and NaNs is the largest in both.
  const std::uint32_t rebias = magnitude >= 0x7c00 ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const std::uint32_t bits = sign | ((magnitude << 13) + rebias);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounded to nearest, ties to even; beyond 65504 infinity, and a NaN stays one.
inline std::uint16_t half_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00;
  } else if (magnitude >= 0x47800000u) {  // 65536
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // 2^-14
    // A multiple of 2^-24, below which the sum leaves no room.
    float sum;
    std::memcpy(&sum, &magnitude, sizeof sum);
    sum += 0.5f;
    std::memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + (magnitude >> 13 & 1) - ((127u - 15u) << 23)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

}  // namespace effv2
