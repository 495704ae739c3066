// Blocks as they come from outside: weights in PyTorch's layouts, not packed. Fields and their meaning are
// those of effv2_kernels/blocks.py; all tensors are dense float32.
//
// visit() lists the fields of a block, once for all who need them: the builder reads them from named tensors
// and checks every shape, tests make random ones. A visitor offers
//
//   size(value, tensor, axis)             a size of the block: that of this axis of that tensor
//   choice(value, name, {first, ...})     an option, the first value unless given
//   heads(count, key_dim, value_dim)      the options of an attention
//   product(heads, each)                  channels of all heads together
//   layer(layer, name, outputs, {inner})  name_weight (outputs, inner ...) and name_bias (outputs,); without
//   a
//                                         name, weight and bias
//   tensor(values, name, {shape})
//   distances(bias, heads, query_stride)  an attention's bias by distance, and whether it is resized
#pragma once

namespace effv2 {

// A layer with a bias for each output: 1x1, 3x3 or depthwise, as the block says.
struct Layer {
  const float *weight, *bias;
};

// bias[heads][rows][cols] by distance on the grid of keys it was made for.
struct AttentionBiasSpec {
  const float* table;
  int heads, rows, cols;
  int query_stride;
  bool resize;
};

struct StemSpec {
  int in_channels, mid_channels, out_channels;
  Layer conv1, conv2;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "conv1_weight", 1);
    v.size(mid_channels, "conv1_weight", 0);
    v.size(out_channels, "conv2_weight", 0);
    v.layer(conv1, "conv1", mid_channels, {in_channels, 3, 3});
    v.layer(conv2, "conv2", out_channels, {mid_channels, 3, 3});
  }
};

struct FfnSpec {
  int in_channels, hidden;
  Layer fc1, dw, fc2;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "fc1_weight", 1);
    v.size(hidden, "fc1_weight", 0);
    v.layer(fc1, "fc1", hidden, {in_channels});
    v.layer(dw, "dw", hidden, {3, 3});
    v.layer(fc2, "fc2", in_channels, {hidden});
  }
};

struct AttentionSpec {
  int in_channels, heads, key_dim, value_dim, stride;
  Layer dw;  // only if stride == 2
  Layer qkv, local;
  const float* mix1_weight;
  Layer mix2;
  AttentionBiasSpec bias;
  Layer proj;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "qkv_weight", 1);
    v.heads(heads, key_dim, value_dim);
    v.choice(stride, "stride", {1, 2});
    const int keys = v.product(heads, key_dim), values = v.product(heads, value_dim);
    if (stride == 2) v.layer(dw, "dw", in_channels, {3, 3});
    v.layer(qkv, "qkv", 2 * keys + values, {in_channels});
    v.layer(local, "local", values, {3, 3});
    v.tensor(mix1_weight, "mix1_weight", {heads, heads});
    v.layer(mix2, "mix2", heads, {heads});
    v.distances(bias, heads, 1);
    v.layer(proj, "proj", in_channels, {values});
  }
};

struct ConvDownsampleSpec {
  int in_channels, out_channels;
  Layer conv;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "weight", 1);
    v.size(out_channels, "weight", 0);
    v.layer(conv, "", out_channels, {in_channels, 3, 3});
  }
};

struct AttentionDownsampleSpec {
  int in_channels, out_channels, heads, key_dim, value_dim;
  Layer dw, q, kv, local;
  AttentionBiasSpec bias;
  Layer proj, conv;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "conv_weight", 1);
    v.size(out_channels, "conv_weight", 0);
    v.heads(heads, key_dim, value_dim);
    const int keys = v.product(heads, key_dim), values = v.product(heads, value_dim);
    v.layer(dw, "dw", in_channels, {3, 3});
    v.layer(q, "q", keys, {in_channels});
    v.layer(kv, "kv", keys + values, {in_channels});
    v.layer(local, "local", values, {3, 3});
    v.distances(bias, heads, 2);
    v.layer(proj, "proj", out_channels, {values});
    v.layer(conv, "conv", out_channels, {in_channels, 3, 3});
  }
};

struct HeadSpec {
  int in_channels, classes;
  Layer linear;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "weight", 1);
    v.size(classes, "weight", 0);
    v.layer(linear, "", classes, {in_channels});
  }
};

// Every kind of block: X(kind, Spec).
#define EFFV2_BLOCKS(X)                            \
  X(stem, StemSpec)                                \
  X(ffn, FfnSpec)                                  \
  X(attention, AttentionSpec)                      \
  X(conv_downsample, ConvDownsampleSpec)           \
  X(attention_downsample, AttentionDownsampleSpec) \
  X(head, HeadSpec)

}  // namespace effv2
