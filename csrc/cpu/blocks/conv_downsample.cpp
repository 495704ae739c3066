// ConvDownsample: y = conv(x), 3x3 with stride 2.
#include "cpu/tiles/conv3x3.h"
#include "cpu/tiles/pack.h"
#include "engine/spec.h"

namespace effv2::EFFV2_ISA {
namespace {

class ConvDownsample final : public Block {
 public:
  explicit ConvDownsample(const ConvDownsampleSpec& s)
      : in_(s.in_channels),
        out_(s.out_channels),
        conv_(pack_conv3x3(s.conv.weight, s.conv.bias, out_, in_)) {}

  bool output(Map in, Map* out, char*) const override {
    *out = {(in.height + 1) / 2, (in.width + 1) / 2, out_};
    return true;
  }
  std::int64_t multiply_adds(Map in) const override {
    return static_cast<std::int64_t>((in.height + 1) / 2) * ((in.width + 1) / 2) * out_ * in_ * 9;
  }
  std::int64_t packed_bytes() const override { return conv_.bytes(); }
  std::int64_t shared_floats(Map) const override { return 0; }
  std::int64_t own_floats(Map in) const override { return 3 * padded_pitch(in.width, in_); }

  void run(const MapView& x, float* y, Map in, const float*, const Scratch& scratch,
           const Team& team) const override {
    const int height = (in.height + 1) / 2, width = (in.width + 1) / 2;
    const Range rows = team.share(height);
    for (int row = rows.begin; row < rows.end; ++row) {
      pad_rows(x, in.height, in.width, in_, 2 * row - 1, 2 * row + 2, scratch.own);
      conv3x3_row(scratch.own, in.width, in_, conv_, y + static_cast<std::int64_t>(row) * width * out_,
                  width);
    }
  }

 private:
  int in_, out_;
  PackedMatrix conv_;
};

}  // namespace

Block* make_conv_downsample(const ConvDownsampleSpec& spec) { return new ConvDownsample(spec); }

}  // namespace effv2::EFFV2_ISA
