// What both attentions are made of: projections into the layouts that the products read, and the
// products of a block of queries.
//
//   queries  [query][heads * key_dim, rounded up to whole panels]
//   keys     [head][panel of keys][key_dim][kPanel]: laid out like weights, padded keys zero
//   values   [panel of channels][key][kPanel]: laid out like weights; heads padded to whole panels
#pragma once

#include "cpu/tiles/activation.h"
#include "cpu/tiles/attention_bias.h"
#include "cpu/tiles/depthwise.h"
#include "cpu/tiles/product.h"
#include "cpu/tiles/softmax.h"

namespace effv2::EFFV2_TARGET {

// Queries that are computed together.
inline constexpr int kQueryBlock = kTileRows < 12 ? 12 : kTileRows;

struct Heads {
  int count;
  int key_dim;
  int value_dim;

  int key_channels() const { return count * key_dim; }
  int key_channel_panels() const { return panels_of(key_channels()); }
  int query_pitch() const { return key_channel_panels() * kPanel; }
  int value_channels() const { return count * value_dim; }
  int value_panels_each() const { return panels_of(value_dim); }
  int value_panels() const { return count * value_panels_each(); }
  // Position of a value channel when every head is padded to whole panels.
  int padded_value(int channel) const {
    return channel / value_dim * value_panels_each() * kPanel + channel % value_dim;
  }
  std::int64_t keys_values(int keys) const { return std::int64_t{key_channels()} * round_up(keys, kPanel); }
  std::int64_t value_map(std::int64_t pixels) const { return pixels * value_panels() * kPanel; }
};

// Rows [0, count) of a projection (outputs x depth), from output `to` on.
inline void place_rows(const Layer& layer, int count, int depth, double scale, int to, Product& packed) {
  for (int c = 0; c < count; ++c) {
    for (int k = 0; k < depth; ++k) {
      packed.set(to + c, k, scaled(layer.weight[std::int64_t{c} * depth + k], scale));
    }
    packed.set_bias(to + c, scaled(layer.bias[c], scale));
  }
}

// What is left of a layer behind its first rows.
inline Layer rows_from(const Layer& layer, int first, int depth) {
  return {layer.weight + std::int64_t{first} * depth, layer.bias + first};
}

// Rows of a projection laid out for values: heads padded to whole panels. What is computed from values goes
// through the activation in front of the projection behind, so they carry its scale.
inline void place_values(const Heads& heads, const Layer& layer, int depth, Activation activation, int to,
                         Product& packed) {
  for (int head = 0; head < heads.count; ++head) {
    const int first = head * heads.value_dim;
    place_rows(rows_from(layer, first, depth), heads.value_dim, depth, before(activation),
               to + heads.padded_value(first), packed);
  }
}

// The local convolution of the values, with the same padding.
inline Depthwise pack_local(const Heads& heads, const Layer& layer, int stride, Activation activation) {
  Depthwise packed(heads.value_panels() * kPanel, 3, stride);
  for (int c = 0; c < heads.value_channels(); ++c) {
    packed.set(heads.padded_value(c), layer.weight + c * 9, layer.bias[c], {1, before(activation)});
  }
  return packed;
}

// The projection behind the attention (outputs x value channels), its depth padded like the values.
inline Product pack_projection(const Heads& heads, const Layer& layer, int outputs, Activation activation) {
  const int depth = heads.value_channels();
  Product packed(outputs, heads.value_panels() * kPanel, Tail::joined);
  for (int n = 0; n < outputs; ++n) {
    for (int c = 0; c < depth; ++c) {
      packed.set(n, heads.padded_value(c),
                 scaled(layer.weight[std::int64_t{n} * depth + c], after(activation)));
    }
    packed.set_bias(n, layer.bias[n]);
  }
  return packed;
}

// Moves panel p of projected keys, [key][kPanel], to their layout.
inline void pack_keys(const Heads& heads, const Operand* panel, int keys, int p, Operand* packed) {
  const int key_panels = panels_of(keys), first = p * kPanel;
  const int channels = heads.key_channels() - first < kPanel ? heads.key_channels() - first : kPanel;
  for (int q = 0; q < key_panels; ++q, panel += kPanel * kPanel) {
    const int count = keys - q * kPanel < kPanel ? keys - q * kPanel : kPanel;
    int head = first / heads.key_dim, d = first % heads.key_dim;
    for (int c = 0; c < channels; ++c) {
      Operand* const to = packed + ((std::int64_t{head} * key_panels + q) * heads.key_dim + d) * kPanel;
      if (count == kPanel) {
#pragma GCC unroll 64
        for (int k = 0; k < kPanel; ++k) to[k] = panel[k * kPanel + c];
      } else {
        for (int k = 0; k < count; ++k) to[k] = panel[k * kPanel + c];
        for (int k = count; k < kPanel; ++k) to[k] = 0.0f;
      }
      if (++d == heads.key_dim) ++head, d = 0;
    }
  }
}

// The maps that a block of queries reads and writes.
struct Attended {
  const Operand* queries;  // of the block
  int query_count;
  const Operand* keys;
  const Operand* values;
  int key_count;
  Operand* u;    // of the first of the queries, in a map in panels of ...
  int u_pixels;  // ... so many pixels
  bool u_holds;  // what the result is added to
  int pitch() const { return round_up(key_count, kLanes); }
};

// out[query][pitch] = queries . keys of one head, plus an optional bias of the same shape.
inline void logits(const Heads& heads, int head, const Attended& a, Operand* out, const Operand* bias) {
  const int key_panels = panels_of(a.key_count), pitch = a.pitch();
  const Rows rows = plain_rows(a.queries + head * heads.key_dim, heads.query_pitch(), heads.key_dim);
  for (int p = 0; p < key_panels; ++p) {
    Result<Operand> r{out + p * kPanel, pitch};
    if (pitch - p * kPanel < kPanel) r.columns = pitch - p * kPanel;
    if (bias) {
      r.residual = bias + p * kPanel;
      r.residual_stride = pitch;
    }
    // Keys and values come from all threads; those of the next product are fetched during this one.
    const std::int64_t panel = std::int64_t{head} * key_panels + p, values = heads.key_dim * kPanel;
    const Panel<Operand> columns{a.keys + panel * values};
    const bool more = panel + 1 < std::int64_t{heads.count} * key_panels;
    gemm(rows, 0, a.query_count, columns, heads.key_dim, r,
         more ? ahead_of(columns.below(heads.key_dim), heads.key_dim) : Next{});
  }
}

// u (+)= probabilities . values of one head, then the activation.
inline void weigh_values(const Heads& heads, int head, const Attended& a, const Operand* probabilities,
                         Activation activation) {
  const Rows rows = plain_rows(probabilities, a.pitch(), a.key_count);
  const Clamp clamp = clamp_of(activation);
  for (int i = 0; i < heads.value_panels_each(); ++i) {
    const std::int64_t p = std::int64_t{head} * heads.value_panels_each() + i;
    Result<Operand> r{a.u + p * a.u_pixels * kPanel, kPanel};
    if (a.u_holds) {
      r.sum = r.out;
      r.sum_stride = kPanel;
    }
    const Panel<Operand> columns{a.values + p * a.key_count * kPanel};
    const bool more = p + 1 < heads.value_panels();
    if (more) {
      for (int q = 0; q < a.query_count; ++q) prefetch(r.out + (std::int64_t{a.u_pixels} + q) * kPanel);
    }
    if (clamp.any) r.clamp = &clamp;
    gemm(rows, 0, a.query_count, columns, a.key_count, r,
         more ? ahead_of(columns.below(a.key_count), a.key_count) : Next{});
    activate(activation, r.out, std::int64_t{a.query_count} * kPanel);
  }
}

// Attention whose heads do not mix; plane: [query][pitch].
inline void attend_heads(const Heads& heads, const Attended& a, const AttentionBias::Block& bias,
                         Operand* plane, Activation activation) {
  for (int h = 0; h < heads.count; ++h) {
    logits(heads, h, a, plane, bias.data + h * bias.head_stride);
    for (int i = 0; i < a.query_count; ++i) softmax_row(plane + std::int64_t{i} * a.pitch(), a.pitch());
    weigh_values(heads, h, a, plane, activation);
  }
}

// f(first query, end) for this thread's queries, some at a time.
template <class Function>
inline void for_query_blocks(const Team& team, int queries, Function f) {
  if (team.hands)
    return deal(team, queries, Parts{kQueryBlock, kTileRows},
                [&](Range part, bool) { f(part.begin, part.end); });
  const Range mine = team.share(queries);
  const int blocks = (mine.end - mine.begin + kQueryBlock - 1) / kQueryBlock;
  for (int b = 0; b < blocks; ++b) {
    const Range part = split(mine.end - mine.begin, b, blocks);
    f(mine.begin + part.begin, mine.begin + part.end);
  }
}

}  // namespace effv2::EFFV2_TARGET
