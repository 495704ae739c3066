"""PyTorch's devices by the names that users give, and whether they are there."""

from __future__ import annotations

import torch

from effv2_kernels.errors import InputError, UnavailableError


def named(name: str | torch.device, takes: str) -> torch.device:
    """The device of a name. takes: what a message says is expected. Raises InputError for what is none."""
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{takes}, but got {name!r}.") from error


def require(device: torch.device, runs: str, advice: str) -> None:
    """Raise UnavailableError where a device is neither the CPU nor a GPU that is there.

    runs: what is to be done on it, as a message begins; advice: what else could be done, as it ends.
    """
    if device.type not in ("cpu", "cuda"):
        raise UnavailableError(f"{runs} on cpu and cuda, but not on {str(device)!r}.")
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            raise UnavailableError(f"there is no GPU {device}: PyTorch sees {there} of them. {advice}")
