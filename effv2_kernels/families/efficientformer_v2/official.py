"""Read the official EfficientFormerV2 (github.com/snap-research/EfficientFormer): the classifier of
models/efficientformer_v2.py and the backbones of detection/ and segmentation/ (backbonev2.py).

Told by the names of submodules and attributes, not by class: people copy those files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from effv2_kernels import blocks
from effv2_kernels.families.efficientformer_v2.timm import require_bilinear_2x, require_subsampling
from effv2_kernels.sources import folding
from effv2_kernels.sources.assembly import Assembly
from effv2_kernels.sources.node import (
    Affine,
    Node,
    Normalisation,
    batch_norm,
    convolution,
    linear,
    normalised,
    require_gelu,
    require_nothing,
    sequence,
)

Named = list[tuple[str, blocks.Block]]

_BLOCK = ("mlp.fc1", "mlp.norm1", "mlp.mid", "mlp.mid_norm", "mlp.fc2", "mlp.norm2", "mlp.act")
_STEM = (nn.Conv2d, nn.BatchNorm2d, nn.Module, nn.Conv2d, nn.BatchNorm2d, nn.Module)


def _is_block(module: nn.Module) -> bool:
    node = Node(module)
    return hasattr(module, "use_layer_scale") and all(node.find(path) for path in _BLOCK)


def _is_embedding(module: nn.Module) -> bool:
    return hasattr(module, "asub") and hasattr(module, "light")


def _is_stem(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and len(module) == len(_STEM)
        and all(isinstance(child, cls) for child, cls in zip(module, _STEM, strict=True))
        and all(conv.kernel_size == (3, 3) and conv.stride == (2, 2) for conv in (module[0], module[3]))
    )


def _is_stage(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and all(_is_block(block) for block in module)


def matches(module: nn.Module) -> bool:
    """Whether the module has the structure of the official classifier or of an official backbone."""
    network = getattr(module, "network", None)
    return (
        isinstance(getattr(module, "patch_embed", None), nn.Sequential)
        and isinstance(network, nn.ModuleList)
        and len(network) > 0
        and hasattr(module, "fork_feat")
        and all(_is_stage(part) or _is_embedding(part) for part in network)
    )


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    assembly = Assembly("official")
    assembly.add(_stem(node["patch_embed"]))
    features = node.value("fork_feat")
    wanted = node.value("out_indices") if features else ()
    for i, part in enumerate(node["network"].children()):
        if _is_embedding(part.module):
            assembly.add(_embedding(part))
        else:
            for block in part.children():
                assembly.add(_block(block))
        if i in wanted:
            norm = _output_norm(node.find(f"norm{i}"))
            assembly.add_feature(folding.feature(part.path, assembly.last, norm))
    if not features:
        heads = [node["head"], node["dist_head"]] if node.value("dist") else [node["head"]]
        classifiers = [linear(head) for head in heads if not isinstance(head.module, nn.Identity)]
        if classifiers and len(classifiers) != len(heads):
            raise node.error("is unsupported: one of its two heads has a classifier and the other has none.")
        assembly.add_head(batch_norm(node["norm"]), classifiers)
    return assembly.network()


def part_reader(module: nn.Module) -> Callable[[Node], Named] | None:
    """What reads a stem, stage block or embedding that stands alone; None for anything else."""
    for recognises, extract in ((_is_block, _block), (_is_embedding, _embedding), (_is_stem, _stem)):
        if recognises(module):
            return extract
    return None


def _output_norm(node: Node | None) -> Normalisation | None:
    """The dense-prediction files have no norm on their outputs, the classifier's file has."""
    if node is None or isinstance(node.module, nn.Identity):
        return None
    return batch_norm(node)


def _conv_norm(node: Node, *, kernel: int = 1, stride: int = 1, depthwise: bool = False) -> Affine:
    conv, norm = sequence(node, 2)
    return normalised(convolution(conv, kernel=kernel, stride=stride, depthwise=depthwise), batch_norm(norm))


def _strided(node: Node) -> Affine:
    return _conv_norm(node, kernel=3, stride=2, depthwise=True)


def _stem(node: Node) -> Named:
    conv1, norm1, act1, conv2, norm2, act2 = sequence(node, 6)
    require_gelu(act1)
    require_gelu(act2)
    first = normalised(convolution(conv1, kernel=3, stride=2), batch_norm(norm1))
    second = normalised(convolution(conv2, kernel=3, stride=2), batch_norm(norm2))
    return [(node.path, folding.stem(node.path, first, second))]


def _layer_scale(node: Node, name: str) -> Tensor | None:
    return node.tensor(name).flatten() if node.value("use_layer_scale") else None


def _block(node: Node) -> Named:
    named: Named = []
    mixer, mlp = node.find("token_mixer"), node["mlp"]
    if mixer is not None:
        named.append((mixer.path, _attention(mixer, _layer_scale(node, "layer_scale_1"))))
    require_nothing(node.find("drop_path"))
    require_nothing(mlp.find("drop"))
    require_gelu(mlp["act"])
    if not mlp.value("mid_conv"):
        raise mlp.error("is unsupported: mid_conv is off, so it leaves out the depthwise convolution.")
    ffn = folding.ffn(
        mlp.path,
        normalised(convolution(mlp["fc1"]), batch_norm(mlp["norm1"])),
        normalised(convolution(mlp["mid"], kernel=3, depthwise=True), batch_norm(mlp["mid_norm"])),
        normalised(convolution(mlp["fc2"]), batch_norm(mlp["norm2"])),
        _layer_scale(node, "layer_scale_2"),
    )
    return [*named, (mlp.path, ffn)]


def _bias_table(node: Node, query_stride: int) -> tuple[Tensor, bool]:
    """The table, and whether it is resized: the dense-prediction backbones name it differently and do."""
    resized = hasattr(node.module, "attention_biases_seg")
    suffix = "_seg" if resized else ""
    gathered = getattr(node.module, "ab", None)
    table = folding.bias_table(
        node,
        f"attention_biases{suffix}",
        f"attention_bias_idxs{suffix}",
        node.grid("resolution"),
        query_stride,
        [gathered] if isinstance(gathered, torch.Tensor) else [],
    )
    return table, resized


def _attention(node: Node, layer_scale: Tensor | None) -> blocks.Attention:
    stride_conv, upsample = node.find("stride_conv"), node.find("upsample")
    if (stride_conv is None) != (upsample is None):
        raise node.error("is unsupported: it strides without upsampling, or the other way round.")
    if upsample is not None:
        require_bilinear_2x(upsample)
    table, resize_bias = _bias_table(node, 1)
    return folding.attention(
        node.path,
        q=_conv_norm(node["q"]),
        k=_conv_norm(node["k"]),
        v=_conv_norm(node["v"]),
        local=_conv_norm(node["v_local"], kernel=3, depthwise=True),
        talking_head1=convolution(node["talking_head1"]),
        talking_head2=convolution(node["talking_head2"]),
        proj=_gelu_conv_norm(node["proj"]),
        table=table,
        scale=float(node.value("scale")),
        layer_scale=layer_scale,
        stride_conv=None if stride_conv is None else _strided(stride_conv),
        resize_bias=resize_bias,
    )


def _gelu_conv_norm(node: Node) -> Affine:
    act, conv, norm = sequence(node, 3)
    require_gelu(act)
    return normalised(convolution(conv), batch_norm(norm))


def _embedding(node: Node) -> Named:
    if node.value("light"):
        raise node.error("is unsupported: light=True, which no published EfficientFormerV2 uses.")
    if not node.value("asub"):
        conv = normalised(convolution(node["proj"], kernel=3, stride=2), _output_norm(node["norm"]))
        return [(node.path, folding.conv(node.path, conv, stride=2))]
    attn = node["attn"]
    require_subsampling(attn["q.pool"])
    (query_local,) = sequence(attn["q.local"], 1)
    table, resize_bias = _bias_table(attn, 2)
    block = folding.attention_downsample(
        node.path,
        query_local=convolution(query_local, kernel=3, stride=2, depthwise=True),
        query_proj=_conv_norm(attn["q.proj"]),
        k=_conv_norm(attn["k"]),
        v=_conv_norm(attn["v"]),
        local=_conv_norm(attn["v_local"], kernel=3, stride=2, depthwise=True),
        proj=_gelu_conv_norm(attn["proj"]),
        conv=normalised(convolution(node["conv"], kernel=3, stride=2), _output_norm(node["bn"])),
        table=table,
        scale=float(attn.value("scale")),
        resize_bias=resize_bias,
    )
    return [(node.path, block)]
