"""The activations by name: what a block applies behind its layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _nothing(x: Tensor) -> Tensor:
    return x


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _nothing,
    "gelu": F.gelu,  # the exact one, x * Phi(x)
    "relu": F.relu,
    "relu6": F.relu6,  # min(max(x, 0), 6)
    "silu": F.silu,  # x * sigmoid(x)
    "hardswish": F.hardswish,  # x * relu6(x + 3) / 6
}


def activate(x: Tensor, name: str) -> Tensor:
    """The activation of that name (``declaration.ACTIVATIONS``) of x, in x's dtype."""
    return _FUNCTIONS[name](x)
