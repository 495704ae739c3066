"""What a GPU is like, in the figures that the order of tiles is made of."""

from __future__ import annotations

from dataclasses import dataclass

# Bytes of shared memory that one program can have, by compute capability (CUDA C++ programming guide,
# technical specifications by compute capability).
SHARED_BYTES = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    120: 101376,
}

# Threads of a warp, on every NVIDIA GPU.
WARP = 32

# Rows of the output that a warp's instruction of the tensor cores makes (PTX: mma.m16n8k16).
WARP_ROWS = 16


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    multiprocessors: that run programs beside each other.
    schedulers: of a multiprocessor, each issuing one instruction of a warp in a cycle.
    dependent: cycles from one instruction of a warp to the next, on average, when it runs alone.
    latency: cycles of a load from the level-2 cache and a barrier.
    products: multiply-adds of half precision in a warp's instruction of the tensor cores.
    sums: registers of a thread that accumulators may take; the others hold addresses and the left factor.
    """

    multiprocessors: int
    schedulers: int
    dependent: float
    latency: float
    products: int
    sums: int

    def cycles(self, instructions: float, programs: int, warps: int) -> float:
        """Of the busiest multiprocessor, where each of a program's warps takes so many instructions."""
        of_scheduler = -(-programs // self.multiprocessors) * warps / self.schedulers
        return instructions * max(self.dependent, of_scheduler)


# H100 SXM, and H200 with the same chip. NVIDIA H100 Tensor Core GPU Architecture has its multiprocessors and
# schedulers; products: of mma.m16n8k16, in which costs are counted; dependent, latency: rough averages; sums:
# kernels with more of them spill.
H100 = Gpu(multiprocessors=132, schedulers=4, dependent=3, latency=600, products=16 * 8 * 16, sums=128)

# The GPU that the order of tiles is made for; smaller ones like large tiles even more.
MODEL = H100
