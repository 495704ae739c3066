"""Modules around a network, and what tracing makes of one: which of them cannot be seen through."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from effv2_kernels import memory
from effv2_kernels.errors import ModelError

# Told by name: torch.distributed is not part of every build.
_PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel")
_SHARDED = "FSDPModule"  # of fully_shard()
_OF_MODULES = frozenset(vars(nn.Module()))
_TRACED = ("torch.fx", "torch.jit", "torch.export", "torch._export")


def why_opaque(module: nn.Module) -> str | None:
    """Why what a module computes cannot be told by its submodules, None where it can."""
    cls = type(module)
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)) or cls.__module__.startswith(
        _TRACED
    ):
        return (
            "was traced, scripted or exported: its submodules no longer say what it computes. Give the model "
            "that it was made from, and trace or export the result of optimize()."
        )
    return None


def refuse_parallel(model: nn.Module) -> None:
    """Raise ModelError for wrappers that share a network out among processes or GPUs."""
    for path, module in model.named_modules():
        names = [cls.__name__ for cls in type(module).__mro__]
        where = _named(path, module)
        given = expression("model", model, path)
        several = isinstance(module, nn.DataParallel) and len(module.device_ids) > 1
        if several or any(name in names for name in _PARALLEL):
            raise ModelError(
                f"{where} shares its module out among {'GPUs' if several else 'processes'}, for training: "
                f"give {given}.module instead{'' if not path else ', and put the result in its place'}. To "
                f"serve on several processes or GPUs, optimize() in each of them."
            )
        if _SHARDED in names:
            raise ModelError(
                f"{where} holds only this process's share of its weights (fully_shard). Load the "
                f"full ones, of torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                f"full_state_dict=True, into a model of its class, and give that."
            )


def expression(name: str, model: nn.Module, path: str) -> str:
    """How to write a submodule of the variable ``name`` in Python."""
    module = model
    for part in path.split(".") if path else ():
        if isinstance(module, nn.ModuleDict):
            name += f"[{part!r}]"
        elif part.isdecimal():
            name += f"[{part}]"
        else:
            name = f"{name}.{part}" if part.isidentifier() else f"{name}._modules[{part!r}]"
        module = module._modules[part] or module
    return name


def replaced(model: nn.Module, replacements: dict[int, nn.Module], paths: Iterable[str]) -> nn.Module:
    """A copy of a module with others in the place of some submodules, which are not copied.

    replacements: by id of the module that is left out. paths: of these, for messages.

    Raises ModelError where the rest cannot be copied, or where the copy would go on calling the original.
    """
    places = [path for path in paths if path]
    steps = _steps(model, places, replacements)
    try:
        # deepcopy takes what its memo holds, so the replaced modules are not copied.
        result: nn.Module = copy.deepcopy(model, dict(replacements))
    except Exception as error:
        if memory.lacks(error):
            raise
        graph = (
            " (Drop what holds tensors of a graph, such as a cache filled outside of torch.no_grad(), first.)"
        )
        raise ModelError(
            f"what is left of {type(model).__name__} cannot be copied: {_what(model, replacements, error)}. "
            f"Replace the network in place: {steps}.{graph if isinstance(error, RuntimeError) else ''}"
        ) from error
    originals = {id(module) for module in model.modules()} - {id(result)}
    for path in dict.fromkeys(_ancestors(places)):
        around = result.get_submodule(path)
        for name, value in vars(around).items():
            if isinstance(value, nn.Module) or name in _OF_MODULES:
                continue
            if any(id(module) in originals for module in _held(value)):
                what = "a" if name.startswith("forward") else "an attribute"
                raise ModelError(
                    f"{_named(path, around)} has {what} {name} of its own on the instance, which holds "
                    f"modules of the original: a copy would go on calling these. Replace the network in "
                    f"place: {steps}."
                )
    return result


def _named(path: str, module: nn.Module) -> str:
    return f"'{path}' ({type(module).__name__})" if path else type(module).__name__


def _steps(model: nn.Module, places: list[str], replacements: dict[int, nn.Module]) -> str:
    """How to put optimised modules in these places."""
    steps = []
    for path in places[:3]:
        place = expression("model", model, path)
        part = getattr(replacements.get(id(model.get_submodule(path))), "_single", False)
        steps.append(f"{place} = effv2_kernels.optimize({place}{', strict=False' if part else ''})")
    more = f" and so on with {len(places) - 3} more" if len(places) > 3 else ""
    return " and ".join(steps) + more


def _ancestors(places: Iterable[str]) -> Iterator[str]:
    for path in places:
        while path:
            path = path.rpartition(".")[0]
            yield path


def _what(model: nn.Module, replacements: dict[int, nn.Module], error: Exception) -> str:
    """The attribute that cannot be copied, and why."""
    for path, module in model.named_modules():
        if id(module) in replacements:
            continue
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            memo: dict[int, Any] = {**replacements, **{id(m): m for m in model.modules()}}
            try:
                copy.deepcopy(value, memo)
            except Exception as own:
                return f"'{name}' of {_named(path, module)}: {own}"
    return str(error)


def _held(value: object) -> Iterator[nn.Module]:
    """The modules that a function holds: by name, in its closure, as arguments, as what it is bound to."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, MethodType):
        yield from _held(value.__self__)
    elif isinstance(value, functools.partial):
        for item in (value.func, *value.args, *value.keywords.values()):
            yield from _held(item)
    elif isinstance(value, FunctionType):
        named = (value.__globals__.get(name) for name in value.__code__.co_names)
        yield from (item for item in named if isinstance(item, nn.Module))
        for cell in value.__closure__ or ():
            try:
                yield from _held(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
