#include <cmath>
#include <cstring>

#include "cuda/device.h"
#include "storage/half.h"

namespace effv2::cuda {

float to_float(Half v) { return float_of_half(v.bits); }
float to_float(Bf16 v) {
  const std::uint32_t bits = std::uint32_t{v.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest float, or the odd one of two where there is none: rounding that again is as rounding once.
static float to_odd(double v) {
  const float nearest = static_cast<float>(v);
  if (static_cast<double>(nearest) == v || !std::isfinite(nearest)) return nearest;
  std::uint32_t bits;
  std::memcpy(&bits, &nearest, sizeof bits);
  if (bits & 1u) return nearest;
  // The neighbour on the other side of v is odd.
  const bool away = std::fabs(static_cast<double>(nearest)) < std::fabs(v);
  bits = away ? bits + 1 : bits - 1;
  float odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return odd;
}

std::uint16_t half_of(double v) { return half_of_float(to_odd(v)); }
std::uint16_t bf16_of(double v) {
  const float value = to_odd(v);
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float approximated(float exact, float x, float relative) {
  // Of infinities the instructions' results are exact.
  if (!emulator::config.approximate || !std::isfinite(x)) return exact;
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits * 2654435761u >> 31 ? exact * (1 + relative) : exact * (1 - relative);
}

}  // namespace effv2::cuda
