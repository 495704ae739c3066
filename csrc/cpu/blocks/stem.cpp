// Stem: y = GELU(conv2(GELU(conv1(x)))), both 3x3 with stride 2.
//
// A few output rows at a time: the rows of the first convolution that they need stay in the cache.
#include <cstring>

#include "cpu/tiles/conv3x3.h"
#include "cpu/tiles/gelu.h"
#include "cpu/tiles/pack.h"
#include "engine/spec.h"

namespace effv2::EFFV2_ISA {
namespace {

constexpr int kGroup = 4;  // output rows per pass

int halved(int n) { return (n + 1) / 2; }

class Stem final : public Block {
 public:
  explicit Stem(const StemSpec& s)
      : in_(s.in_channels),
        mid_(s.mid_channels),
        out_(s.out_channels),
        conv1_(pack_conv3x3(s.conv1.weight, s.conv1.bias, mid_, in_, {kBeforeGelu, kBeforeGelu})),
        conv2_(pack_conv3x3(s.conv2.weight, s.conv2.bias, out_, mid_, {kBetweenGelus, kBeforeGelu})) {}

  bool output(Map in, Map* out, char*) const override {
    *out = {halved(halved(in.height)), halved(halved(in.width)), out_};
    return true;
  }

  bool takes_strides() const override { return true; }

  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t mid_pixels = static_cast<std::int64_t>(halved(in.height)) * halved(in.width);
    const std::int64_t out_pixels =
        static_cast<std::int64_t>(halved(halved(in.height))) * halved(halved(in.width));
    return mid_pixels * mid_ * in_ * 9 + out_pixels * out_ * mid_ * 9;
  }

  std::int64_t packed_bytes() const override { return conv1_.bytes() + conv2_.bytes(); }
  std::int64_t shared_floats(Map) const override { return 0; }
  std::int64_t own_floats(Map in) const override { return strip_floats(in) + mid_floats(in); }

  void run(const MapView& x, float* y, Map in, const float*, const Scratch& scratch,
           const Team& team) const override {
    const int mid_height = halved(in.height), mid_width = halved(in.width);
    const int height = halved(mid_height), width = halved(mid_width);
    const std::int64_t mid_pitch = padded_pitch(mid_width, mid_);
    float* strip = scratch.own;
    float* mid = strip + strip_floats(in);

    const Range rows = team.share(height);
    for (int row = rows.begin; row < rows.end; row += kGroup) {
      const int group = rows.end - row < kGroup ? rows.end - row : kGroup;
      // mid holds rows 2 * row - 1 ... 2 * (row + group) - 1; the first is the last of the group before.
      const int first = 2 * row - 1, last = 2 * (row + group) - 1;
      const bool carried = row > rows.begin;
      if (carried) std::memcpy(mid, mid + 2 * kGroup * mid_pitch, mid_pitch * sizeof(float));
      mid_rows(x, in, carried ? first + 1 : first, last + 1, strip, mid + (carried ? mid_pitch : 0));
      for (int i = 0; i < group; ++i) {
        conv3x3_row(mid + 2 * i * mid_pitch, mid_width, mid_, conv2_,
                    y + static_cast<std::int64_t>(row + i) * width * out_, width);
        gelu<true>(y + static_cast<std::int64_t>(row + i) * width * out_,
                   static_cast<std::int64_t>(width) * out_);
      }
    }
  }

 private:
  // Rows [begin, end) of the first convolution, padded by a zero pixel at both ends; rows outside the
  // map are zero.
  void mid_rows(const MapView& x, Map in, int begin, int end, float* strip, float* out) const {
    const int height = halved(in.height), width = halved(in.width);
    const std::int64_t in_pitch = padded_pitch(in.width, in_), pitch = padded_pitch(width, mid_);
    const int inside_begin = begin < 0 ? 0 : begin, inside_end = end > height ? height : end;
    pad_rows(x, in.height, in.width, in_, 2 * inside_begin - 1, 2 * inside_end, strip);
    for (int r = begin; r < end; ++r, out += pitch) {
      if (r < 0 || r >= height) {
        std::memset(out, 0, pitch * sizeof(float));
        continue;
      }
      std::memset(out, 0, mid_ * sizeof(float));
      std::memset(out + pitch - mid_, 0, mid_ * sizeof(float));
      conv3x3_row(strip + 2 * (r - inside_begin) * in_pitch, in.width, in_, conv1_, out + mid_, width);
      gelu(out + mid_, static_cast<std::int64_t>(width) * mid_);
    }
  }

  std::int64_t strip_floats(Map in) const {
    return aligned_floats((4 * kGroup + 3) * padded_pitch(in.width, in_));
  }
  std::int64_t mid_floats(Map in) const {
    return aligned_floats((2 * kGroup + 1) * padded_pitch(halved(in.width), mid_));
  }

  int in_, mid_, out_;
  PackedMatrix conv1_, conv2_;
};

}  // namespace

Block* make_stem(const StemSpec& spec) { return new Stem(spec); }

}  // namespace effv2::EFFV2_ISA
