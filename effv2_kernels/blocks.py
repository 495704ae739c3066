"""The one description of a network: frozen blocks with folded weights.

Sources make blocks (``effv2_kernels.sources``), backends run them. A block says what is computed,
never how. All tensors are float32, contiguous, on the CPU, in PyTorch's own layouts; BatchNorm,
layer scale and every constant factor are already folded in (in float64), so each block is exactly
the equation in its docstring. Feature maps are written (N, C, H, W); ``conv`` has padding
``kernel // 2`` everywhere; ``GELU`` is the exact x * Phi(x).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """What all blocks share. ``kind`` is the block's stem: the name of its files in every folder."""

    kind: ClassVar[str]

    def tensors(self) -> dict[str, Tensor]:
        """The folded weights by field name, in the order of declaration; absent ones are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def options(self) -> dict[str, int]:
        """The integers and booleans that describe the block, by field name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: int(value) for name, value in values.items() if isinstance(value, (bool, int))}


@dataclass(frozen=True, eq=False)
class Stem(Block):
    """y = GELU(conv2(GELU(conv1(x)))), both 3x3 with stride 2."""

    kind: ClassVar[str] = "stem"
    conv1_weight: Tensor  # (mid, in, 3, 3)
    conv1_bias: Tensor  # (mid,)
    conv2_weight: Tensor  # (out, mid, 3, 3)
    conv2_bias: Tensor  # (out,)


@dataclass(frozen=True, eq=False)
class FFN(Block):
    """y = x + fc2(GELU(dw(GELU(fc1(x))))); dw is 3x3 depthwise, layer scale is folded into fc2."""

    kind: ClassVar[str] = "ffn"
    fc1_weight: Tensor  # (hidden, channels)
    fc1_bias: Tensor  # (hidden,)
    dw_weight: Tensor  # (hidden, 3, 3)
    dw_bias: Tensor  # (hidden,)
    fc2_weight: Tensor  # (channels, hidden)
    fc2_bias: Tensor  # (channels,)


@dataclass(frozen=True, eq=False)
class Attention(Block):
    """Talking-head attention over all positions, at half the resolution where ``stride`` is 2.

    z = dw(x) with stride 2, or x;  q, k, v = rows of qkv(z), split in this order, heads outermost;
    P = softmax_keys(mix1 . (q k^T) + bias[|row_i - row_j|, |col_i - col_j|]);
    u = (mix2 . P + mix2_bias) v + local(v);  u = bilinear 2x (align_corners=False) if strided;
    y = x + proj(GELU(u)).

    Folded: the scale 1/sqrt(key_dim) into q; talking head 1 and its bias into ``bias``; layer scale
    into proj. ``mix*`` act on the head axis: (mix . A)[h] = sum_g mix[h, g] A[g].
    The 2x map is cropped to the size of x, so that odd sizes work as well.
    """

    kind: ClassVar[str] = "attention"
    qkv_weight: Tensor  # (2 * heads * key_dim + heads * value_dim, channels)
    qkv_bias: Tensor
    local_weight: Tensor  # (heads * value_dim, 3, 3)
    local_bias: Tensor
    mix1_weight: Tensor  # (heads, heads)
    bias: Tensor  # (heads, rows, cols): by distance on the grid of tokens the table was made for
    mix2_weight: Tensor  # (heads, heads)
    mix2_bias: Tensor  # (heads,)
    proj_weight: Tensor  # (channels, heads * value_dim)
    proj_bias: Tensor
    heads: int
    key_dim: int
    value_dim: int  # of one head
    stride: int = 1  # 1 or 2
    # False: the grid of tokens must be bias.shape[1:].  True: the gathered (tokens x tokens) bias of
    # that grid is resized bicubically (align_corners=False) to the grid at hand, as the official
    # detection and segmentation backbones do.
    resize_bias: bool = False
    dw_weight: Tensor | None = None  # (channels, 3, 3), only if stride == 2
    dw_bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ConvDownsample(Block):
    """y = conv(x), 3x3 with stride 2."""

    kind: ClassVar[str] = "conv_downsample"
    weight: Tensor  # (out, in, 3, 3)
    bias: Tensor  # (out,)


@dataclass(frozen=True, eq=False)
class AttentionDownsample(Block):
    """Attention from every second row and column to all positions, beside a strided convolution.

    q = q_proj(dw(x)), dw with stride 2 (the 1x1 stride-2 pooling is folded into its centre tap);
    k, v = rows of kv(x), split in this order, heads outermost;
    P = softmax_keys(q k^T + bias[|2 row_i - row_j|, |2 col_i - col_j|]);
    y = proj(GELU(P v + local(v))) + conv(x);  local is 3x3 depthwise and conv 3x3, both with stride 2.
    """

    kind: ClassVar[str] = "attention_downsample"
    dw_weight: Tensor  # (channels, 3, 3)
    dw_bias: Tensor
    q_weight: Tensor  # (heads * key_dim, channels), scaled by 1/sqrt(key_dim)
    q_bias: Tensor
    kv_weight: Tensor  # (heads * key_dim + heads * value_dim, channels)
    kv_bias: Tensor
    local_weight: Tensor  # (heads * value_dim, 3, 3)
    local_bias: Tensor
    bias: Tensor  # (heads, rows, cols): by distance on the grid of keys the table was made for
    proj_weight: Tensor  # (out, heads * value_dim)
    proj_bias: Tensor
    conv_weight: Tensor  # (out, channels, 3, 3)
    conv_bias: Tensor
    heads: int
    key_dim: int
    value_dim: int
    resize_bias: bool = False  # as in Attention; query grid of the table: ceil(rows / 2), ceil(cols / 2)


@dataclass(frozen=True, eq=False)
class Head(Block):
    """logits = weight . mean_{H, W}(x) + bias; BatchNorm and the mean of two classifiers are folded in."""

    kind: ClassVar[str] = "head"
    weight: Tensor  # (classes, channels)
    bias: Tensor  # (classes,)


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature map handed to the caller: the output of one block, scaled and shifted per channel.

    ``scale`` and ``shift`` are (channels,) or both None: the BatchNorm that the official backbones
    put on each output, folded.
    """

    block: int  # index into Network.blocks
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """A whole model: blocks in order of execution, and what is returned.

    The output is the logits of the last block if that is a Head, else the list of ``features``.
    """

    blocks: tuple[Block, ...]
    names: tuple[str, ...]  # dotted path of the source module of each block, e.g. "stages.2.blocks.4.mlp"
    features: tuple[Feature, ...] = ()
    source: str = ""  # which adapter read it: "timm", "official", "reference"
    # Scale and shift (channels,) of the norm in front of the classifier, which the Head has folded in: for
    # who asks for the map between the two. Not part of what is computed, described or stored.
    norm: tuple[Tensor, Tensor] | None = None
