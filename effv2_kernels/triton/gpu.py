"""What a GPU is like, in the figures that the order of tiles is made of."""

from __future__ import annotations

from dataclasses import dataclass

# Threads of a warp, on every NVIDIA GPU.
WARP = 32

# Registers that a thread can have.
_MOST_REGISTERS = 255

# Rows of the output that a warp's instruction of the tensor cores makes (PTX: mma.m16n8k16).
WARP_ROWS = 16


@dataclass(frozen=True)
class Work:
    """What one program of a kernel does.

    instructions: of each of its ``warps``. waits: for memory, one after the other, in ``Gpu.latency``. bytes:
    that it loads. registers: of each thread. shared: bytes of shared memory.
    """

    instructions: float
    waits: float
    bytes: float
    warps: int
    registers: float
    shared: int


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    multiprocessors: that run programs beside each other, each as many as fit into its ``registers``,
    ``shared`` bytes and ``warps``, and ``programs`` at most.
    schedulers: of a multiprocessor, each issuing one instruction of a warp in a cycle.
    products: multiply-adds of half precision on tensor cores that take as long as an instruction of a warp.
    dependent: cycles from one instruction of a warp to the next, on average, when it runs alone.
    latency: cycles that a warp waits for a load.
    loads: bytes that come to a multiprocessor in a cycle.
    sums: registers of a thread that accumulators may take; the others hold addresses and the left factor.
    """

    multiprocessors: int
    registers: int
    shared: int
    warps: int
    programs: int
    schedulers: int
    products: float
    dependent: float
    latency: float
    loads: float
    sums: int

    def cycles(self, work: Work, programs: int) -> float:
        """Of the busiest multiprocessor, for so many programs: whichever of three things takes longest."""
        share = -(-programs // self.multiprocessors)
        issuing = share * work.warps * work.instructions / self.schedulers
        alone = work.instructions * self.dependent + work.waits * self.latency
        return max(issuing, -(-share // self._together(work)) * alone, share * work.bytes / self.loads)

    def _together(self, work: Work) -> int:
        """How many programs a multiprocessor runs at once."""
        by_registers = self.registers // (min(work.registers, _MOST_REGISTERS) * work.warps * WARP)
        by_shared = self.shared // max(1, work.shared)
        fitting = min(by_registers, by_shared, self.warps // work.warps)
        return max(1, min(int(fitting), self.programs))


# H100 SXM, and H200 with the same chip. What the chip has is from NVIDIA H100 Tensor Core GPU Architecture;
# products, dependent, latency and loads make the best order of 3823 tiles that were timed on one, see
# ``ranking``; kernels with more sums spill.
H100 = Gpu(
    multiprocessors=132, registers=65536, shared=227 * 1024, warps=64, programs=32, schedulers=4,
    products=90, dependent=2.7, latency=170, loads=9, sums=128,
)  # fmt: skip

# The GPU that the order of tiles is made for; smaller ones like large tiles even more.
MODEL = H100
