// Blocks as they come from outside: weights in PyTorch's layouts, not packed. The fields and their
// meaning are those of effv2_kernels/blocks.py; all tensors are dense float32.
#pragma once

namespace effv2 {

struct StemSpec {
  int in_channels, mid_channels, out_channels;
  const float *conv1_weight, *conv1_bias, *conv2_weight, *conv2_bias;
};

struct FfnSpec {
  int channels, hidden;
  const float *fc1_weight, *fc1_bias, *dw_weight, *dw_bias, *fc2_weight, *fc2_bias;
};

// bias[heads][rows][cols] by distance on the grid of keys it was made for.
struct AttentionBiasSpec {
  const float* table;
  int heads, rows, cols;
  int query_stride;
  bool resize;
};

struct AttentionSpec {
  int channels, heads, key_dim, value_dim, stride;
  const float *dw_weight, *dw_bias;  // null unless stride == 2
  const float *qkv_weight, *qkv_bias, *local_weight, *local_bias;
  const float *mix1_weight, *mix2_weight, *mix2_bias;
  AttentionBiasSpec bias;
  const float *proj_weight, *proj_bias;
};

struct ConvDownsampleSpec {
  int in_channels, out_channels;
  const float *weight, *bias;
};

struct AttentionDownsampleSpec {
  int in_channels, out_channels, heads, key_dim, value_dim;
  const float *dw_weight, *dw_bias, *q_weight, *q_bias, *kv_weight, *kv_bias;
  const float *local_weight, *local_bias;
  AttentionBiasSpec bias;
  const float *proj_weight, *proj_bias, *conv_weight, *conv_bias;
};

struct HeadSpec {
  int channels, classes;
  const float *weight, *bias;
};

}  // namespace effv2
