// Head: logits = weight . mean_{H, W}(x) + bias.
#include "cpu/tiles/product.h"
#include "cpu/tiles/scratch.h"
#include "cpu/tiles/typed_block.h"

namespace effv2::EFFV2_TARGET {
namespace {

class Head final : public TypedBlock {
 public:
  explicit Head(const HeadSpec& s)
      : channels_(s.in_channels),
        linear_(s.linear.weight, s.linear.bias, s.classes, s.in_channels, s.in_channels, {}, Tail::joined) {}

  bool output(Map, Map* out, char*) const override {
    *out = {1, 1, linear_.outputs()};
    return true;
  }
  std::int64_t multiply_adds(Map) const override {
    return static_cast<std::int64_t>(channels_) * linear_.outputs();
  }
  std::int64_t packed_bytes() const override { return linear_.bytes(); }
  std::int64_t own_bytes(Map) const override {
    return counted([&](Carver& c) { own(c); });
  }

 private:
  // The means of a group of images.
  Operand* own(Carver& c) const { return c.take<Operand>(kMostInGroup * pitch()); }
  std::int64_t pitch() const { return round_up(channels_, kPanel); }

  void run(const Input& x, Stored* y, Map in, const void*, const Scratch& scratch,
           const Team& team) const override {
    Carver carver(scratch.own);
    // Every thread needs the whole mean, and the map is small: each computes it.
    Operand* const means = own(carver);
    mean(x.data, in, means);
    linear_.share_row(team, means, Into<Stored>{y, 0});
  }

  // The weights are most of what a head reads.
  void run_group(const Group& group, Map in, const void*, const Scratch& scratch) const override {
    Carver carver(scratch.own);
    Operand* const means = own(carver);
    for (int i = 0; i < group.images; ++i) {
      mean(reinterpret_cast<const Stored*>(group.x + i * group.x_step), in, means + i * pitch());
    }
    const Into<Stored> logits{reinterpret_cast<Stored*>(group.y),
                              group.y_step / static_cast<std::int64_t>(sizeof(Stored))};
    linear_.run(plain_rows(means, pitch(), channels_), {0, group.images}, logits, {});
  }

  void mean(const Stored* x, Map in, Operand* out) const {
    constexpr int kVectors = 4;
    int c = 0;
    for (; c + kVectors * kLanes <= channels_; c += kVectors * kLanes) {
      mean_of<kVectors>(x + c, kLanes, in, out + c);
    }
    for (; c < channels_; c += kLanes) {
      mean_of<1>(x + c, channels_ - c < kLanes ? channels_ - c : kLanes, in, out + c);
    }
  }
  // Of neighbouring vectors of channels; count: channels of the last. Row sums first: their error grows with
  // the sides of the map, not with its area.
  template <int Vectors>
  void mean_of(const Stored* x, int count, Map in, Operand* out) const {
    const Wide scale = wide(1.0f / static_cast<float>(in.pixels()));
    Wide total[Vectors];
    for (Wide& t : total) t = wide(0.0f);
    for (int row = 0; row < in.height; ++row) {
      Wide sum[Vectors];
      for (Wide& s : sum) s = wide(0.0f);
      for (int column = 0; column < in.width; ++column, x += channels_) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          const Stored* const p = x + v * kLanes;
          sum[v] = add(sum[v], widened(count == kLanes ? load(p) : load_n(p, count)));
        }
      }
      for (int v = 0; v < Vectors; ++v) total[v] = add(total[v], sum[v]);
    }
    for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, narrowed(mul(total[v], scale)));
  }

  int channels_;
  Product linear_;
};

}  // namespace

Block* make_head(const HeadSpec& spec) { return new Head(spec); }

}  // namespace effv2::EFFV2_TARGET
