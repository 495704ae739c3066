"""Read this package's own model, ``create_model``'s."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.families.efficientformer_v2 import model as own
from effv2_kernels.families.efficientformer_v2.layers import (
    AttentionDownsampleLayer,
    AttentionLayer,
    ConvDownsampleLayer,
    LayerScale,
    StemLayer,
)
from effv2_kernels.sources import folding
from effv2_kernels.sources.assembly import Assembly
from effv2_kernels.sources.node import (
    Affine,
    Node,
    batch_norm,
    convolution,
    linear,
    normalised,
    require_nothing,
)

Named = list[tuple[str, blocks.Block]]


def matches(module: nn.Module) -> bool:
    """Whether the module is the package's own model."""
    return isinstance(module, own.EfficientFormerV2)


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    assembly = Assembly("reference")
    assembly.add(_stem(node["stem"]))
    features = node.find("feature_norms")
    for i, stage in enumerate(node["stages"].children()):
        if not isinstance(stage["downsample"].module, nn.Identity):
            assembly.add(_downsample(stage["downsample"]))
        for block in stage["blocks"].children():
            assembly.add(_block(block))
        if features is not None:
            norm = features.children()[i]
            plain = isinstance(norm.module, nn.Identity)
            assembly.add_feature(
                folding.feature(norm.path, assembly.last, None if plain else batch_norm(norm))
            )
    if features is None:
        heads = [head for head in (node.find("head"), node.find("head_dist")) if head is not None]
        classifiers = [linear(head) for head in heads if isinstance(head.module, nn.Linear)]
        assembly.add_head(batch_norm(node["norm"]), classifiers)
    return assembly.network()


def part_reader(module: nn.Module) -> Callable[[Node], Named] | None:
    """What reads a stem, stage block or downsample step that stands alone; None for anything else."""
    if isinstance(module, own.BlockLayer):
        return _block
    if isinstance(module, (ConvDownsampleLayer, AttentionDownsampleLayer)):
        return _downsample
    return _stem if isinstance(module, StemLayer) else None


def _conv_norm(node: Node, *, kernel: int = 1, stride: int = 1, depthwise: bool = False) -> Affine:
    conv = convolution(node["conv"], kernel=kernel, stride=stride, depthwise=depthwise)
    return normalised(conv, batch_norm(node["bn"]))


def _strided(node: Node) -> Affine:
    return _conv_norm(node, kernel=3, stride=2, depthwise=True)


def _stem(node: Node) -> Named:
    conv1 = _conv_norm(node["conv1"], kernel=3, stride=2)
    conv2 = _conv_norm(node["conv2"], kernel=3, stride=2)
    return [(node.path, folding.stem(node.path, conv1, conv2))]


def _layer_scale(node: Node) -> Tensor | None:
    return node.tensor("gamma") if isinstance(node.module, LayerScale) else None


def _block(node: Node) -> Named:
    named: Named = []
    mixer, mlp = node.find("token_mixer"), node["mlp"]
    for drop_path in (node.find("drop_path1"), node.find("drop_path2")):
        require_nothing(drop_path)
    if mixer is not None and isinstance(mixer.module, AttentionLayer):
        named.append((mixer.path, _attention(mixer, mixer.module, _layer_scale(node["ls1"]))))
    ffn = folding.ffn(
        mlp.path,
        _conv_norm(mlp["fc1"]),
        _conv_norm(mlp["mid"], kernel=3, depthwise=True),
        _conv_norm(mlp["fc2"]),
        _layer_scale(node["ls2"]),
    )
    return [*named, (mlp.path, ffn)]


def _attention(node: Node, layer: AttentionLayer, layer_scale: Tensor | None) -> blocks.Attention:
    stride_conv = node.find("stride_conv")
    return folding.attention(
        node.path,
        q=_conv_norm(node["q"]),
        k=_conv_norm(node["k"]),
        v=_conv_norm(node["v"]),
        local=_conv_norm(node["v_local"], kernel=3, depthwise=True),
        talking_head1=convolution(node["talking_head1"]),
        talking_head2=convolution(node["talking_head2"]),
        proj=_conv_norm(node["proj"]),
        table=node.tensor("attention_biases").view(-1, *layer.grid),
        scale=layer.key_dim**-0.5,
        layer_scale=layer_scale,
        stride_conv=None if stride_conv is None else _strided(stride_conv),
        resize_bias=layer.resize_bias,
    )


def _downsample(node: Node) -> Named:
    if isinstance(node.module, ConvDownsampleLayer):
        conv = _conv_norm(node["conv"], kernel=3, stride=2)
        return [(node.path, folding.conv(node.path, conv, stride=2))]
    assert isinstance(node.module, AttentionDownsampleLayer)
    attn, layer = node["attn"], node.module.attn
    block = folding.attention_downsample(
        node.path,
        query_local=convolution(attn["q.local"], kernel=3, stride=2, depthwise=True),
        query_proj=_conv_norm(attn["q.proj"]),
        k=_conv_norm(attn["k"]),
        v=_conv_norm(attn["v"]),
        local=_conv_norm(attn["v_local"], kernel=3, stride=2, depthwise=True),
        proj=_conv_norm(attn["proj"]),
        conv=_conv_norm(node["conv"], kernel=3, stride=2),
        table=attn.tensor("attention_biases").view(-1, *layer.grid),
        scale=layer.key_dim**-0.5,
        resize_bias=layer.resize_bias,
    )
    return [(node.path, block)]
