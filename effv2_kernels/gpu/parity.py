"""Whether kernels compute the right thing on the GPU at hand: run once, against the float64 reference.

With random weights, not the user's: a layer scale of nearly nothing would hide whatever is behind it, and
what was found is kept for every model with kernels of the same sizes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from effv2_kernels import blocks, bounds
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.findings import CHECK_SECONDS, Budget, Findings
from effv2_kernels.gpu.kernels import Kernels
from effv2_kernels.gpu.launch import FeatureMap, Launch, Tile
from effv2_kernels.gpu.one_launch import OneLaunchPlan
from effv2_kernels.gpu.packing import Packed
from effv2_kernels.gpu.plan import as_output
from effv2_kernels.reference import run_block
from effv2_kernels.reference.network import run
from effv2_kernels.shapes import BlockShape, random_block

# A value may be so many times as far from the exact one as all are on average: a large one, rounded, is.
_ALONE = 32

# Values of maps of the reference at a time, 8 bytes each: large batches are compared in parts.
_VALUES = 1 << 24

# Of random weights, see ``shapes.random_block``: with these, rounding to bfloat16 leaves a quarter of a
# block's bound, and through a whole network maps keep their size and softmax remains one.
_SPREAD, _BRANCH = 0.25, 0.25

_SEED = 20221216


# Of images in float64, part of a batch.
Exact: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """error: the relative L2 error that was found, NaN where values are missing; None where nothing was run.

    why_not: why it was not run, or failed to.
    """

    error: float | None
    bound: float
    why_not: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.bound

    @property
    def failed(self) -> bool:
        """Whether it was run and is wrong."""
        return self.error is not None and not self.passed

    def __str__(self) -> str:
        if self.error is None:
            return f"not checked: {self.why_not}"
        if self.why_not:
            return f"cannot be launched: {self.why_not}"
        if self.passed:
            return f"checked: relative error {self.error:.1e}"
        return f"failed its check: relative error {self.error:.1e}, and rounding explains {self.bound:g}"


@dataclass(frozen=True)
class Subject:
    """The network whose kernels are checked: the shape of each block, and its outputs.

    shapes: of each block. scaled: its outputs, by the number of their block, and the channels of those with a
    scale and shift, else None.
    """

    shapes: Sequence[BlockShape]
    scaled: Sequence[tuple[int, int | None]]


class Checks:
    """Those of one plan: each is made once and kept, and none is begun that would overdraw the ``budget``.

    Not to be made while a CUDA graph is captured.
    """

    def __init__(
        self,
        kernels: Kernels,
        subject: Subject,
        findings: Findings,
        dtype: torch.dtype,
        device: torch.device,
        budget: Budget,
    ) -> None:
        self._kernels, self._subject, self._findings = kernels, subject, findings
        self._dtype, self._device = dtype, device
        self._budget, self._until = budget, 0.0

    def known(self, key: str, launches: type[Launch], bound: float) -> Verdict | None:
        """What was found before, or in this process; None where nothing was."""
        error = self._findings.errors(launches).number(key)
        if error is not None:
            return Verdict(error, bound)
        refused = self._findings.refused.get(key)
        return None if refused is None else Verdict(math.nan, bound, refused)

    def of_block(
        self, number: int, alternative: Alternative, tiles: Sequence[Tile], precision: str
    ) -> Verdict:
        """Of an alternative of a block with these tiles."""

        def subject() -> tuple[Packed, Exact]:
            generator = torch.Generator().manual_seed(_SEED)
            block = random_block(self._subject.shapes[number], generator, spread=_SPREAD)
            packed = self._kernels.pack(block, self._dtype, self._device)
            return packed, lambda part: run_block(block, part)

        return self._of_one(alternative, tiles, precision, subject)

    def of_scale(self, alternative: Alternative, tiles: Sequence[Tile], precision: str) -> Verdict:
        """Of the scale and shift of an output."""

        def subject() -> tuple[Packed, Exact]:
            generator = torch.Generator().manual_seed(_SEED)
            feature = _random_scale(0, _input_of(alternative).channels, generator)
            assert feature.scale is not None
            assert feature.shift is not None
            scale, shift = (
                v.to(self._device).double().view(-1, 1, 1) for v in (feature.scale, feature.shift)
            )
            packed = self._kernels.pack_feature(feature, self._device)
            return packed, lambda part: scale * part + shift

        return self._of_one(alternative, tiles, precision, subject)

    def _of_one(
        self,
        alternative: Alternative,
        tiles: Sequence[Tile],
        precision: str,
        subject: Callable[[], tuple[Packed, Exact]],
    ) -> Verdict:
        """subject: makes what is run, and what it is compared with; not called where the verdict is known."""

        def check() -> float:
            x = _input_of(alternative)
            packed, expected = subject()
            made = packed.alternatives(x, precision)
            launches = next(other.launches for other in made if other.name == alternative.name)
            image = self._images(x)
            memory = {m: self._poisoned(m) for launch in launches for m in launch.written} | {x: image}
            for launch, tile in zip(launches, tiles, strict=True):
                launch.run(tile, memory)
            y = as_output(launches[-1].output, memory[launches[-1].output])
            step = max(1, _VALUES * x.images // sum(m.elements for m in memory))
            return self._error([y], image, step, lambda part: [expected(part)])

        return self._checked(alternative.key(tiles), type(alternative.launches[0]), bounds.HALF_BLOCK, check)

    def of_one_launch(self, plan: OneLaunchPlan, precision: str) -> Verdict:
        """Of the launch as a whole, twice: what the first one left must not disturb the second."""

        def check() -> float:
            generator = torch.Generator().manual_seed(_SEED)
            network = _random_network(self._subject, generator)
            packed = [self._kernels.pack(block, self._dtype, self._device) for block in network.blocks]
            outputs = [
                (f.block, None if f.scale is None else self._kernels.pack_feature(f, self._device))
                for f in network.features
            ]
            made = OneLaunchPlan(packed, plan.image, outputs, precision, self._device)
            control, image = made.new_control(), self._images(plan.image)
            worst = 0.0
            for _ in range(2):
                arena = torch.full((made.bytes,), 255, dtype=torch.uint8, device=self._device)
                y = made.joined.run(image, arena, control, [self._poisoned(m) for m in made.outputs])
                error = self._error(y, image, 1, lambda part: _as_list(run(network, part)))
                worst = max(worst, error) if error == error else error
            return worst

        return self._checked(plan.key, type(plan.launches[0]), bounds.HALF_NETWORK, check)

    def _checked(self, key: str, launches: type[Launch], bound: float, check: Callable[[], float]) -> Verdict:
        known = self.known(key, launches, bound)
        if known is not None:
            return known
        # Another one may take as long as the longest so far.
        if self._budget.left <= self._budget.longest:
            return Verdict(None, bound, _OVER)
        started = time.monotonic()
        self._until = started + self._budget.left
        try:
            with _undisturbed(self._device):
                error = check()
        except torch.OutOfMemoryError:
            return Verdict(None, bound, "there was too little free memory for it")
        except _Over:
            return Verdict(None, bound, _OVER)
        except UnavailableError as refused:
            # Of this process, perhaps: the next one tries again.
            self._findings.refused[key] = str(refused)
            return Verdict(math.nan, bound, str(refused))
        except RuntimeError as failure:
            # A kernel that fails takes the process's GPU along: no other process is to try it.
            self._findings.errors(launches).add({key: "nan"})
            raise UnavailableError(
                f"the check of a kernel failed ({key}): {failure}. Where the GPU answers nothing more, start "
                f"the process again: this kernel will not be used then. Please report this."
            ) from failure
        finally:
            took = time.monotonic() - started
            self._budget.left -= took
            self._budget.longest = max(self._budget.longest, took)
        self._findings.errors(launches).add({key: f"{error:.3e}"})
        return Verdict(error, bound)

    def _error(
        self,
        found: Sequence[Tensor],
        images: Tensor,
        step: int,
        expected: Callable[[Tensor], Sequence[Tensor]],
    ) -> float:
        """The largest of all outputs; NaN where one is not finite. step: images at a time.

        A value that is wrong by itself counts by ``_ALONE`` times less, where that is more than what it adds
        to the L2 norm: of a large map, that hides a whole tile.
        """
        off, size, farthest = ([0.0] * len(found) for _ in range(3))
        for first in range(0, len(images), step):
            if time.monotonic() > self._until:
                raise _Over
            for i, exact in enumerate(expected(images[first : first + step].double())):
                difference = found[i][first : first + step].double().view_as(exact) - exact
                off[i] += float(difference.square().sum())
                size[i] += float(exact.square().sum())
                farthest[i] = max(farthest[i], float(difference.abs().max()) ** 2 * found[i].numel())
        errors = [
            math.sqrt(max(o, f / _ALONE**2) / s) if o else 0.0
            for o, f, s in zip(off, farthest, size, strict=True)
        ]
        return max(errors) if all(map(math.isfinite, errors)) else math.nan

    def _images(self, m: FeatureMap) -> Tensor:
        """Standard normal, (N, C, H, W) in the layout of m."""
        generator = torch.Generator(device=self._device).manual_seed(_SEED)
        sizes = (m.images, m.channels, m.height, m.width)
        made = torch.randn(sizes, generator=generator, device=self._device).to(self._dtype)
        return made if m.strides else made.contiguous(memory_format=torch.channels_last)

    def _poisoned(self, m: FeatureMap) -> Tensor:
        return torch.full((m.elements,), math.nan, dtype=m.dtype, device=self._device)


_OVER = f"the {CHECK_SECONDS:g} seconds for checks were over"


class _Over(Exception):
    """The time for checks is over."""


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """By whatever modes the caller is in; random weights are made on the CPU."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.device("cpu"),
    ):
        yield


def _input_of(alternative: Alternative) -> FeatureMap:
    """The map that the block is run on."""
    made = {m for launch in alternative.launches for m in launch.written}
    arguments = (v for launch in alternative.launches for v in launch.arguments.values())
    return next(v for v in arguments if isinstance(v, FeatureMap) and v not in made)


def _random_network(subject: Subject, generator: torch.Generator) -> blocks.Network:
    made = tuple(random_block(shape, generator, spread=_SPREAD, branch=_BRANCH) for shape in subject.shapes)
    features = []
    for number, channels in subject.scaled:
        features.append(
            blocks.Feature(number) if channels is None else _random_scale(number, channels, generator)
        )
    return blocks.Network(made, ("",) * len(made), tuple(features))


def _random_scale(number: int, channels: int, generator: torch.Generator) -> blocks.Feature:
    scale = torch.rand(channels, generator=generator) + 0.5
    return blocks.Feature(number, scale, torch.randn(channels, generator=generator))


def _as_list(outputs: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
