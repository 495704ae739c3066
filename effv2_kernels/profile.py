"""Time an optimised model block by block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from effv2_kernels.engine import Timing
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.explain import explain_part
from effv2_kernels.inputs import check_images, whole_number
from effv2_kernels.model import OptimizedModel
from effv2_kernels.tables import shape_text, text_table


@dataclass(frozen=True)
class TimeRow:
    """One block; times and work are those of the whole batch."""

    block: str
    source: str
    input: tuple[int, ...]  # (channels, height, width)
    output: tuple[int, ...]
    milliseconds: float  # median over the repeats
    gflop: float
    megabytes: float | None = None  # on a GPU: what its launches read and write, each buffer once

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.gflop / self.milliseconds * 1e3 if self.milliseconds > 0 else float("nan")


@dataclass(frozen=True)
class Profile:
    """What ``profile`` returns; printing it gives a table."""

    rows: tuple[TimeRow, ...]
    isa: str
    dtype: str
    threads: int | None  # None on a GPU
    batch: int
    # Measured in the same run: on the CPU multiply-adds in registers with these threads, on a GPU PyTorch's
    # matrix product and copy.
    peak_gflops: float
    peak_gbytes: float | None = None  # GB/s, on a GPU

    @property
    def milliseconds(self) -> float:
        """Of all blocks."""
        return sum(row.milliseconds for row in self.rows)

    @property
    def gflop(self) -> float:
        """Of all blocks, for the batch."""
        return sum(row.gflop for row in self.rows)

    @property
    def megabytes(self) -> float | None:
        """Of all blocks, for the batch; None on the CPU."""
        found = [row.megabytes for row in self.rows if row.megabytes is not None]
        return sum(found) if found else None

    def share_of_peak(self, row: TimeRow | None = None) -> float:
        """Between 0 and 1, of one block or of the whole network; on a GPU of the peak that is nearer."""
        of = row or self
        if of.milliseconds <= 0:
            return float("nan")
        shares = [of.gflop / self.peak_gflops]
        if of.megabytes is not None and self.peak_gbytes is not None:
            shares.append(of.megabytes / 1e3 / self.peak_gbytes)
        return max(shares) / of.milliseconds * 1e3

    def __str__(self) -> str:
        on_gpu = self.peak_gbytes is not None

        def figures(of: TimeRow | Profile) -> tuple[str, ...]:
            rates = [of.gflop, *([of.megabytes / 1e3] if of.megabytes is not None else [])]
            return (
                f"{of.milliseconds:.3f}",
                f"{of.milliseconds / self.milliseconds:.1%}",
                *(f"{work / of.milliseconds * 1e3:.1f}" for work in rates),
                f"{self.share_of_peak(of if isinstance(of, TimeRow) else None):.1%}",
            )

        body = [
            (
                row.block,
                row.source or "(whole model)",
                shape_text(row.input),
                shape_text(row.output),
                *figures(row),
            )
            for row in self.rows
        ]
        body.append(("total", f"{len(self.rows)} blocks", "", "", *figures(self)))
        header = (
            "block",
            "source",
            "input",
            "output",
            "ms",
            "time",
            "GFLOP/s",
            *["GB/s"] * on_gpu,
            "of peak",
        )
        if on_gpu:
            run = f"{self.isa}, {self.dtype}, batch {self.batch}, each launch timed on its own"
            peak = f"{self.peak_gflops:.0f} GFLOP/s and {self.peak_gbytes:.0f} GB/s"
        else:
            run = f"ISA {self.isa}, {self.dtype}, {self.threads} threads, batch {self.batch}"
            peak = f"{self.peak_gflops:.0f} GFLOP/s"
        return f"{run}; peak {peak}, measured in this run\n{text_table(header, body, left=4)}"


def profile(model: nn.Module, images: Tensor, *, repeats: int = 10, warmup: int = 2) -> Profile:
    """Run the model and time every block: milliseconds, GFLOP/s and share of the machine's peak.

    model: what ``optimize`` or ``load`` returned. images: (N, C, H, W) as the model takes them. repeats:
    timed runs, of which the median of each block counts; warmup: runs before them. On a GPU each launch is
    replayed by itself for a time of its own, on random numbers, so that both of these count for nothing.

    Raises ModelError for any other module, InputError for images that the model does not take, and
    UnavailableError where there is not enough memory.
    """
    if not isinstance(model, OptimizedModel):
        raise ModelError(
            f"profile() takes what optimize() returned, but got {type(model).__name__}. Of a larger module, "
            f"give the optimised network inside, with the images that it gets there."
        )
    repeats, warmup = whole_number(repeats, "repeats"), whole_number(warmup, "warmup")
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats must be at least 1 and warmup not negative; got {repeats} and {warmup}.")
    check_images(images)
    found = model.engine.profile(images, model.threads, repeats=repeats, warmup=warmup)
    return Profile(
        _rows(model, images, found),
        model.choice.isa,
        model.choice.dtype,
        found.threads,
        images.shape[0],
        found.peak_gflops,
        found.peak_gbytes,
    )


def _rows(model: OptimizedModel, images: Tensor, found: Timing) -> tuple[TimeRow, ...]:
    batch, _, *size = images.shape
    return tuple(
        TimeRow(row.block, row.source, row.input, row.output, time, row.gflop * batch, moved)
        for row, time, moved in zip(
            explain_part("", model, (size[0], size[1])), found.milliseconds, found.megabytes, strict=True
        )
    )
