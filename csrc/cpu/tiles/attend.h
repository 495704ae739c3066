// What both attentions are made of: projections into the layouts that the products read, and the
// products of a block of queries.
//
//   queries  [query][heads * key_dim]
//   keys     [head][panel of keys][key_dim][kPanel]: packed like weights, padded keys zero
//   values   [panel of channels][key][kPanel]: packed like weights; heads padded to whole panels
#pragma once

#include "cpu/tiles/attention_bias.h"
#include "cpu/tiles/gelu.h"
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/pack.h"
#include "cpu/tiles/softmax.h"

namespace effv2::EFFV2_ISA {

struct Heads {
  int count;
  int key_dim;
  int value_dim;

  int key_channels() const { return count * key_dim; }
  int value_panels_each() const { return panels_of(value_dim); }
  int value_panels() const { return count * value_panels_each(); }
  // Position of a value channel when every head is padded to whole panels.
  int padded_value(int channel) const {
    return channel / value_dim * value_panels_each() * kPanel + channel % value_dim;
  }
  std::int64_t keys_floats(int keys) const { return std::int64_t{key_channels()} * round_up(keys, kPanel); }
};

// Rows of a projection (outputs x depth) laid out for values: heads padded to whole panels. What is
// computed from values goes through a GELU, so they carry its scale.
inline void place_values(const Heads& heads, const float* weight, const float* bias, int depth,
                         int first_panel, const PackedMatrix& packed) {
  for (int c = 0; c < heads.count * heads.value_dim; ++c) {
    const int to = first_panel * kPanel + heads.padded_value(c);
    for (int k = 0; k < depth; ++k)
      packed.at(to, k) = scaled(weight[std::int64_t{c} * depth + k], kBeforeGelu);
    packed.bias()[to] = scaled(bias[c], kBeforeGelu);
  }
}

// The local convolution of the values, with the same padding.
inline Buffer pack_local(const Heads& heads, const float* weight, const float* bias) {
  Buffer packed(std::int64_t{heads.value_panels()} * kDepthwiseTaps * kPanel);
  for (int c = 0; c < heads.count * heads.value_dim; ++c) {
    const int to = heads.padded_value(c);
    float* panel = packed.data() + std::int64_t{to / kPanel} * kDepthwiseTaps * kPanel + to % kPanel;
    for (int tap = 0; tap < 9; ++tap) panel[tap * kPanel] = weight[c * 9 + tap];
    panel[9 * kPanel] = scaled(bias[c], kBeforeGelu);
  }
  return packed;
}

// The projection behind the attention (outputs x value channels), its depth padded like the values.
inline PackedMatrix pack_projection(const Heads& heads, const float* weight, const float* bias, int outputs) {
  const int depth = heads.count * heads.value_dim;
  PackedMatrix packed(nullptr, bias, outputs, 0, heads.value_panels() * kPanel, {}, Tail::joined);
  for (int n = 0; n < outputs; ++n) {
    for (int c = 0; c < depth; ++c) {
      packed.at(n, heads.padded_value(c)) = scaled(weight[std::int64_t{n} * depth + c], kAfterGelu);
    }
  }
  return packed;
}

// Moves one panel of projected keys, [key][kPanel], to the packed layout; channels counts from the
// first key channel of the first head.
inline void pack_keys(const Heads& heads, const float* panel, int keys, int first_channel, int channels,
                      float* packed) {
  const int key_panels = panels_of(keys);
  for (int c = 0; c < channels; ++c) {
    const int head = (first_channel + c) / heads.key_dim, d = (first_channel + c) % heads.key_dim;
    float* to = packed + (std::int64_t{head} * key_panels * heads.key_dim + d) * kPanel;
    const std::int64_t step = std::int64_t{heads.key_dim} * kPanel;
    for (int begin = 0; begin < keys; begin += kPanel, to += step) {
      const int count = keys - begin < kPanel ? keys - begin : kPanel;
      const float* from = panel + std::int64_t{begin} * kPanel + c;
      for (int k = 0; k < count; ++k) to[k] = from[k * kPanel];
      for (int k = count; k < kPanel; ++k) to[k] = 0.0f;
    }
  }
}

// out[n][keys rounded up to kLanes] = queries . keys of one head, plus an optional bias of the same shape.
inline void logits(const Heads& heads, int head, const float* queries, int n, const float* packed_keys,
                   int keys, float* out, const float* bias) {
  const int key_panels = panels_of(keys);
  const int pitch = round_up(keys, kLanes);
  const Rows rows = plain_rows(queries + head * heads.key_dim, heads.key_channels(), heads.key_dim);
  for (int p = 0; p < key_panels; ++p) {
    Result r{out + p * kPanel, pitch};
    if (pitch - p * kPanel < kPanel) r.columns = pitch - p * kPanel;
    if (bias) {
      r.residual = bias + p * kPanel;
      r.residual_stride = pitch;
    }
    // Keys and values come from all threads; those of the next product are fetched during this one.
    const std::int64_t panel = std::int64_t{head} * key_panels + p, floats = heads.key_dim * kPanel;
    const float* const panel_keys = packed_keys + panel * floats;
    const bool more = panel + 1 < std::int64_t{heads.count} * key_panels;
    const Next next = more ? ahead_of({panel_keys + floats}, heads.key_dim) : Next{};
    gemm(rows, 0, n, {panel_keys}, heads.key_dim, r, next);
  }
}

// out += probabilities . values of one head for n queries, then GELU if asked for. out points at the
// first of the queries in a map in panels of `queries` pixels.
inline void weigh_values(const Heads& heads, int head, const float* probabilities, std::int64_t pitch, int n,
                         const float* values, int keys, float* out, int queries, bool activate) {
  const Rows rows = plain_rows(probabilities, pitch, keys);
  for (int i = 0; i < heads.value_panels_each(); ++i) {
    const std::int64_t p = std::int64_t{head} * heads.value_panels_each() + i;
    Result r{out + p * queries * kPanel, kPanel};
    r.accumulate = true;
    const float* const panel_values = values + p * keys * kPanel;
    const bool more = p + 1 < heads.value_panels();
    if (more) {
      for (int q = 0; q < n; ++q) prefetch(r.out + (std::int64_t{queries} + q) * kPanel);
    }
    const std::int64_t floats = std::int64_t{keys} * kPanel;
    gemm(rows, 0, n, {panel_values}, keys, r, more ? ahead_of({panel_values + floats}, keys) : Next{});
    if (activate) gelu(r.out, std::int64_t{n} * kPanel);
  }
}

// A strided depthwise convolution of a dense map, shared out by rows: who wrote the rows of the map has
// most of them at hand.
inline void strided_depthwise(const float* x, Map in, const Buffer& packed, float* out, const Team& team) {
  const int width = (in.width + 1) / 2;
  const Range mine = team.share((in.height + 1) / 2);
  for (int p = 0; p < panels_of(in.channels); ++p) {
    const int first = p * kPanel, channels = in.channels - first < kPanel ? in.channels - first : kPanel;
    for (int row = mine.begin; row < mine.end; ++row) {
      const float* rows[3];
      for (int i = 0; i < 3; ++i) {
        const int y = 2 * row + i - 1;
        rows[i] = y >= 0 && y < in.height ? x + first + std::int64_t{y} * in.width * in.channels : nullptr;
      }
      depthwise<2>({rows, in.channels, in.width}, depthwise_panel(packed, p),
                   out + std::int64_t{row} * width * in.channels + first, in.channels, width, 1, channels);
    }
  }
}

}  // namespace effv2::EFFV2_ISA
