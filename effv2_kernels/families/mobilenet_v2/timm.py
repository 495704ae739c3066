"""Read timm's MobileNetV2 (timm/models/efficientnet.py, ``mobilenetv2_*``), whole or with features_only.

Told by the names of submodules and attributes, not by class: people copy that file. timm is not imported. Its
class makes other networks as well: those with another activation or with squeeze and excitation are none of
this family.
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
    require_nothing,
    unchanged,
)

Named = list[tuple[str, blocks.Block]]


def _is_block(module: nn.Module) -> bool:
    node = Node(module)
    first, last = node.find("bn1.act"), node.find("conv_pwl") or node.find("conv_pw")
    return (
        bool(node.find("conv_dw") and last)
        and hasattr(module, "has_skip")
        and first is not None
        and isinstance(first.module, nn.ReLU6)
        and isinstance(getattr(module, "se", None), (nn.Identity, type(None)))
    )


def _is_trunk(module: nn.Module) -> bool:
    stages = getattr(module, "blocks", None)
    return (
        isinstance(getattr(module, "conv_stem", None), nn.Conv2d)
        and isinstance(stages, nn.Sequential)
        and len(stages) > 0
        and all(isinstance(stage, nn.Sequential) and all(map(_is_block, stage)) for stage in stages)
    )


def _is_model(module: nn.Module) -> bool:
    return _is_trunk(module) and all(
        isinstance(getattr(module, name, None), nn.Module)
        for name in ("conv_head", "bn2", "global_pool", "classifier")
    )


def _is_features(module: nn.Module) -> bool:
    return _is_trunk(module) and hasattr(module, "_stage_out_idx")


def matches(module: nn.Module) -> bool:
    """Whether the module has the structure of timm's model or of its features_only."""
    return _is_model(module) or _is_features(module)


def read(module: nn.Module) -> blocks.Network:
    """The folded network. Raises ModelError, naming the submodule, for whatever is not supported."""
    node = Node(module)
    assembly = Assembly("mobilenet_v2/timm")
    stages = node["blocks"].children()
    if _is_features(module):
        _add_features(assembly, node, stages)
        return assembly.network()
    _add_stem(assembly, node)
    for stage in stages:
        _add_stage(assembly, stage)
    last = _conv_norm(node["conv_head"], node["bn2"], "relu6")
    assembly.add([("conv_head", folding.conv("conv_head", last, activation="relu6"))])
    pool = node["global_pool"]
    if pool.value("pool_type") != "avg" or not isinstance(pool["flatten"].module, nn.Flatten):
        raise pool.error(
            "is unsupported: expected global_pool='avg'. For feature maps use timm.create_model(..., "
            "features_only=True), or keep global_pool='avg' and call forward_features(x) of the result."
        )
    classifier = node["classifier"]
    classifiers = [] if isinstance(classifier.module, nn.Identity) else [linear(classifier)]
    assembly.add_head(unchanged(last.bias.numel()), classifiers, "classifier")
    return assembly.network()


def part_reader(module: nn.Module) -> Callable[[Node], Named] | None:
    """What reads an inverted residual that stands alone; None for anything else."""
    return _block if _is_block(module) else None


def _add_features(assembly: Assembly, node: Node, stages: list[Node]) -> None:
    if node.value("feature_hooks") is not None:
        raise node.error(
            "is unsupported: its features are taken by hooks; use timm.create_model(..., features_only=True) "
            "with its default feature_location."
        )
    wanted = node.value("_stage_out_idx")  # 0 is the first convolution, and stages count from 1
    _add_stem(assembly, node)
    for i in range(max(wanted) + 1):
        if i > 0:
            _add_stage(assembly, stages[i - 1])
        if i in wanted:
            assembly.add_feature(blocks.Feature(assembly.last))


def _add_stem(assembly: Assembly, node: Node) -> None:
    conv = _conv_norm(node["conv_stem"], node["bn1"], "relu6", kernel=3, stride=2)
    assembly.add([("conv_stem", folding.conv("conv_stem", conv, stride=2, activation="relu6"))])


def _add_stage(assembly: Assembly, stage: Node) -> None:
    for block in stage.children():
        assembly.add(_block(block))


def _conv_norm(
    conv: Node,
    norm: Node,
    activation: str,
    *,
    kernel: int = 1,
    stride: int = 1,
    depthwise: bool = False,
) -> Affine:
    made = convolution(conv, kernel=kernel, stride=stride, depthwise=depthwise)
    return normalised(made, batch_norm(norm, activation=activation))


def _block(node: Node) -> Named:
    """An inverted residual, or the one without expansion, which timm calls depthwise separable."""
    for noop in ("conv_s2d", "aa", "se", "drop_path"):
        require_nothing(node.find(noop))
    depthwise = node["conv_dw"]
    stride = depthwise.value("stride")[0]
    widened = node.find("conv_pwl") is not None
    fc1 = _conv_norm(node["conv_pw"], node["bn1"], "relu6") if widened else None
    norm, last, last_norm = ("bn2", "conv_pwl", "bn3") if widened else ("bn1", "conv_pw", "bn2")
    block = folding.ffn(
        node.path,
        fc1,
        _conv_norm(depthwise, node[norm], "relu6", kernel=3, stride=stride, depthwise=True),
        _conv_norm(node[last], node[last_norm], "none"),
        activation="relu6",
        stride=stride,
        residual=bool(node.value("has_skip")),
    )
    return [(node.path, block)]
