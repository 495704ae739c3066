"""What a program of a kernel takes of a GPU, and what GPUs have of it."""

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


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel takes."""

    registers: int  # of each thread
    stack: int  # bytes of each thread: spilled registers
    shared: int  # bytes

    def fits(self, capability: int) -> bool:
        return self.stack == 0 and self.shared <= SHARED_BYTES[capability]
