"""The cores of a Pixel 6, whose CPU is the Tensor G1: what the model of its latency assumes of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """width: instructions decoded in a cycle. multiply_adds: of 16 bytes, issued in a cycle.

    Both as Arm describes these cores, and not above what LLVM's models allow. gigabytes: read from memory in
    a second by one of them, low for what such cores reach.
    """

    name: str
    model: str  # llvm-mca's name for it, or for its twin in servers
    count: int  # in the phone
    gigahertz: float
    width: int
    multiply_adds: int
    gigabytes: float


CORES = {
    core.name: core
    for core in (
        Core("Cortex-X1", "neoverse-v1", 2, 2.80, 5, 4, 15),
        Core("Cortex-A76", "neoverse-n1", 2, 2.25, 4, 2, 10),
        Core("Cortex-A55", "cortex-a55", 4, 1.80, 2, 1, 3),
    )
}
