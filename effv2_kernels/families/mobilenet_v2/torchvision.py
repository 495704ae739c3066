"""Read torchvision's MobileNetV2 (torchvision/models/mobilenetv2.py).

Told by the names of submodules and attributes, not by class: people copy that file. torchvision is not
imported.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

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
    require_activation,
    require_nothing,
    sequence,
    unchanged,
)

Named = list[tuple[str, blocks.Block]]


def _is_conv_norm_act(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[0], nn.Conv2d)


def is_block(module: nn.Module) -> bool:
    """Whether a module has the structure of an inverted residual."""
    conv = getattr(module, "conv", None)
    return (
        hasattr(module, "use_res_connect")
        and isinstance(conv, nn.Sequential)
        and len(conv) in (3, 4)
        and all(_is_conv_norm_act(part) for part in list(conv)[:-2])
        and isinstance(conv[-2], nn.Conv2d)
    )


def matches(module: nn.Module) -> bool:
    """Whether the module has the structure of torchvision's model."""
    features = getattr(module, "features", None)
    return (
        isinstance(getattr(module, "classifier", None), nn.Module)
        and isinstance(features, nn.Sequential)
        and len(features) > 2
        and _is_conv_norm_act(features[0])
        and _is_conv_norm_act(features[-1])
        and all(is_block(block) for block in list(features)[1:-1])
    )


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    assembly = Assembly("mobilenet_v2/torchvision")
    add_model(assembly, node)
    return assembly.network()


def part_reader(module: nn.Module) -> Callable[[Node], Named] | None:
    """What reads an inverted residual that stands alone; None for anything else."""
    return read_block if is_block(module) else None


def add_model(assembly: Assembly, node: Node) -> None:
    """All blocks of a classifier."""
    first, *inner, last = node["features"].children()
    assembly.add(read_conv(first, kernel=3, stride=2))
    for block in inner:
        assembly.add(read_block(block))
    assembly.add(read_conv(last))
    channels = last.children()[0].integer("out_channels")
    classifier = node["classifier"]
    *before, end = classifier.children() if isinstance(classifier.module, nn.Sequential) else [classifier]
    for part in before:
        require_nothing(part)
    classifiers = [] if isinstance(end.module, nn.Identity) else [linear(end)]
    assembly.add_head(unchanged(channels), classifiers, "classifier")


def read_conv(node: Node, *, kernel: int = 1, stride: int = 1) -> Named:
    """A convolution with its norm and ReLU6."""
    conv = _conv_norm_act(node, kernel=kernel, stride=stride)
    return [(node.path, folding.conv(node.path, conv, stride=stride, activation="relu6"))]


def read_block(node: Node) -> Named:
    """An inverted residual."""
    *widen, depthwise, conv, norm = node["conv"].children()
    stride = depthwise.children()[0].value("stride")[0]
    block = folding.ffn(
        node.path,
        _conv_norm_act(widen[0]) if widen else None,
        _conv_norm_act(depthwise, kernel=3, stride=stride, depthwise=True),
        normalised(convolution(conv), batch_norm(norm)),
        activation="relu6",
        stride=stride,
        residual=bool(node.value("use_res_connect")),
    )
    return [(node.path, block)]


def _conv_norm_act(node: Node, *, kernel: int = 1, stride: int = 1, depthwise: bool = False) -> Affine:
    conv, norm, act = sequence(node, 3)
    require_activation(act, "relu6")
    return normalised(convolution(conv, kernel=kernel, stride=stride, depthwise=depthwise), batch_norm(norm))
