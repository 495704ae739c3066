"""Refuse modules that are known to compute something else than their structure says.

A reader recognises a network by its structure: names, sizes, kinds of layers. Whoever changes what such a
module computes mostly does it where this can be seen: by another ``forward`` on one instance, in a derived
class, or in the class itself. Copies of a whole file cannot be judged so; ``verification`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effv2_kernels.sources.clone import Clone, refresh, scramble
from effv2_kernels.sources.node import Node

# Code that is taken at its word.
_TRUSTED = ("torch.nn", "torchvision", "timm", "effv2_kernels.families")

# What a forward pass goes through, beside whatever begins with "forward".
_METHODS = {
    "__call__",
    "_wrapped_call_impl",
    "_call_impl",
    "_slow_forward",
    "_conv_forward",
    "_forward_impl",
    "_collect",
    "get_attention_biases",
    "bias",
    "bias_table",
    "classifiers",
}


def require_genuine(parts: Iterable[Node]) -> None:
    """Refuse a module whose forward was replaced on the instance, in a derived class, or in its class."""
    reasons: dict[type, str | None] = {}
    for part in parts:
        reason = _replaced(part.module)
        if reason is None:
            cls = type(part.module)
            if cls not in reasons:
                reasons[cls] = _changed(cls)
            reason = reasons[cls] or _wrong_norm(part.module)
        if reason is not None:
            raise part.error(reason)


def trusted(code: object) -> bool:
    """Whether a class or function was written by PyTorch, torchvision, timm or this package."""
    module = getattr(code, "__module__", None) or ""
    return any(module == name or module.startswith(f"{name}.") for name in _TRUSTED)


def _in_forward_pass(name: str) -> bool:
    return name in _METHODS or name.startswith("forward")


def _replaced(module: nn.Module) -> str | None:
    """What is wrong with the attributes of the instance, None where nothing is."""
    cls = type(module)
    for name, value in vars(module).items():
        # A bias, for example, is a tensor; and a name that the class lacks replaces nothing.
        if not _in_forward_pass(name) or not callable(value) or not callable(getattr(cls, name, None)):
            continue
        if _is_own_method(module, name, value):
            continue
        hint = "Give the model as its class made it, or put the change into a module around it."
        if hasattr(module, "_hf_hook"):
            hint = "Call accelerate.hooks.remove_hook_from_module(model, recurse=True) first."
        return (
            f"has a {name} of its own on the instance, put there by {_origin(value)}: what it computes is "
            f"not known. {hint}"
        )
    return None


def _is_own_method(module: nn.Module, name: str, value: Callable[..., Any]) -> bool:
    """Whether an attribute is a method of the module's own class: the same one, or one of an unknown class.

    Classes choose among their methods when an instance is made; whether what they chose is right is left to
    a run. What trusted classes compute is known under one name only.
    """
    if not isinstance(value, MethodType) or value.__self__ is not module:
        return False
    function = value.__func__
    return getattr(type(module), function.__name__, None) is function and (
        function.__name__ == name or not trusted(function)
    )


def _changed(cls: type) -> str | None:
    """What is wrong with a class, None where nothing is."""
    bases = [base for base in cls.__mro__ if issubclass(base, nn.Module) or not trusted(base)]
    known = next((base for base in bases if trusted(base) and base is not nn.Module), None)
    for name in dict.fromkeys(name for base in bases for name in vars(base) if _in_forward_pass(name)):
        owners = [base for base in bases if name in vars(base)]
        owner, method = owners[0], vars(owners[0])[name]
        if not callable(method):
            continue
        if trusted(owner):
            # Tools that watch every call wrap nn.Module's own methods; a run tells whether they do more.
            if owner is not nn.Module and callable(method) and not trusted(method):
                return (
                    f"is of a class whose {name} was replaced by {_origin(method)}: what it computes is not "
                    f"known. Undo the change of {owner.__module__}.{owner.__qualname__} first."
                )
        elif known is not None and _overrides(owners, name) and not _is_norm(cls, name):
            return (
                f"is of a class that overrides the {name} of {known.__name__} ({owner.__module__}."
                f"{owner.__qualname__}): what it computes is not known. Give a {known.__name__}, and put the "
                f"change into a module around it."
            )
    return None


def _overrides(owners: list[type], name: str) -> bool:
    """Whether a trusted class has this method as well: every class overrides the forward of nn.Module."""
    return any(trusted(base) and not (base is nn.Module and name.startswith("forward")) for base in owners)


def _is_norm(cls: type, name: str) -> bool:
    """Norms of distributed training override forward, and yet are a BatchNorm in eval mode: they are run."""
    return name == "forward" and issubclass(cls, nn.modules.batchnorm._BatchNorm)


def _wrong_norm(module: nn.Module) -> str | None:
    """What is wrong with a BatchNorm of an unknown class, told by its values; None where nothing is."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or trusted(type(module).forward):
        return None
    mean, var = module.running_mean, module.running_var
    if module.training or mean is None or var is None or mean.is_meta:
        return None  # refused as such
    g = torch.Generator(device="cpu").manual_seed(1)
    with torch.no_grad(), Clone(module) as norm:
        scramble(norm, g)
        refresh(norm, torch.float64)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        x = torch.randn(2, mean.numel(), 3, 3, generator=g, dtype=torch.float64, device="cpu").to(mean.device)
        try:
            found = norm(x)
        except Exception as error:
            return f"is of a class that overrides the forward of nn.BatchNorm2d and cannot be run: {error}"
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        activation = getattr(norm, "act", None)
        if isinstance(activation, nn.Module):
            y = activation(y)
    if isinstance(found, Tensor) and found.shape == y.shape and torch.allclose(found.to(y), y, 1e-5, 1e-5):
        return None
    return (
        f"is of a class that overrides the forward of nn.BatchNorm2d ({_origin(type(module))}) and computes "
        f"something else. Give the model with an nn.BatchNorm2d there."
    )


def _origin(code: object) -> str:
    name = getattr(code, "__qualname__", None) or type(code).__qualname__
    module = getattr(code, "__module__", None)
    return f"{module}.{name}" if module else name
