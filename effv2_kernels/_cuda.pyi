"""The kernels for NVIDIA GPUs: steps made of names and numbers; memory and streams are plain addresses.

Built with EFFV2_CUDA only. Imported, and asked anything but to run, without a GPU and a driver as well.
"""

from collections.abc import Sequence
from typing import Any

OFFSET_BITS: int  # of an address in a step; above them, the number of one of the launch's buffers
NETWORK_BYTES: int  # of shared memory, that the one launch takes beside a step's
BUFFERS: int  # how many buffers a launch can bring; the first is number 1
SHAPES: dict[str, list[str]]  # what the kernels of each kind are called, in the order of their numbers
emulated: bool  # False; of the module that tests have in this one's place, True
VERSION: str  # of CUDA: "13.0"
ARCHITECTURES: str  # compute capabilities that are compiled for: "80 86 89 90 100 120"
LEAST_DRIVER: str  # the oldest NVIDIA driver for Linux that the runtime inside works with: "580"

class CudaError(RuntimeError): ...  # by the name that CUDA has for it, and which step it was

class Extent:
    """How large a launch is; all are 0 where the step's kernel cannot do it."""

    tiles: int  # blocks of threads
    threads: int
    shared_bytes: int

class Step:
    """One launch as planned: ``fields`` are those of its kind's parameters, and 0 where not given."""

    def __init__(self, kind: str, format: str, shape: int, fields: dict[str, Any]) -> None: ...
    @property
    def kind(self) -> str: ...
    @property
    def format(self) -> str: ...
    shape: int
    @property
    def fields(self) -> dict[str, Any]: ...
    @property
    def extent(self) -> Extent: ...

class Schedule:
    """The tasks of a network in one launch, of steps with its shapes; data as kernels read them."""

    def __init__(self, steps: Sequence[Step]) -> None: ...
    @property
    def tasks(self) -> bytes: ...
    @property
    def parts(self) -> bytes: ...  # of each flag, how many tasks raise it
    # (step, tile, flags raised, flags waited for); flags as (first, count).
    @property
    def listed(self) -> list[tuple[int, int, tuple[int, int], list[tuple[int, int]]]]: ...
    @property
    def control_bytes(self) -> int: ...
    largest: int  # bytes of shared memory

def bytes_of_steps(steps: Sequence[Step]) -> bytes: ...
def has_shape(step: Step) -> bool: ...  # whether the one launch has it

# fields: of csrc/cuda/network.h's Network.
def launch_network(
    format: str, fields: dict[str, int], blocks: int, buffers: Sequence[int], stream: int
) -> None: ...
def launch(step: Step, buffers: Sequence[int], stream: int) -> None: ...  # returns before they ran

# What a thread takes on the current device: registers, and bytes of memory where these were too few.
def resources(step: Step) -> tuple[int, int]: ...
def runtime_version() -> int: ...  # of CUDA, as 1000 major + 10 minor
def driver_version() -> int: ...  # the newest CUDA that the driver knows; 0 without a driver
def device_count() -> int: ...  # 0 without a driver
def most_shared_bytes() -> int: ...  # of a block of threads, on the current device; 0 without one
def why_not() -> str: ...  # why nothing can run here; empty where something can
