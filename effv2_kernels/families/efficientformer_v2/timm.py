"""Read timm's EfficientFormerV2 (timm/models/efficientformer_v2.py), and its feature wrappers.

Told by the names of submodules and attributes, not by class: people copy that file. timm is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.sources import folding
from effv2_kernels.sources.assembly import Assembly
from effv2_kernels.sources.node import (
    Affine,
    Node,
    batch_norm,
    convolution,
    linear,
    normalised,
    require_gelu,
    require_nothing,
)

Named = list[tuple[str, blocks.Block]]

_BLOCK = ("mlp.fc1.conv", "mlp.mid.conv", "mlp.fc2.conv", "ls2")


def _is_block(module: nn.Module) -> bool:
    node = Node(module)
    return hasattr(module, "token_mixer") and all(node.find(path) for path in _BLOCK)


def _is_downsample(module: nn.Module) -> bool:
    node = Node(module)
    return hasattr(module, "attn") and bool(node.find("conv.conv"))


def _is_stem(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and list(module._modules) == ["conv1", "conv2"]


def _is_stage(module: nn.Module) -> bool:
    stage_blocks = getattr(module, "blocks", None)
    return (
        hasattr(module, "downsample")
        and isinstance(stage_blocks, nn.Sequential)
        and all(_is_block(block) for block in stage_blocks)
    )


def _is_model(module: nn.Module) -> bool:
    stages = getattr(module, "stages", None)
    return (
        all(hasattr(module, name) for name in ("stem", "norm", "head", "head_dist", "global_pool"))
        and isinstance(module.stem, nn.Module)
        and _is_stem(module.stem)
        and isinstance(stages, nn.Sequential)
        and len(stages) > 0
        and all(_is_stage(stage) for stage in stages)
    )


def _is_flat_features(module: nn.Module) -> bool:
    """FeatureListNet and FeatureDictNet: stem and stages taken out of the model into one ModuleDict."""
    return (
        isinstance(module, nn.ModuleDict)
        and hasattr(module, "return_layers")
        and list(module)[:2] == ["stem_conv1", "stem_conv2"]
        and all(_is_stage(stage) for stage in list(module.values())[2:])
    )


def _is_getter(module: nn.Module) -> bool:
    """FeatureGetterNet: the model itself, asked for intermediate maps."""
    inner = getattr(module, "model", None)
    return hasattr(module, "out_indices") and isinstance(inner, nn.Module) and _is_model(inner)


def matches(module: nn.Module) -> bool:
    """Whether the module has the structure of timm's model or of one of its feature wrappers."""
    return _is_model(module) or _is_flat_features(module) or _is_getter(module)


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    if _is_flat_features(module):
        return _flat_features(node)
    if _is_getter(module):
        return _getter(node)
    return _model(node)


def part_reader(module: nn.Module) -> Callable[[Node], Named] | None:
    """What reads a stem, stage block or downsample step that stands alone; None for anything else."""
    for recognises, extract in ((_is_block, _block), (_is_downsample, _downsample), (_is_stem, _stem)):
        if recognises(module):
            return extract
    return None


def _model(node: Node) -> blocks.Network:
    if node.value("global_pool") != "avg":
        raise node.error(
            f"is unsupported: global_pool={node.value('global_pool')!r}, expected 'avg'. For feature "
            f"maps use timm.create_model(..., features_only=True), or keep global_pool='avg' and call "
            f"forward_features(x) of the optimised model."
        )
    assembly = Assembly("timm")
    assembly.add(_stem(node["stem"]))
    for stage in node["stages"].children():
        assembly.add(_stage(stage))
    require_nothing(node.find("head_drop"))
    heads = [head for head in (node.find("head"), node.find("head_dist")) if head is not None]
    classifiers = [linear(head) for head in heads if not isinstance(head.module, nn.Identity)]
    if classifiers and len(classifiers) != len(heads):
        raise node.error("is unsupported: one of its two heads has a classifier and the other has none.")
    assembly.add_head(batch_norm(node["norm"]), classifiers)
    return assembly.network()


def _flat_features(node: Node) -> blocks.Network:
    if not any(cls.__name__ == "FeatureListNet" for cls in type(node.module).__mro__):
        raise node.error(
            "is unsupported: it does not return a list of feature maps; use "
            "timm.create_model(..., features_only=True) with its default wrapper."
        )
    assembly = Assembly("timm")
    stem1, stem2, *stages = node.children()
    stem = folding.stem(stem1.path, _conv_norm_gelu(stem1), _conv_norm_gelu(stem2))
    assembly.add([(stem1.path, stem)])
    returned = node.value("return_layers")
    if not set(returned) <= {stage.path for stage in stages}:
        raise node.error(f"is unsupported: it returns {sorted(returned)}, and only stages can be returned.")
    for stage in stages:
        assembly.add(_stage(stage))
        if stage.path in returned:
            assembly.add_feature(blocks.Feature(assembly.last))
    return assembly.network()


def _getter(node: Node) -> blocks.Network:
    if getattr(node.module, "return_dict", False):
        raise node.error(
            "is unsupported: it returns a dictionary of feature maps; use one that returns a list."
        )
    model = node["model"]
    stages = model["stages"].children()
    indices = node.value("out_indices")
    count = len(stages)
    wanted = range(count - indices, count) if isinstance(indices, int) else [i % count for i in indices]
    assembly = Assembly("timm")
    assembly.add(_stem(model["stem"]))
    for i, stage in enumerate(stages):
        assembly.add(_stage(stage))
        if i not in wanted:
            continue
        norm = model["norm"] if node.value("norm") and i == count - 1 else None
        if norm is not None and isinstance(norm.module, nn.Identity):
            norm = None
        assembly.add_feature(
            folding.feature(stage.path, assembly.last, None if norm is None else batch_norm(norm))
        )
    return assembly.network()


def _conv_norm(node: Node, *, kernel: int = 1, stride: int = 1, depthwise: bool = False) -> Affine:
    conv = convolution(node["conv"], kernel=kernel, stride=stride, depthwise=depthwise)
    return normalised(conv, batch_norm(node["bn"]))


def _conv_norm_gelu(node: Node, *, kernel: int = 3, stride: int = 2, depthwise: bool = False) -> Affine:
    conv = convolution(node["conv"], kernel=kernel, stride=stride, depthwise=depthwise)
    require_nothing(node.find("aa"))
    return normalised(conv, batch_norm(node["bn"], activation="gelu"))


def _strided(node: Node) -> Affine:
    return _conv_norm(node, kernel=3, stride=2, depthwise=True)


def _stem(node: Node) -> Named:
    conv1, conv2 = _conv_norm_gelu(node["conv1"]), _conv_norm_gelu(node["conv2"])
    return [(node.path, folding.stem(node.path, conv1, conv2))]


def _stage(node: Node) -> Named:
    downsample = node["downsample"]
    named: Named = [] if isinstance(downsample.module, nn.Identity) else _downsample(downsample)
    for block in node["blocks"].children():
        named += _block(block)
    return named


def _layer_scale(node: Node) -> Tensor | None:
    if isinstance(node.module, nn.Identity):
        return None
    return node.tensor("gamma")


def _block(node: Node) -> Named:
    named: Named = []
    mixer = node.find("token_mixer")
    if mixer is not None:
        require_nothing(node.find("drop_path1"))
        named.append((mixer.path, _attention(mixer, _layer_scale(node["ls1"]))))
    mlp = node["mlp"]
    for noop in (node.find("drop_path2"), mlp.find("drop1"), mlp.find("drop2")):
        require_nothing(noop)
    ffn = folding.ffn(
        mlp.path,
        _conv_norm_gelu(mlp["fc1"], kernel=1, stride=1),
        _conv_norm_gelu(mlp["mid"], kernel=3, stride=1, depthwise=True),
        _conv_norm(mlp["fc2"]),
        _layer_scale(node["ls2"]),
    )
    return [*named, (mlp.path, ffn)]


def _bias_table(node: Node, query_stride: int) -> Tensor:
    cache = getattr(node.module, "attention_bias_cache", {})
    return folding.bias_table(
        node,
        "attention_biases",
        "attention_bias_idxs",
        node.grid("resolution"),
        query_stride,
        [value for value in cache.values() if isinstance(value, torch.Tensor)],
    )


def _attention(node: Node, layer_scale: Tensor | None) -> blocks.Attention:
    stride_conv, upsample = node.find("stride_conv"), node.find("upsample")
    if (stride_conv is None) != (upsample is None):
        raise node.error("is unsupported: it strides without upsampling, or the other way round.")
    if upsample is not None:
        require_bilinear_2x(upsample)
    require_gelu(node["act"])
    return folding.attention(
        node.path,
        q=_conv_norm(node["q"]),
        k=_conv_norm(node["k"]),
        v=_conv_norm(node["v"]),
        local=_conv_norm(node["v_local"], kernel=3, depthwise=True),
        talking_head1=convolution(node["talking_head1"]),
        talking_head2=convolution(node["talking_head2"]),
        proj=_conv_norm(node["proj"]),
        table=_bias_table(node, 1),
        scale=float(node.value("scale")),
        layer_scale=layer_scale,
        stride_conv=None if stride_conv is None else _strided(stride_conv),
        resize_bias=False,
    )


def _downsample(node: Node) -> Named:
    conv = _conv_norm(node["conv"], kernel=3, stride=2)
    attn = node.find("attn")
    if attn is None:
        return [(node.path, folding.conv(node.path, conv, stride=2))]
    require_gelu(attn["act"])
    require_subsampling(attn["q.pool"])
    block = folding.attention_downsample(
        node.path,
        query_local=convolution(attn["q.local"], kernel=3, stride=2, depthwise=True),
        query_proj=_conv_norm(attn["q.proj"]),
        k=_conv_norm(attn["k"]),
        v=_conv_norm(attn["v"]),
        local=_conv_norm(attn["v_local"], kernel=3, stride=2, depthwise=True),
        proj=_conv_norm(attn["proj"]),
        conv=conv,
        table=_bias_table(attn, 2),
        scale=float(attn.value("scale")),
        resize_bias=False,
    )
    return [(node.path, block)]


def require_bilinear_2x(node: Node) -> None:
    """Refuse every upsampling but bilinear 2x with align_corners=False."""
    up = node.module
    factor = getattr(up, "scale_factor", None)
    factors = set(factor) if isinstance(factor, Sequence) else {factor}
    if (
        not isinstance(up, nn.Upsample)
        or up.mode != "bilinear"
        or factors != {2.0}
        or up.size is not None
        or up.align_corners
    ):
        raise node.error("is unsupported: expected nn.Upsample(scale_factor=2, mode='bilinear').")


def require_subsampling(node: Node) -> None:
    """Refuse every pooling but the one that takes each second row and column."""
    pool = node.module
    if not isinstance(pool, nn.AvgPool2d) or any(
        getattr(pool, name) not in (value, (value, value))
        for name, value in (("kernel_size", 1), ("stride", 2), ("padding", 0))
    ):
        raise node.error("is unsupported: expected nn.AvgPool2d(kernel_size=1, stride=2).")
