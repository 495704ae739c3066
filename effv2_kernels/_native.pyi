"""The compiled engine: plain addresses, sizes and strides; nothing here knows Torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

class NativeError(Exception): ...  # re-raised by Python code as one of effv2_kernels.errors
class OverflowError(NativeError): ...  # a value went beyond what the format holds

def isas() -> list[str]: ...  # compiled in, best first: ["avx512", "avx2", "scalar"]
def available_isas() -> list[str]: ...  # those this CPU and operating system can run
def formats(isa: str) -> list[str]: ...  # that it has, e.g. ["fp32", "bf16"]
def kinds() -> list[str]: ...  # of blocks that it runs
def default_isa() -> str: ...  # EFFV2_FORCE_ISA or the best available one; NativeError on a bad name
def cpu_name() -> str: ...
def usable_cpus() -> int: ...  # processors this process may run on
def pretend_cpus(count: int) -> None: ...  # for tests: how many usable_cpus() says from now on; 0 ends it

# Whether the values of all the dictionaries, one after the other, are these very objects.
def same_objects(expected: tuple[object, ...], dictionaries: tuple[dict[str, Any], ...]) -> bool: ...
def measure_peak(isa: str, threads: int, milliseconds: float) -> float: ...  # fp32 FMA GFLOP/s

class Network:
    """A network of blocks with packed weights. Calls may come from several threads at once."""

    # weight_bytes: about how much there will be; large networks are packed into large pages of memory.
    # format: what weights, images and outputs are kept in.
    def __init__(self, isa: str, weight_bytes: int = 0, format: str = "fp32") -> None: ...
    # For count() alone: with the panels and tiles of an ISA, "avx2" or "avx512", on any processor.
    @staticmethod
    def counting(isa: str) -> Network: ...
    # For each thread and block: (multiply-adds, meetings of its team) of a batch of such images. Only a
    # network for counting counts multiply-adds.
    def count(self, images: int, height: int, width: int, threads: int) -> list[list[tuple[int, int]]]: ...
    # tensors: float32, C-contiguous numpy arrays by the field names of effv2_kernels.blocks.
    def add(
        self, kind: str, tensors: dict[str, np.ndarray[Any, Any]], options: dict[str, int | str]
    ) -> None: ...
    # Return the output of the block added last as a feature, scaled and shifted if given.
    def add_feature(
        self, scale: np.ndarray[Any, Any] | None = None, shift: np.ndarray[Any, Any] | None = None
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    # (channels, height, width) that each block returns for an input of this size; a head: (classes, 1, 1).
    # Raises NativeError where an attention bias does not fit.
    def block_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]: ...
    # multiply-adds of each block (one image)
    def block_macs(self, height: int, width: int) -> list[int]: ...
    # Outputs: (N, H, W, C) contiguous float32 each (a channels_last tensor), or (N, classes).
    # Strides in elements. threads is capped at usable_cpus(). stop: run so many blocks only, and return the
    # output of the last of them; 0 is all. Releases the GIL.
    def run(
        self,
        input_address: int,
        shape: Sequence[int],  # N, C, H, W
        strides: Sequence[int],
        output_addresses: Sequence[int],
        threads: int,
        stop: int = 0,
    ) -> None: ...
    # Like run, and returns the seconds spent in each block (the slowest thread's), summed over the batch.
    def profile(
        self,
        input_address: int,
        shape: Sequence[int],
        strides: Sequence[int],
        output_addresses: Sequence[int],
        threads: int,
    ) -> list[float]: ...
