"""How the CPU engine divides the work of a network among threads: counted, not timed, on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from effv2_kernels import blocks, cpu
from effv2_kernels.errors import InputError, UnknownNameError

# Instruction sets whose panels and tiles are counted, whatever this processor has.
ISAS = ("avx2", "avx512")

# Beyond any machine, and of images more than four for each of its threads.
MOST_THREADS = 4096
MOST_IMAGES = 1 << 20

# What a meeting of a team is taken to cost, in multiply-adds: a few microseconds of one core.
MEETING = 100_000


@dataclass(frozen=True)
class Division:
    """What the threads spend on a batch, in multiply-adds of products and depthwise convolutions.

    Those that only fill vectors up count, since they take the same time. Windows at the edge of a map have
    fewer than ``needed`` says, so that one thread may do a little less than that.
    """

    threads: int
    images: int
    needed: int  # by the definition of the blocks
    once: int  # by one thread alone
    done: int  # by all threads together
    busiest: int  # by the busiest thread of every block, added up over the blocks
    meetings: int  # that a thread takes part in

    @property
    def share(self) -> float:
        """The busiest thread's part of what is needed; 1 / threads were best."""
        return self.busiest / self.needed

    @property
    def twice(self) -> float:
        """Work that threads do beside each other, as a part of what one thread does."""
        return self.done / self.once - 1

    @property
    def meetings_per_image(self) -> float:
        """For each of the images that a thread has a part in."""
        return self.meetings / max(1.0, self.images / self.threads)

    @property
    def cost(self) -> int:
        """The busiest thread's work and its meetings, in multiply-adds."""
        return self.busiest + MEETING * self.meetings

    @property
    def speedup(self) -> float:
        """Times as fast as one thread, as far as multiply-adds and meetings say."""
        return self.needed / self.cost


class Counter:
    """A network whose work is counted, by the panels and tiles of an instruction set.

    Raises UnknownNameError for one that nothing counts.
    """

    def __init__(self, network: blocks.Network, isa: str) -> None:
        if isa not in ISAS:
            raise UnknownNameError.of("ISA", isa, ISAS)
        self._network = cpu.native().Network.counting(isa)
        cpu.add_blocks(self._network, network)
        self._alone: dict[tuple[int, int], list[int]] = {}  # by size: what one thread does

    def blocks(self, height: int, width: int, threads: int, images: int = 1) -> list[Division]:
        """Of each block; sizes in pixels. InputError without images or threads, or for too many."""
        if threads < 1 or images < 1:
            raise InputError(f"expected at least one thread and image, but got {threads} and {images}.")
        if threads > MOST_THREADS or images > MOST_IMAGES:
            raise InputError(
                f"the work of at most {MOST_THREADS} threads and {MOST_IMAGES} images is counted, but got "
                f"{threads} and {images}."
            )
        by_thread = self._network.count(images, height, width, threads)
        if (height, width) not in self._alone:
            counts = self._network.count(1, height, width, 1)[0]
            self._alone[height, width] = [work for work, _ in counts]
        alone = self._alone[height, width]
        needed = self._network.block_macs(height, width)
        divisions = []
        for by_rank, once, macs in zip(zip(*by_thread, strict=True), alone, needed, strict=True):
            work, meetings = zip(*by_rank, strict=True)
            divisions.append(
                Division(threads, images, images * macs, images * once, sum(work), max(work), max(meetings))
            )
        return divisions

    def whole(self, height: int, width: int, threads: int, images: int = 1) -> Division:
        """Of the network: threads wait for each other behind every block."""
        parts = self.blocks(height, width, threads, images)
        totals = (
            sum(getattr(part, name) for part in parts)
            for name in ("needed", "once", "done", "busiest", "meetings")
        )
        return Division(threads, images, *totals)


def divisions(
    network: blocks.Network, isa: str, size: tuple[int, int], threads: Sequence[int]
) -> Iterator[tuple[Division, Division]]:
    """For each number of threads: of one image, and of a batch of four images for each thread."""
    counter = Counter(network, isa)
    for count in threads:
        yield counter.whole(*size, count), counter.whole(*size, count, 4 * count)
