"""Kernels that are not trusted, in plain PyTorch: what runs beside those that are, and can be made wrong."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from checks import NETWORK_BOUND, assert_close, exact_network, seeded
from models import TINY
from test_gpu_kernels import InPyTorch, WholeBlock, scaled

from effv2_kernels import sources
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import comparison, engine, parity, planner, tuning
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.engine import Engine
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.launch import Task
from effv2_kernels.gpu.mix import Mix
from effv2_kernels.gpu.plan import as_output
from effv2_kernels.reference import run_block


@dataclass(frozen=True, eq=False)
class UsualBlock(WholeBlock):
    """Trusted as it is."""

    backend: ClassVar[str] = "usual"
    compiler: ClassVar[str] = "usual-1"

    @property
    def name(self):
        return "usual"


def size_of(x):
    return f"{x.channels}x{x.height}x{x.width}"


class Usual(InPyTorch):
    def plan(self, x, precision):
        (made,) = super().plan(x, precision)
        values = {
            "arguments": {**made.arguments, "of": size_of(x)},
            "tiles": made.tiles,
            "output": made.output,
        }
        return [UsualBlock(made.compute, macs=0, **values)]


USUAL = SimpleNamespace(
    refusal=lambda block: None,
    pack=lambda block, dtype, device: Usual(lambda x: run_block(block, x)),
    pack_feature=lambda feature, device: Usual(scaled(feature)),
)


@dataclass(frozen=True, eq=False)
class RivalBlock(WholeBlock):
    """kind: of the block. breaks: what happens to an output, by the kind of its block."""

    backend: ClassVar[str] = "rival"
    compiler: ClassVar[str] = "rival-1"
    trusted: ClassVar[bool] = False
    breaks: ClassVar[dict] = {}
    ran: ClassVar[list] = []

    kind: str

    @property
    def name(self):
        return f"rival_{self.kind}"

    def run(self, tile, memory):
        self.ran.append(self.kind)
        super().run(tile, memory)
        if self.kind in self.breaks:
            self.breaks[self.kind](memory[self.output])

    @property
    def tile_in_one(self):
        return self.tiles[-1]

    @classmethod
    def join(cls, launches, image, outputs, device):
        return Joined(launches, image, outputs)


class Joined:
    """Launches one after the other, which it counts in its control memory."""

    blocks, bytes, control_bytes = 3, 128, 8
    breaks: ClassVar[list] = []

    def __init__(self, launches, image, outputs):
        self.launches, self.image, self.outputs = launches, image, outputs

    @property
    def tasks(self):
        return [
            Task(i, 0, range(i, i + 1), (range(i - 1, i),) if i else ()) for i in range(len(self.launches))
        ]

    def run(self, images, arena, control, outputs=None):
        control += 1
        memory = {self.image: images}
        memory |= {
            m: torch.full((m.elements,), torch.nan, dtype=m.dtype) for ln in self.launches for m in ln.written
        }
        for launch in self.launches:
            launch.run(launch.tile_in_one, memory)
        made = outputs or [memory[m] for m in self.outputs]
        for y, m in zip(made, self.outputs, strict=True):
            y.copy_(memory[m])
            for broken in self.breaks:
                broken(y, control)
        return [as_output(m, y) for m, y in zip(self.outputs, made, strict=True)]


class Rival(InPyTorch):
    def __init__(self, compute, kind):
        super().__init__(compute)
        self.kind = kind

    def plan(self, x, precision):
        return self.alternatives(x, precision)[0].launches

    def alternatives(self, x, precision):
        """Of an ffn there are two."""
        if x.images > 99:
            raise UnavailableError("of 99 images at most")
        ways = ("one way", "another") if self.kind == "ffn" else ("",)
        return [Alternative.of([self._launch(x, way)], way) for way in ways]

    def _launch(self, x, way):
        (launch,) = super().plan(x, "ieee")
        arguments = {**launch.arguments, "way": way, "of": size_of(x)}
        return RivalBlock(
            self.compute,
            arguments=arguments,
            tiles=launch.tiles,
            output=launch.output,
            macs=0,
            kind=self.kind,
        )


RIVALS = SimpleNamespace(
    refusal=lambda block: (
        "a head of others" if block.kind == "head" and block.linear.bias.numel() > 99 else None
    ),
    pack=lambda block, dtype, device: Rival(lambda x: run_block(block, x), block.kind),
    pack_feature=lambda feature, device: Rival(scaled(feature), "feature"),
)
MIX = Mix({"usual": USUAL, "rival": RIVALS})


NETWORK = sources.read(TINY.build(seeded(90)))
KINDS = [block.kind for block in NETWORK.blocks]


class Machine:
    """A GPU that nothing is known of yet, and kernels that are right."""

    def __init__(self, monkeypatch, folder):
        monkeypatch.setenv("EFFV2_CACHE_DIR", str(folder))
        monkeypatch.setattr(RivalBlock, "breaks", {})
        monkeypatch.setattr(RivalBlock, "ran", [])
        monkeypatch.setattr(Joined, "breaks", [])
        monkeypatch.setattr(planner, "findings_of", lambda device: self.findings)
        self.restart()

    def restart(self, driver="580.65"):
        """Another process on it, or one with another driver."""
        self.findings = Findings("NVIDIA Test 9000", driver)


class Clock:
    """What tune() measures, by a part of a launch's key; the rival is fast, but not in one launch.

    measured: the keys of what was.
    """

    def __init__(self, monkeypatch):
        self.times = {"usual": 2.0, "rival": 1.0, "one way": 3.0, "plan": 9.0, "one launch": 10.0}
        self.measured = []
        monkeypatch.setattr(engine, "require_gpu", lambda device: None)
        monkeypatch.setattr(tuning, "milliseconds", lambda launch, tile: 1.0 / tile.warps)
        monkeypatch.setattr(comparison, "milliseconds_of_launches", self._of_launches)
        monkeypatch.setattr(comparison, "milliseconds_of_plan", self._of_plan)

    def _of_launches(self, launches, tiles):
        self.measured.append(" ".join(launch.key for launch in launches))
        return [ms for name, ms in self.times.items() if name in self.measured[-1]][-1]

    def _of_plan(self, plan, images):
        self.measured.append(plan.key)
        return self.times["one launch" if "one launch" in plan.key else "plan"]


class Time:
    """Passes only while a rival runs. step: seconds that each of its launches takes."""

    def __init__(self, monkeypatch, step):
        RivalBlock.ran.clear()
        monkeypatch.setattr(parity.time, "monotonic", lambda: step * len(RivalBlock.ran))


def made(kernels=MIX):
    return Engine(NETWORK, kernels, torch.float32, torch.device("cpu"))


def images(batch=1):
    return TINY.images(seeded(91), batch)


def right(found, batch=1):
    """The engine, having computed the right thing."""
    (y,), (expected,) = found.run(images(batch)), exact_network(NETWORK, images(batch))
    assert_close(y, expected, NETWORK_BOUND)
    return found


def tuned(kernels=MIX, batch=1):
    found = made(kernels)
    shares = []
    found.tune(images(batch), lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    return found


def by(found):
    """What runs each block: its backend and way."""
    return [f"{d.backend} {d.way}".strip() for d in found.decisions(32, 32)]
