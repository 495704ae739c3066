"""A model of the time that a network takes on a Pixel 6. Nothing here was measured on one.

Every block of instructions that was executed is given the cycles of llvm-mca's model of the core, run behind
itself, and no fewer than it takes to decode its instructions and to issue its multiply-adds. To these cycles
at the core's clock comes the reading of all weights, once for each image, as if nothing else was done
meanwhile. Maps are taken to be in the near caches, branches to be predicted, and the clock to stay at its
highest.

With four threads, two X1 and two A76 divide an image in proportion to their speeds, which is what taking it
part by part comes to; a share of the work is done twice, and threads meet.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.aarch64 import llvm
from bench.aarch64.cores import CORES, Core
from bench.aarch64.instructions import Block

# Blocks beyond those that make up so much of what was executed are given one cycle for each instruction.
MODELLED = 0.99
ROUNDS = 30  # filling the pipeline counts: blocks do not run for ever
# Four threads: what the busiest has beyond a fourth, and how often they meet, for S0 (by the command
# `scaling`); a meeting is a few accesses to memory of another core.
DONE_TWICE = 0.036
MEETINGS = 46
SECONDS_OF_MEETING = 1e-6
SHARED_GIGABYTES = 20.0  # read in a second by all cores together
BYTES = {"fp32": 4, "fp16": 2}
TEAM = (CORES["Cortex-X1"], CORES["Cortex-X1"], CORES["Cortex-A76"], CORES["Cortex-A76"])


def cycles(blocks: Sequence[Block], core: Core) -> float:
    """Of a whole image on a core. blocks: those with the most instructions first."""
    total = sum(block.weight for block in blocks)
    chosen: list[Block] = []
    covered = 0
    for block in blocks:
        if covered >= MODELLED * total:
            break
        chosen.append(block)
        covered += block.weight
    modelled = llvm.cycles([block.words for block in chosen], core.model, ROUNDS)
    return (
        total
        - covered
        + sum(
            block.executions * cycles_of(core, len(block.words), block.multiply_adds, found)
            for block, found in zip(chosen, modelled, strict=True)
        )
    )


def cycles_of(core: Core, instructions: int, multiply_adds: int, modelled: float) -> float:
    """Of one round of a block."""
    return max(modelled, instructions / core.width, multiply_adds / core.multiply_adds)


def alone(core: Core, cycles: float, weight_bytes: float) -> float:
    """Seconds of one thread."""
    return cycles / (core.gigahertz * 1e9) + weight_bytes / (core.gigabytes * 1e9)


def together(cycles: dict[str, float], weight_bytes: float) -> float:
    """Seconds of four threads; cycles: by the names of cores."""
    speed = sum(core.gigahertz * 1e9 / cycles[core.name] for core in TEAM)
    computed = (1 + DONE_TWICE) / speed
    return computed + MEETINGS * SECONDS_OF_MEETING + weight_bytes / (SHARED_GIGABYTES * 1e9)
