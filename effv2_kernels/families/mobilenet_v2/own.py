"""Read this package's own model, ``create_model``'s, which has the structure of torchvision's."""

from __future__ import annotations

from torch import nn

from effv2_kernels import blocks
from effv2_kernels.families.mobilenet_v2.model import MobileNetV2
from effv2_kernels.families.mobilenet_v2.torchvision import add_model, part_reader, read_block, read_conv
from effv2_kernels.sources.assembly import Assembly
from effv2_kernels.sources.node import Node

__all__ = ["matches", "part_reader", "read"]


def matches(module: nn.Module) -> bool:
    """Whether the module is the package's own model."""
    return isinstance(module, MobileNetV2)


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    assembly = Assembly("mobilenet_v2/reference")
    if not node.value("features_only"):
        add_model(assembly, node)
        return assembly.network()
    first, *inner = node["features"].children()
    assembly.add(read_conv(first, kernel=3, stride=2))
    for i, block in enumerate(inner, 1):
        assembly.add(read_block(block))
        if i in node.value("returned"):
            assembly.add_feature(blocks.Feature(assembly.last))
    return assembly.network()
