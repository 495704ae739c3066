// What the engine knows of the target's format, and does to maps in it.
#include "cpu/target.h"
#include "cpu/tiles/typed_block.h"

namespace effv2::EFFV2_TARGET {

extern const int kValueBytes;
const int kValueBytes = sizeof(Stored);
extern const float kLargestValue;
const float kLargestValue = kLargest;

void forget_overflow() { clear_overflow(); }
bool has_overflowed() { return overflowed(); }

void scale_and_shift(const void* x, const float* scale, const float* shift, std::int64_t pixels, int channels,
                     void* y) {
  const Stored* from = static_cast<const Stored*>(x);
  Stored* to = static_cast<Stored*>(y);
  for (; pixels > 0; --pixels, from += channels, to += channels) {
    for (int c = 0; c < channels; ++c) {
      to[c] = static_cast<Stored>(static_cast<float>(from[c]) * scale[c] + shift[c]);
    }
  }
}

void copy_rows(const MapView& x, Map size, int begin, int end, void* y) {
  const Stored* const data = static_cast<const Stored*>(x.data);
  Stored* to = static_cast<Stored*>(y) + std::int64_t{begin} * size.width * size.channels;
  for (int row = begin; row < end; ++row) {
    for (int column = 0; column < size.width; ++column, to += size.channels) {
      const Stored* pixel = data + row * x.row_stride + column * x.pixel_stride;
      for (int c = 0; c < size.channels; ++c) to[c] = pixel[c * x.channel_stride];
    }
  }
}

}  // namespace effv2::EFFV2_TARGET
