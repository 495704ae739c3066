"""Time an optimised model block by block."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effv2_kernels.cpu import native
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.explain import explain_part
from effv2_kernels.model import OptimizedModel
from effv2_kernels.tables import shape_text, text_table

_PEAK_MILLISECONDS = 100.0


@dataclass(frozen=True)
class TimeRow:
    """One block; times and work are those of the whole batch."""

    block: str
    source: str
    input: tuple[int, ...]  # (channels, height, width)
    output: tuple[int, ...]
    milliseconds: float  # median over the repeats
    gflop: float

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.gflop / self.milliseconds * 1e3 if self.milliseconds > 0 else float("nan")


@dataclass(frozen=True)
class Profile:
    """What ``profile`` returns; printing it gives a table."""

    rows: tuple[TimeRow, ...]
    isa: str
    threads: int
    batch: int
    peak_gflops: float  # fp32 multiply-adds in registers, measured with these threads in the same run

    @property
    def milliseconds(self) -> float:
        """Of all blocks."""
        return sum(row.milliseconds for row in self.rows)

    @property
    def gflop(self) -> float:
        """Of all blocks, for the batch."""
        return sum(row.gflop for row in self.rows)

    def share_of_peak(self, row: TimeRow | None = None) -> float:
        """Between 0 and 1, of one block or of the whole network."""
        gflop, milliseconds = (row or self).gflop, (row or self).milliseconds
        return gflop / milliseconds * 1e3 / self.peak_gflops if milliseconds > 0 else float("nan")

    def __str__(self) -> str:
        body = [
            (
                row.block,
                row.source or "(whole model)",
                shape_text(row.input),
                shape_text(row.output),
                f"{row.milliseconds:.3f}",
                f"{row.milliseconds / self.milliseconds:.1%}",
                f"{row.gflops:.1f}",
                f"{self.share_of_peak(row):.1%}",
            )
            for row in self.rows
        ]
        rate = self.gflop / self.milliseconds * 1e3
        total = ("total", f"{len(self.rows)} blocks", "", "", f"{self.milliseconds:.3f}", "100.0%")
        body.append((*total, f"{rate:.1f}", f"{self.share_of_peak():.1%}"))
        header = ("block", "source", "input", "output", "ms", "time", "GFLOP/s", "of peak")
        return (
            f"ISA {self.isa}, fp32, {self.threads} threads, batch {self.batch}; "
            f"peak {self.peak_gflops:.0f} GFLOP/s, measured in this run\n" + text_table(header, body, left=4)
        )


def profile(model: nn.Module, images: Tensor, *, repeats: int = 10, warmup: int = 2) -> Profile:
    """Run the model and time every block: milliseconds, GFLOP/s and share of the machine's peak.

    model: what ``optimize`` or ``load`` returned. images: (N, C, H, W) float32. repeats: timed runs, of
    which the median of each block counts; warmup: runs before them.

    Raises ModelError for any other module and InputError for images that the model does not take.
    """
    if not isinstance(model, OptimizedModel):
        raise ModelError(
            f"profile() takes what optimize() returned, but got {type(model).__name__}. Of a larger module, "
            f"give the optimised network inside, with the images that it gets there."
        )
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats must be at least 1 and warmup not negative; got {repeats} and {warmup}.")
    threads = min(model.threads or torch.get_num_threads(), native().usable_cpus())
    engine = model.engine
    runs = [engine.profile(images, threads) for _ in range(warmup + repeats)][warmup:]
    seconds = [statistics.median(times) for times in zip(*runs, strict=True)]
    batch = images.shape[0]
    rows = [
        TimeRow(row.block, row.source, row.input, row.output, time * 1e3, row.gflop * batch)
        for row, time in zip(
            explain_part("", model, (images.shape[2], images.shape[3])), seconds, strict=True
        )
    ]
    peak = native().measure_peak(engine.isa, threads, _PEAK_MILLISECONDS)
    return Profile(tuple(rows), engine.isa, threads, batch, peak)
