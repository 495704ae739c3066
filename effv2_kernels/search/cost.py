"""What a network costs: parameters, multiply-adds, and the time that it takes on one device or several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.layers import (
    AttentionDownsampleLayer,
    AttentionLayer,
    ConvDownsampleLayer,
    FFNLayer,
    StemLayer,
)
from effv2_kernels.families.efficientformer_v2.shapes import network_shapes
from effv2_kernels.search.latency.table import LatencyTable
from effv2_kernels.search.latency.task import Task
from effv2_kernels.search.mes import LATENCY, PARAMETERS
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.shapes import BlockShape

MACS = "macs"
UNITS = {PARAMETERS: "M", MACS: "M"}


class Costs:
    """The metrics of the subnets of a space, by name.

    parameters: millions, of the model that ``create_model`` makes of what a search writes. macs: millions of
    multiply-adds of one image. latency: what the table predicts, in its unit; of several tables "latency on
    NAME", by their names. Any other that adds up over blocks, such as energy, has a table of its own in the
    same format.

    classes, distillation: of the networks' classifiers; a second one for distillation has parameters, but
    both count as one in multiply-adds, as they are folded into one. tables: of latencies, by names of devices
    for people. others: by the names of their metrics.

    Raises LatencyError where a table is of other images or classes, SearchError for a metric of two sources.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        classes: int = 1000,
        distillation: bool = True,
        tables: Mapping[str, LatencyTable] | None = None,
        others: Mapping[str, LatencyTable] | None = None,
    ) -> None:
        self.space, self.classes, self.distillation = space, classes, distillation
        given, self.others = tables or {}, dict(others or {})
        for name, table in (*given.items(), *self.others.items()):
            table.require_task(Task.of(space, classes), what=f"the table of {name}")
        alone = len(given) == 1
        self.tables = {LATENCY if alone else f"{LATENCY} on {name}": t for name, t in given.items()}
        taken = [name for name in self.others if name in (*UNITS, LATENCY, *self.tables)]
        if taken:
            raise SearchError(f"{', '.join(taken)} is a metric already: give another name to what is added.")
        self.units = UNITS | {name: table.device.unit for name, table in self._every.items()}
        self._known: dict[Architecture, dict[str, float]] = {}

    @property
    def _every(self) -> dict[str, LatencyTable]:
        return {**self.tables, **self.others}

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        """All metrics of a subnet. Raises LatencyError where a table lacks a block of it."""
        known = architecture.canonical()
        if known not in self._known:
            parameters, macs = self.count(known)
            self._known[known] = {PARAMETERS: parameters / 1e6, MACS: macs / 1e6} | {
                name: table.predict(known) for name, table in self._every.items()
            }
        return dict(self._known[known])

    def count(self, architecture: Architecture) -> tuple[int, int]:
        """Parameters and multiply-adds, exactly."""
        shapes = network_shapes(
            architecture, self.space.img_size, classes=self.classes, in_channels=self.space.in_channels
        )
        counts = [_count(shape) for shape in shapes]
        parameters, macs = (sum(each) for each in zip(*counts, strict=True))
        if self.distillation:
            parameters += (architecture.widths[3] + 1) * self.classes
        return parameters, macs

    @property
    def identity(self) -> dict[str, str]:
        """Another one where the same subnet has other metrics, by what they come from."""
        tables = {name: f"{t} {sorted(t.blocks.items())}" for name, t in self._every.items()}
        sources = {"space": self.space.to_json(), "classes": f"{self.classes} {self.distillation}"} | tables
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in sources.items()}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """ "1.92 M parameters, 48.1 M macs, latency 3.05 ms", for people."""
        return ", ".join(self.quantity(name, value) for name, value in metrics.items())

    def quantity(self, name: str, value: float) -> str:
        """One metric with its unit."""
        unit = self.units.get(name, "")
        return f"{value:.4g} {unit} {name}" if name in UNITS else f"{name} {value:.4g} {unit}".rstrip()


@cache
def _count(shape: BlockShape) -> tuple[int, int]:
    """Parameters and multiply-adds of a block, with what the whole model has around it."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer = _layer(shape).eval()
        channels = shape.sizes["in"]
        if shape.kind == "head":
            layer(torch.empty(1, channels))
        else:
            layer(torch.empty(1, channels, shape.height, shape.width))
    parameters = sum(p.numel() for p in layer.parameters())
    if shape.kind in ("ffn", "attention"):
        parameters += channels  # of the layer scale
    elif shape.kind == "head":
        parameters += 2 * channels  # of the BatchNorm before the classifiers
    return parameters, counter.get_total_flops() // 2


def _layer(shape: BlockShape) -> nn.Module:
    sizes, size = shape.sizes, (shape.height, shape.width)
    match shape.kind:
        case "stem":
            return StemLayer(sizes["in"], sizes["out"])
        case "conv":
            return ConvDownsampleLayer(sizes["in"], sizes["out"])
        case "attention_downsample":
            return AttentionDownsampleLayer(sizes["in"], sizes["out"], size)
        case "attention":
            return AttentionLayer(sizes["in"], size, stride=2 if shape.options["stride"] == 2 else 1)
        case "ffn":
            return FFNLayer(sizes["in"], sizes["hidden"])
        case _:
            assert shape.kind == "head"
            return nn.Linear(sizes["in"], sizes["out"])
