"""A packed network, and its plans: what runs images of one shape, chosen, with tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from effv2_kernels import blocks
from effv2_kernels.engine import Progress
from effv2_kernels.errors import ResolutionError
from effv2_kernels.gpu import parity, tuning
from effv2_kernels.gpu.choice import Chooser, NetworkChoice
from effv2_kernels.gpu.comparison import Collector, compare_alternatives, compare_networks, part_of
from effv2_kernels.gpu.findings import Budget, findings_of
from effv2_kernels.gpu.kernels import Kernels
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.one_launch import OneLaunchPlan
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.gpu.plan import Choose, Plan, first
from effv2_kernels.gpu.resources import Resources
from effv2_kernels.inputs import fitting_sizes, misfit
from effv2_kernels.shapes import shape_of


@dataclass(frozen=True)
class Images:
    """What a plan is for.

    shape: (N, C, H, W). nhwc: whether in channels_last; else contiguous. precision: of products in float32,
    see ``Packed``. stop: run so many blocks only; 0 is all of them.
    """

    shape: torch.Size
    nhwc: bool
    precision: str
    stop: int = 0

    @classmethod
    def like(cls, x: Tensor, precision: str, stop: int = 0) -> Images:
        return cls(x.shape, x.is_contiguous(memory_format=torch.channels_last), precision, stop)

    def map(self, dtype: torch.dtype) -> FeatureMap:
        n, c, h, w = self.shape
        return FeatureMap(n, h, w, c, dtype, None if self.nhwc else (c * h * w, h * w, w, 1))


@dataclass(frozen=True)
class Made:
    """A plan that is ready to run.

    resources: of each launch; None where they are interpreted, or in one launch. network: whether it is one,
    None where kernels cannot be joined.
    """

    plan: Plan
    resources: Sequence[Resources | None]
    network: NetworkChoice | None = None


class Planner:
    """The blocks of a network with their weights on a device. Nothing here is to be called within a capture.

    packed: the blocks. outputs: indices of the blocks whose outputs are returned, each with the scale and
    shift to put on it, or None.
    """

    def __init__(
        self, network: blocks.Network, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._kernels, self._dtype, self._device = kernels, dtype, device
        self._sizes = fitting_sizes(network)
        self._shapes = [shape_of(block) for block in network.blocks]
        features = network.features or (blocks.Feature(len(network.blocks) - 1),)
        with torch.inference_mode(False), torch.no_grad():
            self.packed = [kernels.pack(block, dtype, device) for block in network.blocks]
            self.outputs = [
                (f.block, None if f.scale is None else kernels.pack_feature(f, device)) for f in features
            ]

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return sum(part.nbytes for part in [*self.packed, *filter(None, (f for _, f in self.outputs))])

    def outline(self, images: Images, choose: Choose = first) -> Plan:
        """The launches alone, with nothing compiled or checked unless ``choose`` does.

        Raises ResolutionError where an attention bias does not fit, and UnavailableError where no kernel can
        be used.
        """
        try:
            with torch.inference_mode(False):
                return Plan(*self._part(images), images.precision, choose)
        except ResolutionError as error:
            if self._sizes is None:
                raise
            raise misfit(self._sizes, *images.shape[2:]) from error

    def make(self, images: Images, budget: Budget | None = None) -> Made:
        """The plan that is the fastest as far as is known, compiled.

        budget: for checks; None is the process's.

        Raises as ``outline`` does, and torch.OutOfMemoryError.
        """
        findings, checks = findings_of(self._device), self._checks(images, budget)
        chooser = Chooser(checks, findings)
        plan = self.outline(images, chooser)
        chosen = tuning.ready(plan.launches, findings.tiles)
        plan.tiles = [tile for tile, _ in chosen]
        resources = [found for _, found in chosen]
        if not chooser.joinable:
            return Made(plan, resources)

        def one_launch() -> OneLaunchPlan:
            with torch.inference_mode(False):
                return OneLaunchPlan(*self._part(images), images.precision, self._device)

        network = NetworkChoice(checks, findings, plan, one_launch, images.precision, by_name=chooser.by_name)
        if network.is_one and network.one is not None:
            _ = network.one.joined  # not in the first call, which may be captured
            return Made(network.one, [None] * len(network.one.launches), network)
        return Made(plan, resources, network)

    def tune(self, x: Tensor, precision: str, progress: Progress) -> dict[str, dict[str, float]]:
        """Measure what there is to choose for images like x, and keep it; see ``Engine``."""
        images, findings, collected = Images.like(x, precision), findings_of(self._device), Collector()
        self.outline(images, collected)
        launches = [ln for _, alternatives in collected.found for a in alternatives for ln in a.launches]
        if not collected.is_choice:
            return tuning.measure(launches, findings.tiles, progress)
        times = tuning.measure(launches, findings.tiles, part_of(progress, 0.0, 0.8))
        # Who tunes has the time to check everything.
        unlimited = Budget(math.inf)
        chooser = Chooser(self._checks(images, unlimited), findings)
        compare_alternatives(collected, chooser, findings, precision, part_of(progress, 0.8, 0.95))
        progress("one launch", 0.95)
        network = self.make(images, unlimited).network
        if network is not None:
            compare_networks(network, findings, x)
        progress("done", 1.0)
        return times

    def _part(
        self, images: Images
    ) -> tuple[Sequence[Packed], FeatureMap, Sequence[tuple[int, Packed | None]]]:
        """What plans are made of."""
        image = images.map(self._dtype)
        if images.stop:
            return self.packed[: images.stop], image, [(images.stop - 1, None)]
        return self.packed, image, self.outputs

    def _checks(self, images: Images, budget: Budget | None) -> parity.Checks:
        packed, _, outputs = self._part(images)
        shapes = self._shapes[: len(packed)]
        scaled = [(i, None if feature is None else shapes[i].sizes["out"]) for i, feature in outputs]
        subject = parity.Subject(shapes, scaled)
        findings = findings_of(self._device)
        return parity.Checks(
            self._kernels, subject, findings, self._dtype, self._device, budget or findings.budget
        )
