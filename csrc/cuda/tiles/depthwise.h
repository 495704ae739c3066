// 3x3 depthwise convolutions, four channels of a run of pixels at a time. Halves are multiplied and added as
// pairs of halves; of the other format, whose 8 bits would not do, as floats.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/vector.h"

namespace effv2::cuda {

constexpr int kTaps = 9;
constexpr int kRun = 7;  // pixels beside each other: rows of this family's maps are multiples of it

template <class T>
using TapOf = std::conditional_t<kIsHalf<T>, Half, float>;

template <class T>
class DepthwiseTaps;

template <>
class DepthwiseTaps<Half> {
 public:
  using Sum = Four;
  // taps: of the four channels, `stride` apart from one of the nine to the next.
  EFFV2_DEVICE DepthwiseTaps(const Half* taps, int stride, const float* bias) {
    EFFV2_UNROLL
    for (int k = 0; k < kTaps; ++k) taps_[k] = load<Four>(taps + k * stride);
    const Floats b = load<Floats>(bias);
    bias_ = {{pack<Half>(b.v[0], b.v[1]), pack<Half>(b.v[2], b.v[3])}};
  }
  EFFV2_DEVICE Sum start() const { return bias_; }
  EFFV2_DEVICE void add(Sum& sum, int tap, Four v) const {
    sum.pair[0] = fma2<Half>(v.pair[0], taps_[tap].pair[0], sum.pair[0]);
    sum.pair[1] = fma2<Half>(v.pair[1], taps_[tap].pair[1], sum.pair[1]);
  }
  EFFV2_DEVICE static Four made(const Sum& sum) { return sum; }

 private:
  Four taps_[kTaps], bias_;
};

template <>
class DepthwiseTaps<Bf16> {
 public:
  using Sum = Floats;
  EFFV2_DEVICE DepthwiseTaps(const float* taps, int stride, const float* bias) {
    EFFV2_UNROLL
    for (int k = 0; k < kTaps; ++k) taps_[k] = load<Floats>(taps + k * stride);
    bias_ = load<Floats>(bias);
  }
  EFFV2_DEVICE Sum start() const { return bias_; }
  EFFV2_DEVICE void add(Sum& sum, int tap, Four v) const {
    const float values[4] = {low<Bf16>(v.pair[0]), high<Bf16>(v.pair[0]), low<Bf16>(v.pair[1]),
                             high<Bf16>(v.pair[1])};
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) sum.v[i] += values[i] * taps_[tap].v[i];
  }
  EFFV2_DEVICE static Four made(const Sum& sum) {
    return {{pack<Bf16>(sum.v[0], sum.v[1]), pack<Bf16>(sum.v[2], sum.v[3])}};
  }

 private:
  Floats taps_[kTaps], bias_;
};

// read(row, column): four channels of a pixel under the windows of the run, counted from their first.
// write(pixel of the run, sums rounded to T).
template <class T, int Stride, class Read, class Write>
EFFV2_DEVICE void depthwise_run(const DepthwiseTaps<T>& taps, Read&& read, Write&& write) {
  constexpr int kColumnsRead = (kRun - 1) * Stride + 3;
  // Of the pixel whose window begins, the next one, and the one whose window ends.
  typename DepthwiseTaps<T>::Sum sums[3] = {taps.start(), taps.start(), taps.start()};
  EFFV2_UNROLL
  for (int column = 0; column < kColumnsRead; ++column) {
    EFFV2_UNROLL
    for (int row = 0; row < 3; ++row) {
      const Four v = read(row, column);
      EFFV2_UNROLL
      for (int k = 0; k < 3; ++k) {
        if (column < k || (column - k) % Stride || (column - k) / Stride >= kRun) continue;
        taps.add(sums[(column - k) / Stride % 3], 3 * row + k, v);
      }
    }
    if (column < 2 || (column - 2) % Stride) continue;
    const int pixel = (column - 2) / Stride;
    write(pixel, DepthwiseTaps<T>::made(sums[pixel % 3]));
    sums[pixel % 3] = taps.start();
  }
}

}  // namespace effv2::cuda
