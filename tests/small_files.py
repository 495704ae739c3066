"""Saved networks of a few kilobytes, with every kind of block: for tests of what reads them.

``python tests/small_files.py FOLDER`` writes them, as the fuzzer begins with them (``csrc/tests/corpus``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from effv2_kernels import blocks, save, shapes
from effv2_kernels.backends import Settings
from effv2_kernels.model import OptimizedModel

HEADS = {"heads": 2, "key_dim": 4, "value_dim": 4}


def _network(
    parts: list[shapes.BlockShape], features: tuple[tuple[int, bool], ...], generator: torch.Generator
) -> blocks.Network:
    made = tuple(shapes.random_block(part, generator) for part in parts)
    widths = [part.sizes.get("out", part.sizes["in"]) for part in parts]

    def normed(block: int) -> blocks.Feature:
        scale, shift = torch.randn(2, widths[block], generator=generator)
        return blocks.Feature(block, scale, shift)

    returned = tuple(normed(block) if scaled else blocks.Feature(block) for block, scaled in features)
    return blocks.Network(made, tuple(f"part.{i}" for i in range(len(made))), returned, "tests")


def classifier(generator: torch.Generator) -> blocks.Network:
    """For images of 32x32, of six channels' worth of every kind of block."""
    parts = [
        shapes.stem(8, 32, 32),
        shapes.ffn(8, 12, 8, 8),
        shapes.conv(8, 8, 8, 8, stride=2),
        shapes.attention(8, 4, 4, stride=2, **HEADS),
        shapes.attention_downsample(8, 10, 4, 4, **HEADS),
        shapes.attention(10, 2, 2, **HEADS),
        shapes.head(10, 5, 2, 2),
    ]
    return _network(parts, (), generator)


def backbone(generator: torch.Generator) -> blocks.Network:
    """For images of any size: resized biases, parts that are absent, and maps with and without a norm."""
    parts = [
        shapes.conv(3, 6, 32, 32, stride=2, kernel=5, activation="hardswish"),
        shapes.ffn(6, 6, 16, 16, without=("fc1",), residual=0, out=8, activation="relu6"),
        shapes.attention(8, 16, 16, table=(3, 2), **HEADS),
        shapes.attention(8, 16, 16, without=("bias", "local", "mix1_weight", "mix2"), **HEADS),
    ]
    return _network(parts, ((1, False), (3, True)), generator)


# Of the five classes of classifier(); U+0080 in UTF-8 begins with a byte that begins letters as well.
LABELS = ("tench, Tinca tinca", "Grünfink", "\u00a0\u00c2", "金魚", '"\\')

FILES: dict[str, tuple[Callable[[torch.Generator], blocks.Network], str, tuple[str, ...]]] = {
    "classifier": (classifier, "fp32", ()),
    "backbone": (backbone, "fp32", ()),
    "halves": (classifier, "fp16", LABELS),
}


def write(name: str, path: Path, generator: torch.Generator) -> None:
    build, dtype, labels = FILES[name]
    save(OptimizedModel(build(generator), Settings()), path, dtype=dtype, labels=labels)


if __name__ == "__main__":
    for file in FILES:
        write(file, Path(sys.argv[1]) / f"good_{file}.effv2", torch.Generator().manual_seed(1))
