// What is applied behind a layer, to floats or to pairs of the network's format.
#pragma once

#include "cuda/device.h"

namespace effv2::cuda {

enum class Activation : int { none, gelu, relu, relu6, silu, hardswish };
constexpr const char* kActivationNames[] = {"none", "gelu", "relu", "relu6", "silu", "hardswish"};
constexpr const auto& names_of(Activation) { return kActivationNames; }

// 0.5 x (1 + tanh(x P(x^2))), with P so that the tanh is erf(x / sqrt(2)) and the result is off by 2.6e-5 at
// most; the square stops where both are 1.
namespace gelu_constants {
constexpr float kSquareEnd = 16.0f, kP0 = 0.79750788f, kP1 = 0.037005646f, kP2 = -0.00035151681f;
constexpr Pair kHalfSquareEnd = 0x4c004c00u, kHalfP0 = 0x3a613a61u, kHalfP1 = 0x28bd28bdu,
               kHalfP2 = 0x8dc28dc2u, kHalfOneHalf = 0x38003800u;
constexpr Pair kHalfOfLowest = 0xf800f800u;  // -32768
}  // namespace gelu_constants
constexpr Pair kLowestHalves = 0xfbfffbffu;  // -65504

EFFV2_DEVICE float gelu(float x) {
  using namespace gelu_constants;
  const float square = x * x < kSquareEnd ? x * x : kSquareEnd;
  const float half = 0.5f * x;
  return half + half * tanh_fast(x * (kP0 + square * (kP1 + square * kP2)));
}
// The same of two halves: off by 1.5 times what rounding its result is off by. What was too low for a half is
// an infinity, of which nothing times itself is to be left.
EFFV2_DEVICE Pair gelu2(Pair x) {
  using namespace gelu_constants;
  const Pair square = min2<Half>(mul2<Half>(x, x), kHalfSquareEnd);
  const Pair p = fma2<Half>(square, fma2<Half>(square, kHalfP2, kHalfP1), kHalfP0);
  const Pair half = max2<Half>(mul2<Half>(x, kHalfOneHalf), kHalfOfLowest);
  return fma2<Half>(half, tanh2(mul2<Half>(x, p)), half);
}

// What is no number stays none.
EFFV2_DEVICE float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::gelu:
      return gelu(x);
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::relu6:
      return x < 0 ? 0 : x > 6 ? 6 : x;
    case Activation::silu: {
      const float half = 0.5f * x;
      return half + half * tanh_fast(half);
    }
    case Activation::hardswish: {
      const float gate = x + 3;
      return x * ((gate < 0 ? 0 : gate > 6 ? 6 : gate) * (1.0f / 6));
    }
  }
  return x;
}

// Of two values, to the network's format. Which activation it is, is the same for all threads, and asked in
// the order of how often it is wanted: a branch costs less than a copy of the code around it for each.
template <class T>
EFFV2_DEVICE Pair activated(Activation activation, float x, float y) {
  if constexpr (kIsHalf<T>) {
    if (activation == Activation::gelu) return gelu2(pack<T>(x, y));
  }
  return pack<T>(activated(activation, x), activated(activation, y));
}
template <class T>
EFFV2_DEVICE Pair activated(Activation activation, Pair v) {
  if constexpr (kIsHalf<T>) {
    if (activation == Activation::gelu) return gelu2(v);
  }
  if (activation == Activation::none) return v;
  if constexpr (kIsHalf<T>) v = max2<T>(v, kLowestHalves);  // as in gelu2
  return pack<T>(activated(activation, low<T>(v)), activated(activation, high<T>(v)));
}

}  // namespace effv2::cuda
