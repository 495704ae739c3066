// What becomes of a product's sums: y = f(sums + bias) + residual.
#pragma once

#include "cuda/address.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/fragments.h"
#include "cuda/vector.h"

namespace effv2::cuda {

template <class T>
class Output {
 public:
  // y and residual: (pixels, outputs), the latter 0 where there is none. bias: (outputs rounded up to 32).
  EFFV2_DEVICE Output(const Buffers& buffers, Address y, Address residual, Address bias, int outputs,
                      Activation activation)
      : y_(at<T>(buffers, y)),
        residual_(residual ? at<T>(buffers, residual) : nullptr),
        bias_(at<float>(buffers, bias)),
        outputs_(outputs),
        activation_(activation) {}

  // first: of the 32 columns that the warp has. Whether this lane has any that exist.
  EFFV2_DEVICE bool take_column(int first) {
    column_ = first + first_column_of_lane();
    if (column_ >= outputs_) return false;
    load_floats(column_bias_, bias_ + column_);
    return true;
  }

  // This lane's row of some sums, which is a pixel of y.
  EFFV2_DEVICE void put(const Sums& sums, int half, int pixel) const {
    const long long place = static_cast<long long>(pixel) * outputs_ + column_;
    float v[8];
    sums.get(v, half);
    EFFV2_UNROLL
    for (int i = 0; i < 8; ++i) v[i] += column_bias_[i];
    if (outputs_ % 8) return put_some(v, place);
    Eight made;
    if (residual_) {
      float added[8];
      unpack<T>(added, load<Eight>(residual_ + place));
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) {
        made.pair[i] = pack<T>(activated(activation_, v[2 * i]) + added[2 * i],
                               activated(activation_, v[2 * i + 1]) + added[2 * i + 1]);
      }
    } else {
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) made.pair[i] = activated<T>(activation_, v[2 * i], v[2 * i + 1]);
    }
    store(y_ + place, made);
  }

 private:
  // Rows that are no multiple of eight long begin anywhere, and end before a lane's last column.
  EFFV2_DEVICE void put_some(const float (&v)[8], long long place) const {
    EFFV2_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (column_ + i >= outputs_) continue;
      const float made = activated(activation_, v[i]);
      store(y_ + place + i,
            from_float<T>(residual_ ? made + to_float(load<T>(residual_ + place + i)) : made));
    }
  }

  T* y_;
  const T* residual_;
  const float* bias_;
  int outputs_, column_;
  Activation activation_;
  float column_bias_[8];
};

}  // namespace effv2::cuda
