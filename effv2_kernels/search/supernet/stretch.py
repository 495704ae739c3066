"""Makes the layers of the largest network elastic, in place: the layers' own ``forward`` stays as it is.

Which configurations have a BatchNorm of their own: every width of the stage; for hidden channels, every pair
of width and ratio. The queries, keys and values of an attention have the same channels at every width, but
are sums over other ones. Those of the step from stage 3 to stage 4 are sums over stage 3's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from effv2_kernels.families.efficientformer_v2.layers import (
    AttentionDownsampleLayer,
    AttentionLayer,
    ConvDownsampleLayer,
    ConvNorm,
    LayerScale,
    StemLayer,
)
from effv2_kernels.families.efficientformer_v2.model import BlockLayer, StageLayer
from effv2_kernels.search.space.choices import StageChoices
from effv2_kernels.search.supernet.elastic import ElasticConv, ElasticConvNorm, ElasticNorm, ElasticScale


def width_key(width: int) -> str:
    """The name of a stage's configuration."""
    return str(width)


def hidden_key(width: int, ratio: float) -> str:
    """The name of an FFN's configuration; ratios that give as many hidden channels are the same."""
    return f"{width}_{int(width * ratio)}"


def norm(choices: StageChoices, stage: int, channels: Callable[[int], int] = int) -> ElasticNorm:
    """One BatchNorm for each width, of as many channels as ``channels`` says of it."""
    return ElasticNorm({width_key(width): channels(width) for width in choices.widths}, stage)


def stem(layer: StemLayer, choices: StageChoices) -> None:
    """Of the first stage's width."""
    _replace(layer, "conv1", norm(choices, 0, lambda width: width // 2))
    _replace(layer, "conv2", norm(choices, 0))


def stage(layer: StageLayer, index: int, before: StageChoices, choices: StageChoices) -> None:
    """The step into a stage, ``before`` being the choices of the one that it leaves, and its blocks."""
    step = layer.downsample
    if isinstance(step, ConvDownsampleLayer):
        _replace(step, "conv", norm(choices, index))
    elif isinstance(step, AttentionDownsampleLayer):
        _replace(step, "conv", norm(choices, index))
        _replace(step.attn, "proj", norm(choices, index))
        _replace_fixed(step.attn, ("k", "v", "v_local"), before, index - 1)
        _replace_fixed(step.attn.q, ("proj",), before, index - 1)
        step.attn.q.local = cast(nn.Conv2d, ElasticConv(step.attn.q.local))
    for block in layer.blocks:
        _block(cast(BlockLayer, block), index, choices)


def _block(layer: BlockLayer, index: int, choices: StageChoices) -> None:
    attention = layer.token_mixer
    if isinstance(attention, AttentionLayer):
        _replace_fixed(attention, ("q", "k", "v", "v_local"), choices, index)
        _replace(attention, "proj", norm(choices, index))
        if attention.stride_conv is not None:
            _replace(attention, "stride_conv", norm(choices, index))
    hidden = {
        hidden_key(width, ratio): int(width * ratio) for width in choices.widths for ratio in choices.ratios
    }
    for name in ("fc1", "mid"):
        _replace(layer.mlp, name, ElasticNorm(hidden))
    _replace(layer.mlp, "fc2", norm(choices, index))
    for name in ("ls1", "ls2"):
        scale = getattr(layer, name)
        if isinstance(scale, LayerScale):
            setattr(layer, name, ElasticScale(scale.gamma))


def _replace_fixed(layer: nn.Module, names: tuple[str, ...], choices: StageChoices, index: int) -> None:
    """Convolutions with the same outputs at every width."""
    for name in names:
        outputs = getattr(layer, name).conv.out_channels
        _replace(layer, name, norm(choices, index, lambda width, outputs=outputs: outputs))  # type: ignore[misc]


def _replace(layer: nn.Module, name: str, elastic_norm: ElasticNorm) -> None:
    given = getattr(layer, name)
    assert isinstance(given, ConvNorm)
    setattr(layer, name, ElasticConvNorm(given.conv, elastic_norm))
