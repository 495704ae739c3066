"""The shapes of the blocks of a network, in order of execution."""

from __future__ import annotations

from effv2_kernels.families.mobilenet_v2.architecture import Architecture
from effv2_kernels.shapes import BlockShape, conv, head


def network_shapes(
    architecture: Architecture, image: tuple[int, int] = (224, 224), *, classes: int = 1000
) -> list[BlockShape]:
    """Every block of a network in order of execution, repeated as often as it occurs."""
    made = [conv(3, architecture.stem, *image, stride=2, activation="relu6")]
    height, width = -(-image[0] // 2), -(-image[1] // 2)
    channels = architecture.stem
    for block in architecture.blocks():
        sizes = {"in": channels, "hidden": channels * block.expansion, "kernel": 3}
        options: dict[str, int | str] = {"activation": "relu6"}
        if block.stride != 1:
            options["stride"] = block.stride
        if block.channels != channels:
            sizes["out"] = block.channels
        if block.stride != 1 or block.channels != channels:
            options["residual"] = 0
        without = ("fc1",) if block.expansion == 1 else ()
        made.append(BlockShape("ffn", height, width, sizes, options, without))
        channels = block.channels
        height, width = -(-height // block.stride), -(-width // block.stride)
    last = conv(channels, architecture.features, height, width, kernel=1, activation="relu6")
    return [*made, last, head(architecture.features, classes, height, width)]
