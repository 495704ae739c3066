"""From the parts of a block to the folded block: all arithmetic in float64, the result in float32.

What is folded where is said in ``effv2_kernels.blocks``. Convolutions come in with their BatchNorm folded
already (``node.normalised``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.declaration import Layer
from effv2_kernels.errors import ModelError
from effv2_kernels.reference.attention_bias import distance_index
from effv2_kernels.sources.node import Affine, Node, Normalisation, all_finite


def single(name: str, value: Tensor) -> Tensor:
    """float64 -> float32, contiguous, with memory of its own; a value that overflows raises ModelError."""
    result = value.detach().to(torch.float32).contiguous()
    if not all_finite(result):
        raise ModelError(
            f"'{name}': its weights, folded with BatchNorm and scales, are not finite in float32; "
            f"check the running variance and the scales."
        )
    return result


def _conv(name: str, affine: Affine) -> Layer:
    return Layer(single(name, affine.folded()), single(name, affine.bias))


def _pointwise(name: str, *affines: Affine) -> Layer:
    """1x1 convolutions of one input, their outputs one behind the other: (out, in, 1, 1) -> (out, in)."""
    weights = [single(name, affine.folded().flatten(1)) for affine in affines]
    bias = torch.cat([affine.bias for affine in affines])
    return Layer(weights[0] if len(weights) == 1 else torch.cat(weights), single(name, bias))


def _depthwise(name: str, affine: Affine) -> Layer:
    """(channels, 1, k, k) -> (channels, k, k)."""
    return Layer(single(name, affine.folded()[:, 0]), single(name, affine.bias))


def stem(name: str, conv1: Affine, conv2: Affine) -> blocks.Stem:
    """Both convolutions with their BatchNorm folded."""
    return blocks.Stem(_conv(name, conv1), _conv(name, conv2))


def ffn(
    name: str,
    fc1: Affine | None,
    mid: Affine,
    fc2: Affine,
    layer_scale: Tensor | None = None,
    *,
    activation: str = "gelu",
    stride: int = 1,
    residual: bool = True,
) -> blocks.FFN:
    """``fc1``: None without expansion. ``layer_scale``: (channels,), or None for no scale."""
    return blocks.FFN(
        fc1=None if fc1 is None else _pointwise(name, fc1),
        dw=_depthwise(name, mid),
        fc2=_pointwise(name, fc2.scaled(layer_scale)),
        activation=activation,
        stride=stride,
        residual=residual,
    )


def attention(
    name: str,
    *,
    q: Affine,
    k: Affine,
    v: Affine,
    local: Affine,
    talking_head1: Affine,
    talking_head2: Affine,
    proj: Affine,
    table: Tensor,  # (heads, rows, cols)
    scale: float,
    layer_scale: Tensor | None,
    stride_conv: Affine | None,
    resize_bias: bool,
) -> blocks.Attention:
    """``scale`` multiplies the logits before the bias is added."""
    heads = table.shape[0]
    q, proj = q.scaled(scale), proj.scaled(layer_scale)
    mix1 = talking_head1.folded().flatten(1)
    mixed_bias = torch.einsum("hg,grc->hrc", mix1, table) + talking_head1.bias[:, None, None]
    return blocks.Attention(
        qkv=_pointwise(name, q, k, v),
        local=_depthwise(name, local),
        mix1_weight=single(name, mix1),
        bias=single(name, mixed_bias),
        mix2=_pointwise(name, talking_head2),
        proj=_pointwise(name, proj),
        heads=heads,
        key_dim=q.bias.numel() // heads,
        value_dim=v.bias.numel() // heads,
        stride=1 if stride_conv is None else 2,
        resize_bias=resize_bias,
        dw=None if stride_conv is None else _depthwise(name, stride_conv),
    )


def conv(name: str, affine: Affine, *, stride: int = 1, activation: str = "none") -> blocks.Conv:
    """The convolution with its BatchNorm folded."""
    return blocks.Conv(_conv(name, affine), stride, activation)


def attention_downsample(
    name: str,
    *,
    query_local: Affine,
    query_proj: Affine,
    k: Affine,
    v: Affine,
    local: Affine,
    proj: Affine,
    conv: Affine,
    table: Tensor,  # (heads, rows, cols)
    scale: float,
    resize_bias: bool,
) -> blocks.AttentionDownsample:
    """The query of x is query_proj(query_local(x) + x[::2, ::2]); the second term joins the centre tap."""
    heads = table.shape[0]
    dw = query_local.folded()
    dw[:, 0, 1, 1] += 1
    q = query_proj.scaled(scale)
    return blocks.AttentionDownsample(
        dw=_depthwise(name, Affine(dw, torch.ones_like(query_local.factor), query_local.bias)),
        q=_pointwise(name, q),
        kv=_pointwise(name, k, v),
        local=_depthwise(name, local),
        bias=single(name, table),
        proj=_pointwise(name, proj),
        conv=_conv(name, conv),
        heads=heads,
        key_dim=q.bias.numel() // heads,
        value_dim=v.bias.numel() // heads,
        resize_bias=resize_bias,
    )


def head(name: str, norm: Normalisation, classifiers: list[Affine]) -> blocks.Head:
    """The mean of the classifiers behind the normalisation; without one the normalised mean itself."""
    if not classifiers:
        return blocks.Head(Layer(single(name, torch.diag(norm.scale)), single(name, norm.shift)))
    # In place: these may be the largest weights of a network, and are in float64 here.
    weight = classifiers[0].folded()
    for other in classifiers[1:]:
        weight += other.folded()
    weight /= len(classifiers)
    bias = torch.stack([c.bias for c in classifiers]).mean(0) + weight @ norm.shift
    weight *= norm.scale
    return blocks.Head(Layer(single(name, weight), single(name, bias)))


def feature(name: str, block: int, norm: Normalisation | None) -> blocks.Feature:
    """The output of the block with that index, normalised if asked for."""
    if norm is None:
        return blocks.Feature(block)
    return blocks.Feature(block, single(name, norm.scale), single(name, norm.shift))


def bias_table(
    node: Node, biases: str, indices: str, grid: tuple[int, int], query_stride: int, cached: list[Tensor]
) -> Tensor:
    """The bias by distance, (heads, rows, cols) in float64, whatever way the module numbers the distances.

    biases, indices: names of the values (heads, distances) and of the number of the distance between each
    query and key (queries, keys). cached: what the module has gathered already, (heads, queries, keys),
    and uses in eval mode.
    """
    values = node.tensor(biases)
    numbers = node.value(indices).detach().to("cpu")
    expected = distance_index(*grid, query_stride, torch.device("cpu"))
    fits = (
        numbers.shape == expected.shape and int(numbers.min()) >= 0 and int(numbers.max()) < values.shape[1]
    )
    # The first query stands at (0, 0), so its distances are the keys' own positions: every distance once.
    if not fits or not torch.equal(numbers, numbers[0][expected]):
        raise node.error(
            f"is unsupported: '{indices}' does not number the distances of {grid[0]}x{grid[1]} keys."
        )
    table = values[:, numbers[0]]
    for gathered in cached:
        # A copy made before the module was cast to half precision differs by 2^-8 at most.
        first = gathered[:, 0].detach().to("cpu", torch.float64)
        tolerance = 0.0 if gathered.dtype == node.value(biases).dtype else 2.0**-7
        if first.shape != table.shape or not torch.allclose(first, table, rtol=tolerance, atol=tolerance):
            raise node.error(
                "would use an outdated copy of its attention bias (weights were loaded after it was made): "
                "call model.train(); model.eval()."
            )
    return table.reshape(-1, *grid)
