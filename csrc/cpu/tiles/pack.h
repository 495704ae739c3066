// Weights from PyTorch's layouts into panels.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/depthwise.h"
#include "cpu/tiles/gemm.h"
#include "engine/block.h"
#include "engine/team.h"

namespace effv2::EFFV2_ISA {

// What weights and biases are multiplied by as they are packed: see gelu.h.
struct Scale {
  double weight = 1;
  double bias = 1;
};

inline float scaled(float value, double scale) { return static_cast<float>(value * scale); }

// Whether a last panel of one vector is joined with the one before it. A product of three vectors runs at the
// speed of one of two; one of a single vector loads more than it multiplies. Maps in panels cannot have it.
enum class Tail { separate, joined };

// A matrix (outputs x depth) packed as [panel][depth_padded][kPanel], the last panel perhaps wider, and its
// bias padded to whole vectors. Padding is zero, so padded columns and rows add nothing.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(int outputs, int depth, int depth_padded, Tail tail = Tail::separate)
      : outputs_(outputs),
        depth_(depth),
        depth_padded_(depth_padded),
        panels_(panels_of(outputs)),
        last_width_(kPanel),
        bias_(static_cast<std::int64_t>(panels_) * kPanel) {
    if (tail == Tail::joined && panels_ > 1 && columns(panels_ - 1) <= kLanes) {
      --panels_;
      last_width_ = kWidePanel;
    }
    weights_ = Buffer((static_cast<std::int64_t>(panels_ - 1) * kPanel + last_width_) * depth_padded);
  }
  PackedMatrix(const float* weight, const float* bias, int outputs, int depth, int depth_padded = 0,
               Scale scale = {}, Tail tail = Tail::separate)
      : PackedMatrix(outputs, depth, depth_padded ? depth_padded : depth, tail) {
    for (int n = 0; n < outputs; ++n) {
      for (int k = 0; k < depth; ++k) {
        at(n, k) = scaled(weight[static_cast<std::int64_t>(n) * depth + k], scale.weight);
      }
      if (bias) bias_.data()[n] = scaled(bias[n], scale.bias);
    }
  }

  float& at(int output, int k) const {
    const int p = output / kPanel < panels_ ? output / kPanel : panels_ - 1;
    return weights_.data()[offset(p) + static_cast<std::int64_t>(k) * width(p) + output - p * kPanel];
  }
  Panel panel(int p) const { return {weights_.data() + offset(p), width(p)}; }
  // The start of a panel, or of part of its depth, for gemm() to fetch ahead; nothing behind the last.
  Next ahead(int p, int first = 0, int depth = kDepthBlock) const {
    if (p >= panels_) return {};
    return ahead_of(panel(p).below(first), depth < depth_padded_ - first ? depth : depth_padded_ - first);
  }
  float* bias() const { return bias_.data(); }
  const float* panel_bias(int p) const { return bias_.data() + p * kPanel; }
  int outputs() const { return outputs_; }
  int panels() const { return panels_; }
  int depth() const { return depth_padded_; }
  // Columns of panel p that exist.
  int columns(int p) const { return p + 1 < panels_ ? kPanel : outputs_ - p * kPanel; }
  // For threads to share the panels.
  PanelShares shares() const { return {panels_, kTileVectors, (columns(panels_ - 1) + kLanes - 1) / kLanes}; }
  std::int64_t bytes() const { return (weights_.floats() + bias_.floats()) * 4; }

 private:
  int width(int p) const { return p + 1 < panels_ ? kPanel : last_width_; }
  std::int64_t offset(int p) const { return static_cast<std::int64_t>(p) * depth_padded_ * kPanel; }

  int outputs_ = 0;
  int depth_ = 0;
  int depth_padded_ = 0;
  int panels_ = 0;
  int last_width_ = 0;
  Buffer weights_;
  Buffer bias_;
};

// A 3x3 convolution (out, in, 3, 3) as a matrix whose depth runs over taps, then input channels.
inline PackedMatrix pack_conv3x3(const float* weight, const float* bias, int out, int in, Scale scale = {}) {
  PackedMatrix packed(nullptr, bias, out, 0, 9 * in, scale, Tail::joined);
  for (int n = 0; n < out; ++n) {
    for (int c = 0; c < in; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        packed.at(n, tap * in + c) =
            scaled(weight[(static_cast<std::int64_t>(n) * in + c) * 9 + tap], scale.weight);
      }
    }
  }
  return packed;
}

// Depthwise weights (channels, 3, 3) as [panel][kDepthwiseTaps][kPanel].
inline Buffer pack_depthwise(const float* weight, const float* bias, int channels, Scale scale = {}) {
  Buffer packed(static_cast<std::int64_t>(panels_of(channels)) * kDepthwiseTaps * kPanel);
  for (int c = 0; c < channels; ++c) {
    float* panel = packed.data() + static_cast<std::int64_t>(c / kPanel) * kDepthwiseTaps * kPanel;
    for (int tap = 0; tap < 9; ++tap) {
      panel[tap * kPanel + c % kPanel] = scaled(weight[c * 9 + tap], scale.weight);
    }
    panel[9 * kPanel + c % kPanel] = scaled(bias[c], scale.bias);
  }
  return packed;
}

inline const float* depthwise_panel(const Buffer& packed, int p) {
  return packed.data() + static_cast<std::int64_t>(p) * kDepthwiseTaps * kPanel;
}

}  // namespace effv2::EFFV2_ISA
