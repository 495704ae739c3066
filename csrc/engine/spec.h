// Blocks as they come from outside: weights in PyTorch's layouts, not packed. Fields and their meaning are
// those of effv2_kernels/blocks.py; all tensors are dense float32.
//
// visit() lists the fields of a block, once for all who need them: the builder reads them from named tensors
// and checks every shape, tests make random ones. A visitor offers
//
//   given(value, {layer, ...})            whether there are layers that may be left out, all or none of them
//   size(value, tensor, axis)             a size of the block: that of this axis of that tensor
//   kernel(value, tensor, axis, least)    likewise, of a window: 1, 3, 5 or 7, and at least that
//   choice(value, name, {first, ...})     an option, the first value unless given
//   activation(value, fallback)           the option of that name
//   heads(count, key_dim, value_dim)      the options of an attention
//   product(heads, each)                  channels of all heads together
//   layer(layer, name, outputs, {inner})  name_weight (outputs, inner ...) and name_bias (outputs,); without
//                                         a name, weight and bias
//   mixing(mix1_weight, mix2, heads)      talking heads
//   distances(bias, heads, query_stride)  an attention's bias by distance
#pragma once

namespace effv2 {

enum class Activation { none, gelu, relu, relu6, silu, hardswish };
inline constexpr const char* kActivationNames[] = {"none", "gelu", "relu", "relu6", "silu", "hardswish"};

// A layer with a bias for each output: 1x1, 3x3 or depthwise, as the block says.
struct Layer {
  const float *weight, *bias;
};

// bias[heads][rows][cols] by distance on the grid of keys it was made for; without a table there is none, and
// any grid fits.
struct AttentionBiasSpec {
  const float* table;
  int heads, rows, cols;
  int query_stride;
  int resize;
};

struct StemSpec {
  int in_channels, mid_channels, out_channels;
  Layer conv1, conv2;
  Activation activation;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "conv1_weight", 1);
    v.size(mid_channels, "conv1_weight", 0);
    v.size(out_channels, "conv2_weight", 0);
    v.layer(conv1, "conv1", mid_channels, {in_channels, 3, 3});
    v.layer(conv2, "conv2", out_channels, {mid_channels, 3, 3});
    v.activation(activation, Activation::gelu);
  }
};

// A bottleneck 1x1 - depthwise - 1x1.
struct FfnSpec {
  bool expands;
  int in_channels, hidden, out_channels, kernel, stride, residual;
  Layer fc1;  // only if it expands; else hidden is in_channels
  Layer dw, fc2;
  Activation activation;  // behind fc1 and behind dw

  template <class Visitor>
  void visit(Visitor& v) {
    expands = v.given(expands, {"fc1"});
    v.size(in_channels, expands ? "fc1_weight" : "dw_weight", expands ? 1 : 0);
    v.size(hidden, expands ? "fc1_weight" : "dw_weight", 0);
    v.kernel(kernel, "dw_weight", 1, 3);
    v.choice(stride, "stride", {1, 2});
    v.choice(residual, "residual", {1, 0});
    v.activation(activation, Activation::gelu);
    // What is added must have the size of what it is added to.
    if (residual) v.choice(stride, "stride", {1});
    if (residual) {
      out_channels = in_channels;
    } else {
      v.size(out_channels, "fc2_weight", 0);
    }
    if (expands) v.layer(fc1, "fc1", hidden, {in_channels});
    v.layer(dw, "dw", hidden, {kernel, kernel});
    v.layer(fc2, "fc2", out_channels, {hidden});
  }
};

struct AttentionSpec {
  int in_channels, heads, key_dim, value_dim, stride;
  Layer dw;  // only if stride == 2
  Layer qkv;
  bool has_local, has_mixing, has_bias;
  Layer local;               // may be left out
  const float* mix1_weight;  // talking heads, which may be left out
  Layer mix2;
  AttentionBiasSpec bias;  // may be left out
  Layer proj;
  Activation activation;  // in front of proj

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "qkv_weight", 1);
    v.heads(heads, key_dim, value_dim);
    v.choice(stride, "stride", {1, 2});
    v.activation(activation, Activation::gelu);
    const int keys = v.product(heads, key_dim), values = v.product(heads, value_dim);
    if (stride == 2) v.layer(dw, "dw", in_channels, {3, 3});
    v.layer(qkv, "qkv", 2 * keys + values, {in_channels});
    has_local = v.given(has_local, {"local"});
    if (has_local) v.layer(local, "local", values, {3, 3});
    has_mixing = v.given(has_mixing, {"mix1", "mix2"});
    if (has_mixing) v.mixing(mix1_weight, mix2, heads);
    has_bias = v.given(has_bias, {""});
    v.choice(bias.resize, "resize_bias", {0, 1});
    if (has_bias) v.distances(bias, heads, 1);
    v.layer(proj, "proj", in_channels, {values});
  }
};

struct ConvSpec {
  int in_channels, out_channels, kernel, stride;
  Layer conv;
  Activation activation;

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "weight", 1);
    v.size(out_channels, "weight", 0);
    v.kernel(kernel, "weight", 2, 1);
    v.choice(stride, "stride", {1, 2});
    v.activation(activation, Activation::none);
    v.layer(conv, "", out_channels, {in_channels, kernel, kernel});
  }
};

struct AttentionDownsampleSpec {
  int in_channels, out_channels, heads, key_dim, value_dim;
  Layer dw, q, kv, local;
  AttentionBiasSpec bias;
  Layer proj, conv;
  Activation activation;  // in front of proj

  template <class Visitor>
  void visit(Visitor& v) {
    v.size(in_channels, "conv_weight", 1);
    v.size(out_channels, "conv_weight", 0);
    v.heads(heads, key_dim, value_dim);
    v.activation(activation, Activation::gelu);
    const int keys = v.product(heads, key_dim), values = v.product(heads, value_dim);
    v.layer(dw, "dw", in_channels, {3, 3});
    v.layer(q, "q", keys, {in_channels});
    v.layer(kv, "kv", keys + values, {in_channels});
    v.layer(local, "local", values, {3, 3});
    v.choice(bias.resize, "resize_bias", {0, 1});
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
  X(conv, ConvSpec)                                \
  X(attention_downsample, AttentionDownsampleSpec) \
  X(head, HeadSpec)

}  // namespace effv2
