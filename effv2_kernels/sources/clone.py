"""A second body of a module, to try things on: new modules, no hooks, and the weights of the first one.

Nothing that is done to a clone, and nothing that it does itself, reaches the module it was made of.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (dict, OrderedDict, list, tuple, set)
_ENOUGH = 1 << 16  # elements to tell a variance by


class Clone:
    """``root`` is the clone of ``module``; calls of it run no hooks, neither its own nor global ones.

    Weights are shared, buffers are copies, tensors and modules in plain attributes are replaced as well, one
    level of lists and dictionaries deep.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = {id(m): object.__new__(type(m)) for m in module.modules()}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}  # by id, beside the one that has it, kept alive
        for old in module.modules():
            object.__setattr__(self._module[id(old)], "__dict__", self._attributes(old))
        self.root = self._module[id(module)]
        for new in self._module.values():
            # nn.Module calls this instead of what looks for hooks.
            new.__dict__["_compiled_call_impl"] = new.forward

    def __enter__(self) -> nn.Module:
        return self.root

    def __exit__(self, *_: object) -> None:
        for new in self._module.values():  # cycles would keep the weights alive until Python looks for them
            new.__dict__["_compiled_call_impl"] = None

    def watch(self, path: str, call: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have ``call(forward)`` run in place of the forward of the submodule at ``path``."""
        module = self.root.get_submodule(path)
        module.__dict__["_compiled_call_impl"] = call(module.forward)

    def _attributes(self, module: nn.Module) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in module.__dict__.items():
            if name == "_parameters":
                made[name] = {key: None if t is None else self._shared(t) for key, t in value.items()}
            elif name == "_buffers":
                made[name] = {key: None if t is None else self._copied(t) for key, t in value.items()}
            elif name == "_modules":
                made[name] = {key: None if m is None else self._module[id(m)] for key, m in value.items()}
            elif name.endswith(_HOOKS) and isinstance(value, dict):
                made[name] = type(value)()
            elif type(value) in _CONTAINERS:
                made[name] = self._container(value)
            else:
                made[name] = self._value(value)
        return made

    def _shared(self, tensor: Tensor) -> Tensor:
        known = self._tensors.get(id(tensor))
        if known is None:
            alias = tensor.detach()
            if isinstance(tensor, nn.Parameter) and type(alias) is Tensor:
                alias = nn.Parameter(alias, requires_grad=False)
            known = self._tensors[id(tensor)] = (tensor, alias)
        return known[1]

    def _copied(self, tensor: Tensor) -> Tensor:
        known = self._tensors.get(id(tensor))
        if known is None:
            known = self._tensors[id(tensor)] = (tensor, tensor.detach().clone())
        return known[1]

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)((key, self._value(item)) for key, item in value.items())
        return type(value)(self._value(item) for item in value)

    def _value(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._shared(value)
        if isinstance(value, nn.Module):
            return self._module.get(id(value), value)
        if isinstance(value, MethodType):
            own = self._module.get(id(value.__self__))
            return value if own is None else MethodType(value.__func__, own)
        if type(value) is functools.partial:
            arguments = [self._value(item) for item in value.args]
            named = {key: self._value(item) for key, item in value.keywords.items()}
            return functools.partial(self._value(value.func), *arguments, **named)
        return value


def refresh(root: nn.Module, dtype: torch.dtype) -> None:
    """Give a clone's floating-point tensors another dtype, and have it forget what it has computed of them.

    Both timm's and the official code keep gathered attention biases until train() or eval() is called.
    """
    cast: dict[int, tuple[Tensor, Tensor]] = {}

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if id(value) not in cast:
            new = value.detach().to(dtype)
            cast[id(value)] = value, nn.Parameter(new, False) if isinstance(value, nn.Parameter) else new
        return cast[id(value)][1]

    for module in root.modules():
        for tensors in (module._parameters, module._buffers, module.__dict__):
            for name, value in tensors.items():
                tensors[name] = convert(value)
    root.train(True)
    root.train(False)


def scramble(root: nn.Module, generator: torch.Generator) -> None:
    """Give a clone weights that hide nothing; call ``refresh`` behind it, then run it, and read it last.

    At their initial values layer scales (1e-5) hide the block, and BatchNorm (the identity), attention biases
    and heads (0) hide whether they are applied; convolutions may be so small that nothing of them is left
    after a few, or so large that a softmax is a maximum and rounding errors grow. So all that is small in
    size is random, and each BatchNorm takes its statistics, times random factors, from what first comes.
    """
    norms: dict[int, nn.Module] = {}
    scales, biases = _Slots(), _Slots()
    for module in root.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            norms[id(module)] = module
        for name, value in module._parameters.items():
            if value is None or not value.is_floating_point() or value.numel() == 0:
                continue
            if name == "gamma" or name.startswith("layer_scale"):
                scales.add(module._parameters, name)
            elif name.startswith("attention_biases"):
                biases.add(module._parameters, name)
            elif value.ndim > 1 and (_mixes_heads(value) or not bool(value.reshape(-1)[:64].any())):
                limit = (3 / (value.numel() / value.shape[0])) ** 0.5  # keeps the variance
                limit *= 1.5 if _mixes_heads(value) else 1
                noise = _uniform(value.numel(), -limit, limit, generator).to(value)
                module._parameters[name] = nn.Parameter(noise.view(value.shape), requires_grad=False)
    # Above 0.4 the largest networks grow a hundredfold over their blocks.
    scales.fill(lambda count: _signed(count, 0.1, 0.4, generator))
    biases.fill(lambda count: _uniform(count, -3, 3, generator))
    found: dict[str, _Slots] = {name: _Slots() for name in ("running_var", "running_mean", "weight", "bias")}
    for norm in norms.values():
        norm.__dict__["_compiled_call_impl"] = functools.partial(_first_call, norm, norm.forward)
        for name, slots in found.items():
            for tensors in (norm._buffers, norm._parameters):
                if isinstance(tensors.get(name), Tensor):
                    slots.add(tensors, name)
    found["running_var"].fill(lambda count: _uniform(count, 0.5, 1.5, generator))
    found["running_mean"].fill(lambda count: _uniform(count, -0.3, 0.3, generator))
    found["weight"].fill(lambda count: _signed(count, 0.5, 1.5, generator))
    found["bias"].fill(lambda count: _uniform(count, -0.5, 0.5, generator))


def _mixes_heads(weight: Tensor) -> bool:
    """Talking heads have no norm behind them: where their weights are small, so is all of the attention."""
    return weight.ndim == 4 and weight.shape[2:] == (1, 1) and weight.shape[0] == weight.shape[1] <= 32


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu") * (high - low) + low


def _signed(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Magnitudes from ``low`` to ``high``, of either sign."""
    signed = _uniform(count, -1, 1, generator)
    return torch.copysign(low + (high - low) * signed.abs(), signed)


def _first_call(norm: nn.Module, forward: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a scrambled norm, of whose statistics every one is about 1 (0) so far, as if x were usual."""
    norm.__dict__["_compiled_call_impl"] = forward
    mean, var = norm.running_mean, norm.running_var
    if isinstance(x, Tensor) and isinstance(mean, Tensor) and isinstance(var, Tensor):
        some = x[:, :: 1 + x.numel() // _ENOUGH] if x.ndim > 1 else x
        spread, centre = torch.var_mean(some, correction=0)
        if bool(spread.isfinite()) and bool(spread > 0):
            var.mul_(spread)
            mean.mul_(spread.sqrt()).add_(centre)
    return forward(x, *args, **kwargs)


class _Slots:
    """Places of small tensors, to fill all at once: one operation instead of hundreds."""

    def __init__(self) -> None:
        self._places: list[tuple[dict[str, Any], str]] = []

    def add(self, tensors: dict[str, Any], name: str) -> None:
        self._places.append((tensors, name))

    def fill(self, values: Callable[[int], Tensor]) -> None:
        """New tensors of ``values(number of elements)``; a tensor in several places stays one."""
        if not self._places:
            return
        olds = [tensors[name] for tensors, name in self._places]
        counts = [old.numel() for old in olds]
        made: dict[int, Tensor] = {}
        row = values(sum(counts)).to(olds[0])
        for (tensors, name), old, part in zip(self._places, olds, row.split(counts), strict=True):
            if id(old) not in made:
                new = part.view(old.shape).to(old)
                made[id(old)] = nn.Parameter(new, False) if isinstance(old, nn.Parameter) else new
            tensors[name] = made[id(old)]
