// Attention: talking-head attention, at half the resolution where the stride is 2.
//
//   z = dw(x) or x;  q, k, v = qkv(z);  P = softmax(mix1 . (q k^T) + bias);
//   u = (mix2 . P + mix2_bias) v + local(v);  u = enlarged 2x if strided;  y = x + proj(GELU(u))
//
// A block of a few queries sees all keys and all heads at once, so the softmax is exact in one pass and
// its memory grows with the number of keys, not with its square; at 7 x 7 it stays in the L1 cache.
#include <cstring>

#include "cpu/tiles/attend.h"
#include "cpu/tiles/resize.h"

namespace effv2::EFFV2_ISA {
namespace {

constexpr int kQueryBlock = kTileRows < 12 ? 12 : kTileRows;
// Pixels of the enlarged map per pass of proj.
constexpr int kEnlargedPixels = 56;

class Attention final : public Block {
 public:
  explicit Attention(const AttentionSpec& s)
      : channels_(s.in_channels),
        stride_(s.stride),
        heads_{s.heads, s.key_dim, s.value_dim},
        query_panels_(panels_of(heads_.key_channels())),
        qkv_((2 * query_panels_ + heads_.value_panels()) * kPanel, channels_, channels_),
        local_(pack_local(heads_, s.local.weight, s.local.bias)),
        mix1_(std::int64_t{s.heads} * s.heads),
        mix2_(std::int64_t{s.heads} * (s.heads + 1)),
        bias_(s.bias),
        proj_(pack_projection(heads_, s.proj.weight, s.proj.bias, channels_)) {
    if (stride_ == 2) dw_ = pack_depthwise(s.dw.weight, s.dw.bias, channels_);
    const int key_channels = heads_.key_channels();
    for (int c = 0; c < 2 * key_channels; ++c) {
      const int to = c < key_channels ? c : query_panels_ * kPanel + c - key_channels;
      for (int k = 0; k < channels_; ++k) qkv_.at(to, k) = s.qkv.weight[std::int64_t{c} * channels_ + k];
      qkv_.bias()[to] = s.qkv.bias[c];
    }
    place_values(heads_, s.qkv.weight + std::int64_t{2} * key_channels * channels_,
                 s.qkv.bias + 2 * key_channels, channels_, 2 * query_panels_, qkv_);
    for (int h = 0; h < s.heads; ++h) {
      for (int g = 0; g < s.heads; ++g) {
        mix1_.data()[h * s.heads + g] = kLog2E * s.mix1_weight[h * s.heads + g];
        mix2_.data()[h * (s.heads + 1) + g] = s.mix2.weight[h * s.heads + g];
      }
      mix2_.data()[h * (s.heads + 1) + s.heads] = s.mix2.bias[h];
    }
  }

  bool output(Map in, Map* out, char* error) const override {
    *out = in;
    return bias_.fits(tokens(in), error);
  }

  std::int64_t multiply_adds(Map in) const override {
    const std::int64_t n = tokens(in).cells(), keys = heads_.key_channels();
    const std::int64_t values = std::int64_t{heads_.count} * heads_.value_dim;
    const std::int64_t depthwise = (stride_ == 2 ? channels_ * 9 : 0) + values * 9;
    return n * (depthwise + (2 * keys + values) * channels_) +
           n * n * (keys + values + 2 * heads_.count * heads_.count) + in.pixels() * values * channels_;
  }

  std::int64_t packed_bytes() const override {
    return qkv_.bytes() + proj_.bytes() + bias_.bytes() +
           (dw_.floats() + local_.floats() + mix1_.floats() + mix2_.floats()) * 4;
  }

  std::int64_t prepared_floats(Map in) const override { return bias_.prepared_floats(tokens(in)); }
  void prepare(Map in, float* prepared) const override { bias_.prepare(tokens(in), prepared); }

  std::int64_t shared_floats(Map in) const override {
    const Layout at(*this, in);
    return at.end;
  }
  std::int64_t own_floats(Map in) const override {
    const Grid grid = tokens(in);
    const std::int64_t attend = plane_floats(grid) + mix_floats() + bias_.scratch_floats(grid, kQueryBlock);
    const std::int64_t key_panel = std::int64_t{grid.cells()} * kPanel;
    const std::int64_t enlarged = stride_ == 2 ? enlarged_rows(in) * in.width * value_floats(1) : 0;
    std::int64_t most = attend > key_panel ? attend : key_panel;
    return most > enlarged ? most : enlarged;
  }

  void run(const MapView& x, float* y, Map in, const float* prepared, const Scratch& scratch,
           const Team& team) const override {
    const Layout at(*this, in);
    const Grid grid = tokens(in);
    const float* z = x.data;
    if (stride_ == 2) {
      strided_depthwise(x.data, in, dw_, scratch.shared + at.z, team);
      team.sync();
      z = scratch.shared + at.z;
    }
    project_qkv(z, grid, at, scratch, team);
    team.sync();
    attend(grid, prepared, at, scratch, team);
    team.sync();
    const float* u = scratch.shared + at.u;
    if (stride_ == 2) {
      project_enlarged(u, grid, x.data, y, in, scratch.own, team);
    } else {
      const int pixels = grid.cells();
      share_panels(team, proj_.shares(), pixels, [&](PanelPart part) {
        project(panel_rows(u, pixels, part.first), part.row_begin, part.row_end, part.panel, x.data, y);
      });
    }
  }

 private:
  // Where the team's shared maps lie.
  struct Layout {
    Layout(const Attention& a, Map in) {
      const std::int64_t n = a.tokens(in).cells();
      z = 0;
      queries = z + (a.stride_ == 2 ? aligned_floats(n * a.channels_) : 0);
      keys = queries + aligned_floats(n * a.heads_.key_channels());
      values = keys + aligned_floats(a.heads_.keys_floats(static_cast<int>(n)));
      u = values + a.value_floats(n);
      end = u + a.value_floats(n);
    }
    std::int64_t z, queries, keys, values, u, end;
  };

  Grid tokens(Map in) const {
    return {(in.height + stride_ - 1) / stride_, (in.width + stride_ - 1) / stride_};
  }
  std::int64_t value_floats(std::int64_t pixels) const { return pixels * heads_.value_panels() * kPanel; }
  // One plane per head and one of ones, which mix2's bias is multiplied with.
  std::int64_t plane_floats(Grid grid) const {
    return std::int64_t{heads_.count + 1} * kQueryBlock * AttentionBias::padded_keys(grid);
  }
  std::int64_t mix_floats() const { return std::int64_t{heads_.count + 1} * kPanel; }
  static int enlarged_rows(Map in) {
    const int rows = kEnlargedPixels / in.width;
    return rows < 1 ? 1 : rows;
  }

  void project_qkv(const float* z, Grid grid, const Layout& at, const Scratch& scratch,
                   const Team& team) const {
    const int n = grid.cells();
    const Range mine = team.share(qkv_.panels());
    const Next to_proj = proj_.ahead(stride_ == 1 ? first_panel(team, proj_.shares(), n) : 0);
    for (int p = mine.begin; p < mine.end; ++p) {
      const Rows rows = plain_rows(z, channels_, channels_, p == mine.begin);
      const int first = p % query_panels_ * kPanel;
      const int columns = heads_.key_channels() - first < kPanel ? heads_.key_channels() - first : kPanel;
      Result r{scratch.own, kPanel, qkv_.panel_bias(p)};
      if (p < query_panels_) {
        r.out = scratch.shared + at.queries + first;
        r.out_stride = heads_.key_channels();
        r.columns = columns;
      } else if (p >= 2 * query_panels_) {
        r.out = scratch.shared + at.values + value_panel(p - 2 * query_panels_, n);
      }
      const bool more = p + 1 < mine.end;
      if (p >= 2 * query_panels_) prefetch_taps(depthwise_panel(local_, p - 2 * query_panels_));
      gemm(rows, 0, n, qkv_.panel(p), channels_, r, more ? qkv_.ahead(p + 1) : to_proj);
      if (p >= 2 * query_panels_) {
        const int value = p - 2 * query_panels_;
        depthwise_map<1>(r.out, grid.rows, grid.cols, kPanel, depthwise_panel(local_, value),
                         scratch.shared + at.u + value_panel(value, n), kPanel, kPanel);
      } else if (p >= query_panels_) {
        pack_keys(heads_, r.out, n, first, columns, scratch.shared + at.keys);
      }
    }
  }

  static std::int64_t value_panel(int p, int n) { return std::int64_t{p} * n * kPanel; }

  void attend(Grid grid, const float* prepared, const Layout& at, const Scratch& scratch,
              const Team& team) const {
    const int n = grid.cells(), pitch = AttentionBias::padded_keys(grid);
    const Range mine = team.share(n);
    const int blocks = (mine.end - mine.begin + kQueryBlock - 1) / kQueryBlock;
    for (int b = 0; b < blocks; ++b) {
      const Range part = split(mine.end - mine.begin, b, blocks);
      attend_block(mine.begin + part.begin, mine.begin + part.end, grid, n, pitch, prepared, at, scratch);
    }
  }

  void attend_block(int q0, int q1, Grid grid, int keys, int pitch, const float* prepared, const Layout& at,
                    const Scratch& scratch) const {
    const int n = q1 - q0;
    const std::int64_t plane = std::int64_t{n} * pitch;
    float* planes = scratch.own;
    float* mixing = planes + plane_floats(grid);
    const AttentionBias::Block bias = bias_.block(grid, q0, q1, prepared, mixing + mix_floats());

    const float* queries = scratch.shared + at.queries + std::int64_t{q0} * heads_.key_channels();
    for (int h = 0; h < heads_.count; ++h) {
      logits(heads_, h, queries, n, scratch.shared + at.keys, keys, planes + h * plane, nullptr);
    }
    mix(mix1_, heads_.count, planes, plane, mixing, bias.data, bias.head_stride);
    for (std::int64_t row = 0; row < std::int64_t{heads_.count} * n; ++row) {
      softmax_row(planes + row * pitch, pitch);
    }
    for (std::int64_t i = 0; i < plane; i += kLanes) store(planes + heads_.count * plane + i, set1(1.0f));
    mix(mix2_, heads_.count + 1, planes, plane, mixing, nullptr, 0);

    float* u = scratch.shared + at.u + std::int64_t{q0} * kPanel;
    for (int h = 0; h < heads_.count; ++h) {
      weigh_values(heads_, h, planes + h * plane, pitch, n, scratch.shared + at.values, keys, u, keys,
                   stride_ == 1);
    }
  }

  // planes[h] = sum_g weights[h, g] planes[g] (+ bias[h]), in place, so that they stay in the near cache; a
  // plane is n queries x padded keys. A tile reads all planes before it writes; what needs several tiles
  // reads a copy.
  void mix(const Buffer& weights, int inputs, float* planes, std::int64_t plane, float* copy,
           const float* bias, std::int64_t bias_stride) const {
    const Rows rows = plain_rows(weights.data(), inputs, inputs);
    for (std::int64_t column = 0; column < plane; column += kPanel) {
      Result r{planes + column, plane};
      if (plane - column < kPanel) r.columns = static_cast<int>(plane - column);
      if (bias) {
        r.residual = bias + column;
        r.residual_stride = bias_stride;
      }
      Panel in{planes + column, plane};
      if (heads_.count > kTileRows) {
        for (int g = 0; g < inputs; ++g) {
          std::memcpy(copy + g * kPanel, in.below(g).data, r.columns * sizeof(float));
        }
        in = {copy};
      }
      gemm(rows, 0, heads_.count, in, inputs, r);
    }
  }

  void project_enlarged(const float* u, Grid grid, const float* x, float* y, Map in, float* own,
                        const Team& team) const {
    const int n = grid.cells(), step = enlarged_rows(in);
    const Range mine = team.share(in.height);
    for (int top = mine.begin; top < mine.end; top += step) {
      const int bottom = mine.end - top < step ? mine.end : top + step;
      const int pixels = (bottom - top) * in.width;
      for (int p = 0; p < heads_.value_panels(); ++p) {
        const float* map = u + value_panel(p, n);
        for (int row = top; row < bottom; ++row) {
          const Blend blend = blend_at(row, grid.rows);
          enlarge_row(map + std::int64_t{blend.a} * grid.cols * kPanel,
                      map + std::int64_t{blend.b} * grid.cols * kPanel, blend.t, grid.cols,
                      own + (std::int64_t{p} * pixels + (row - top) * in.width) * kPanel, in.width);
        }
        gelu(own + std::int64_t{p} * pixels * kPanel, std::int64_t{pixels} * kPanel);
      }
      const std::int64_t offset = std::int64_t{top} * in.width * channels_;
      for (int p = 0; p < proj_.panels(); ++p) {
        project(panel_rows(own, pixels), 0, pixels, p, x + offset, y + offset);
      }
    }
  }

  // y = x + proj(u) for rows [begin, end) and output panel p.
  void project(const Rows& u, int begin, int end, int p, const float* x, float* y) const {
    const std::int64_t column = std::int64_t{p} * kPanel;
    Result r{y + column, channels_, proj_.panel_bias(p), x + column, channels_, proj_.columns(p)};
    gemm(u, begin, end, proj_.panel(p), proj_.depth(), r, proj_.ahead(p + 1));
  }

  int channels_, stride_;
  Heads heads_;
  int query_panels_;
  PackedMatrix qkv_;
  Buffer dw_, local_, mix1_, mix2_;
  AttentionBias bias_;
  PackedMatrix proj_;
};

}  // namespace

Block* make_attention(const AttentionSpec& spec) { return new Attention(spec); }

}  // namespace effv2::EFFV2_ISA
