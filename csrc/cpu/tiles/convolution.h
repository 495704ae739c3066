// Full convolution as a matrix product: a window is as many runs of kernel * channels values as it has rows.
//
// The input rows are first copied into a padded strip, [row][width + 2 padding][channels].
#pragma once

#include <cstring>

#include "cpu/tiles/product.h"
#include "cpu/tiles/scratch.h"
#include "cpu/tiles/typed_block.h"

namespace effv2::EFFV2_TARGET {

class Convolution {
 public:
  Convolution() = default;
  // weight: (out, in, kernel, kernel). The depth runs over taps, then input channels.
  Convolution(const float* weight, const float* bias, int out, int in, int kernel, int stride,
              Scale scale = {})
      : kernel_(kernel), stride_(stride), channels_(in), product_(out, kernel * kernel * in, Tail::joined) {
    const int taps = kernel * kernel;
    for (int n = 0; n < out; ++n) {
      for (int c = 0; c < in; ++c) {
        for (int tap = 0; tap < taps; ++tap) {
          product_.set(n, tap * in + c,
                       scaled(weight[(static_cast<std::int64_t>(n) * in + c) * taps + tap], scale.weight));
        }
      }
      product_.set_bias(n, scaled(bias[n], scale.bias));
    }
  }
  void set_clamp(Clamp clamp) { product_.set_clamp(clamp); }

  const Product& product() const { return product_; }
  int inputs() const { return channels_; }
  int outputs() const { return product_.outputs(); }
  int stride() const { return stride_; }
  int padding() const { return kernel_ / 2; }
  Map output(Map in) const {
    return {(in.height + stride_ - 1) / stride_, (in.width + stride_ - 1) / stride_, outputs()};
  }
  std::int64_t multiply_adds(Map in) const { return output(in).values() * product_.depth(); }
  std::int64_t bytes() const { return product_.bytes(); }

  // Values of a row of a strip for maps of this width.
  std::int64_t pitch(int width) const { return static_cast<std::int64_t>(width + 2 * padding()) * channels_; }
  // Rows of input that output rows [begin, end) need: some may lie outside of the map.
  Range reach(int begin, int end) const {
    return {begin * stride_ - padding(), (end - 1) * stride_ - padding() + kernel_};
  }

  // One output row, dense, of a strip that begins with the top row of its window. next: what is wanted after
  // it.
  void run_row(const Operand* strip, int width, Operand* out, int out_width, Next next = {}) const {
    run_row(strip, width, Into<Operand>{out, outputs()}, out_width, next);
  }
  template <class Out>
  void run_row(const Operand* strip, int width, const Into<Out>& out, int out_width, Next next = {}) const {
    const Rows rows{strip, static_cast<std::int64_t>(stride_) * channels_, kernel_ * channels_, pitch(width)};
    product_.run(rows, {0, out_width}, out, next);
  }

  // The windows of output rows [begin, end), [pixel][kernel][kernel * channels], zero outside the map. Takes
  // more memory than a strip, but makes one matrix of the whole map: for narrow maps, whose rows are too
  // short for whole tiles.
  void gather(const Stored* map, Map in, int begin, int end, Operand* patches) const {
    const int width = output(in).width;
    const std::int64_t run = std::int64_t{kernel_} * channels_;
    patches += std::int64_t{begin} * width * kernel_ * run;
    for (int row = begin; row < end; ++row) {
      for (int column = 0; column < width; ++column) {
        const int first = stride_ * column - padding();
        const int skip = first < 0 ? -first : 0;
        const int count = (first + kernel_ > in.width ? in.width - first : kernel_) - skip;
        const Range rows = reach(row, row + 1);
        for (int y = rows.begin; y < rows.end; ++y, patches += run) {
          if (y < 0 || y >= in.height) {
            std::memset(patches, 0, run * sizeof(Operand));
            continue;
          }
          Operand* const end_of_map = patches + std::int64_t{skip + count} * channels_;
          std::memset(patches, 0, skip * channels_ * sizeof(Operand));
          convert(map + (std::int64_t{y} * in.width + first + skip) * channels_,
                  std::int64_t{count} * channels_, patches + std::int64_t{skip} * channels_);
          std::memset(end_of_map, 0, (patches + run - end_of_map) * sizeof(Operand));
        }
      }
    }
  }

  // Copies these rows of the map to a strip; those outside of it are zero.
  void pad_rows(const Input& x, Map in, Range rows, Operand* strip) const {
    const std::int64_t pitch_ = pitch(in.width), margin = std::int64_t{padding()} * channels_;
    for (int y = rows.begin; y < rows.end; ++y, strip += pitch_) {
      if (y < 0 || y >= in.height) {
        std::memset(strip, 0, pitch_ * sizeof(Operand));
        continue;
      }
      std::memset(strip, 0, margin * sizeof(Operand));
      std::memset(strip + pitch_ - margin, 0, margin * sizeof(Operand));
      copy_row(x, x.data + y * x.row_stride, in.width, strip + margin);
    }
  }

 private:
  void copy_row(const Input& x, const Stored* row, int width, Operand* out) const {
    if (x.channel_stride == 1 && x.pixel_stride == channels_) {
      convert(row, static_cast<std::int64_t>(width) * channels_, out);
    } else if (channels_ == 3) {
      const Stored *red = row, *green = row + x.channel_stride, *blue = row + 2 * x.channel_stride;
      if (x.pixel_stride == 1) return interleave(red, green, blue, 1, width, out);
      interleave(red, green, blue, x.pixel_stride, width, out);
    } else {
      for (int i = 0; i < width; ++i) {
        for (int c = 0; c < channels_; ++c) {
          out[i * channels_ + c] = row[i * x.pixel_stride + c * x.channel_stride];
        }
      }
    }
  }

  // Inlined for neighbouring pixels, which compilers turn into shuffles of vectors.
  static EFFV2_INLINE void interleave(const Stored* red, const Stored* green, const Stored* blue,
                                      std::int64_t stride, int width, Operand* __restrict out) {
    for (int i = 0; i < width; ++i) {
      out[3 * i] = red[i * stride];
      out[3 * i + 1] = green[i * stride];
      out[3 * i + 2] = blue[i * stride];
    }
  }

  int kernel_ = 0, stride_ = 0, channels_ = 0;
  Product product_;
};

}  // namespace effv2::EFFV2_TARGET
