"""A GPU of compute capability 9.0 that need not be there, for code that only asks about it."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from triton.runtime import driver

from effv2_kernels import backends
from effv2_kernels.triton.ahead import Elsewhere, Resources
from effv2_kernels.triton.launch import Launch

NAME = "claimed GPU"


def claim_to_triton():
    driver.set_active(Elsewhere(90))


def claim_to_pytorch():
    """For tensors without data: tests of the device, the choice of tiles, and a PyTorch without CUDA.

    The first tile of every launch that has several of them does not fit this GPU.
    """
    backends._no_gpu = lambda: ""
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_name = lambda device=None: NAME
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(uuid="claimed")
    torch.cuda.current_device = lambda: 0
    torch.cuda.device = lambda device: nullcontext()
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(synchronize=lambda: None)
    Launch.compile_missing = lambda pairs: None
    Launch.compile = _compile_nothing
    if torch.version.cuda is None:
        torch.Tensor.contiguous = _contiguous
        torch.Tensor.__getitem__ = _getitem


def _compile_nothing(launch, tile):
    fits = tile is not launch.tiles[0] or len(launch.tiles) == 1
    return Resources(registers=1, stack=0, shared=0) if fits else None


# Without CUDA, PyTorch has all operators for tensors that claim to be there, but not these two methods.
_GETITEM = torch.Tensor.__getitem__


def _contiguous(x, memory_format=torch.contiguous_format):
    return torch.ops.aten.contiguous(x, memory_format=memory_format)


def _getitem(x, index):
    if x.device.type != "cuda":
        return _GETITEM(x, index)
    dim, found = 0, {}
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            x = torch.ops.aten.select(x, dim, part)
            continue
        if part is None:
            x = torch.ops.aten.unsqueeze(x, dim)
        elif isinstance(part, slice):
            x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            found[dim] = part
        dim += 1
    return torch.ops.aten.index(x, [found.get(d) for d in range(dim)]) if found else x
