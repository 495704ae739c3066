"""How a call of an optimised model reaches its blocks: straight, as one op, or in plain PyTorch.

The engine reads memory, so it may be called straight away only with tensors that are what they seem to be: no
wrapper, no transform and no mode is at work. Everything else is given one op, which composes with autograd,
transforms, tracers and compilers. Modes of the caller, which count or log PyTorch's own operations, are given
those.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from effv2_kernels.errors import ExportError

_key_set, _key = torch._C.DispatchKeySet, torch._C.DispatchKey
# What PyTorch's dispatcher consults in this thread for any call. At rest it is these two; a mode, a transform
# or a tracer adds its own.
_consulted = torch._C._dispatch_tls_local_include_set
_AT_REST = _key_set(_key.BackendSelect) | _key_set(_key.ADInplaceOrView)

if hasattr(_key_set, "raw_repr"):

    def _known(keys: Any) -> Any:
        return keys.raw_repr()

    def _all_known(keys: Any, known: Any) -> bool:
        return not (keys.raw_repr() & ~known)

else:  # torch < 2.5

    def _known(keys: Any) -> Any:
        return keys

    def _all_known(keys: Any, known: Any) -> bool:
        return bool((keys - known).highestPriorityTypeId() == _key.Undefined)


_KNOWN_AT_REST = _known(_AT_REST)


def plain_keys(like: Tensor) -> Any:
    """What the dispatcher may know of plain tensors on the device of ``like``, which is one."""
    return _known(torch._C._dispatch_keys(like) | _key_set(_key.Negative))


def is_plain(x: Tensor, keys: Any) -> bool:
    """Whether native code may read x, and nothing would miss what it does. keys: of ``plain_keys``."""
    return _all_known(torch._C._dispatch_keys(x), keys) and at_rest()


def at_rest() -> bool:
    """Whether no mode, transform or tracer of PyTorch is at work in this thread."""
    return _all_known(_consulted(), _KNOWN_AT_REST) and forward_ad._current_level < 0


def modes() -> Sequence[object]:
    """The dispatch modes that are at work."""
    if not torch._C._len_torch_dispatch_stack():
        return ()
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return _get_current_dispatch_mode_stack()


def is_watched() -> bool:
    """Whether a dispatch mode of the caller, such as a counter or a logger, wants to see the operations.

    PyTorch's own tracers and compilers, whose modes are private, do with an op that hides them.
    """
    return any(not type(mode).__module__.startswith(("torch._", "torch.fx.")) for mode in modes())


def refuse_exporters() -> None:
    """Raise ExportError within an exporter to a format that cannot hold the project's ops."""
    exporter = ""
    if torch.onnx.is_in_onnx_export():
        exporter = "torch.onnx.export"
    elif torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        exporter = _caller("openvino", "coremltools")
    if exporter:
        raise ExportError(
            f"{exporter} cannot take an optimised model, whose network is one call of this package's engine. "
            f"Give it the model that was optimised."
        )


def _caller(*packages: str) -> str:
    """The first of these packages that is among the callers."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in packages:
            return package
    return ""
